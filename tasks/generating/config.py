"""Settings of the generate step."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pyramid_model.config import Config
from pyramid_model.generate.amount import parse_bytes
from pyramid_model.generate.request import GenerationRequest
from tasks.captioning.endpoint import EndpointConfig
from tasks.captioning.rewriting import Mode
from tasks.running.run import StepResult

MAX_SEED = 2**53  # every reader of tables and forms counts so far


class GenerateConfig(Config):
    """What is generated, and with which weights."""

    prompts: tuple[str, ...] = Field((), description="prompts; each gives num_per_prompt clips")
    prompts_file: str = Field("", description="text file of more prompts, one on each line")
    num_per_prompt: int = Field(1, ge=1, description="clips for each prompt, with the seeds seed, seed + 1, …")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the first clip of each prompt")
    rewrite: Literal["", Mode] = Field(
        "", description="normal: into full descriptions; director: into camera directions; empty: do not rewrite"
    )
    rewriter: EndpointConfig | None = Field(None, description="language model that rewrites prompts; null: none")
    image: str = Field("", description="picture that is the first frame of every clip")
    video: str = Field("", description="video that every clip continues; its end is at most half of the clip")
    weights: str = Field(
        "", description="directory of released weights, or one of the same layout; empty: the champion"
    )
    variant: str = Field("", description="DiT in that directory: 384p, 768p or image")
    request: GenerationRequest = GenerationRequest()
    dtype: Literal["", "bfloat16", "float16", "float32"] = Field(
        "", description="type of weights; empty: bfloat16 for released weights, float32 for the champion"
    )
    device: Literal["", "cuda", "mps", "cpu"] = Field(
        "", description="device that generates; empty: a GPU if Ray has one"
    )
    max_memory: str = Field("", description="most memory of the device, e.g. 8GiB; empty: all that is free")
    offload: Literal["auto", "none", "model", "sequential"] = Field(
        "auto", description="which models are moved to CPU memory while unused; auto: the fastest way that fits"
    )
    compile: bool = Field(
        False, description="compile the DiT; takes minutes before the first clip, worth it for many clips of one size"
    )
    block_size: int = Field(4, ge=1, description="clips that are sampled together; fewer if max_memory requires it")
    num_cpus: float = Field(1, gt=0, description="CPUs and torch threads of an actor")
    num_gpus: float = Field(0, ge=0, description="GPUs that an actor reserves; 0: one if `device` is a GPU, else none")

    @field_validator("max_memory")
    @classmethod
    def _amount(cls, text: str) -> str:
        if text:
            parse_bytes(text)
        return text

    @model_validator(mode="after")
    def _check(self) -> "GenerateConfig":
        if self.rewrite and self.rewriter is None:
            raise ValueError(
                f"rewrite {self.rewrite!r} needs a language model: set generate.rewriter.base_url and "
                "generate.rewriter.model to an OpenAI-compatible server"
            )
        return self


class GenerateResult(StepResult):
    """The clips that were asked for, whether they were made now or before."""

    weights_hash: str = Field(description="hash of the DiT's weights")
    media: str = Field(description="folder of the clips")
    files: tuple[str, ...] = Field((), description="paths of the clips, in the order of prompts and seeds")
    failures: tuple[str, ...] = Field((), description="one message for each clip that could not be generated")
