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
    """What to generate."""

    prompts: tuple[str, ...] = Field((), description="one clip each, times num_per_prompt")
    prompts_file: str = Field("", description="text file of further prompts, one a line")
    num_per_prompt: int = Field(1, ge=1, description="clips a prompt, with seeds seed, seed + 1, …")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    rewrite: Literal["", Mode] = Field(
        "", description="normal: prompts become full descriptions; director: directions for the camera; empty: stay"
    )
    rewriter: EndpointConfig | None = Field(None, description="the language model that rewrites; null: none")
    image: str = Field("", description="file of the first frame of every clip")
    video: str = Field("", description="file that every clip goes on from, with at most half of its length")
    weights: str = Field("", description="released directory, or one of that layout; empty: the champion generates")
    variant: str = Field("", description="which DiT of that directory: 384p, 768p, image")
    request: GenerationRequest = GenerationRequest()
    dtype: Literal["", "bfloat16", "float16", "float32"] = Field(
        "", description="precision; empty: bfloat16 for a directory of weights, float32 for the champion"
    )
    device: Literal["", "cuda", "mps", "cpu"] = Field("", description="empty: a GPU where Ray has one")
    max_memory: str = Field("", description="of the device, e.g. 8GiB; empty: what is free")
    offload: Literal["auto", "none", "model", "sequential"] = Field(
        "auto", description="where models wait for their turn; auto: whatever is fastest within the memory"
    )
    compile: bool = Field(
        False, description="compile the DiT: minutes before the first clip, then faster; for many clips of one size"
    )
    block_size: int = Field(4, ge=1, description="clips sampled together; fewer where max_memory allows no more")
    num_cpus: float = Field(1, gt=0, description="CPUs, and so torch threads, of an actor")
    num_gpus: float = Field(0, ge=0, description="GPUs that an actor reserves; 0: one if it works on one")

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

    weights_hash: str = Field(description="of the DiT that generates")
    media: str = Field(description="folder of the clips")
    files: tuple[str, ...] = Field((), description="the clips, in the order of prompts and seeds")
    failures: tuple[str, ...] = Field((), description="a sentence for each clip that could not be made")
