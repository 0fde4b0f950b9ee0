"""Settings, models and data of an evaluation."""

from typing import Literal

from pydantic import Field, InstanceOf

from pyramid_model.config import NOT_IDENTITY, CaptionsOfKind, Config
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.weights.record import TrainedModel
from tasks.models.folders import ModelSet
from tasks.models.gate import GateConfig
from tasks.models.registry import Champion
from tasks.running.run import StepResult
from tasks.training.pair_columns import Pairs
from tasks.training.pairs import PairSource


class EvaluateConfig(Config):
    """The model to evaluate, the clips for it, and the limits of the gate."""

    candidate: Literal["trained", "untrained"] = Field(
        default="trained", description="untrained: the same model before its first step, which the gate must refuse"
    )
    dit: str = Field(
        default="",
        description="folder of the DiT; empty: the newest trained in this root",
        json_schema_extra=NOT_IDENTITY,
    )
    vae: str = Field(
        default="",
        description="folder of the VAE; empty: the one that the DiT was trained with",
        json_schema_extra=NOT_IDENTITY,
    )
    encoder: str = Field(
        default="",
        description="folder of the text encoder; empty: the one that the DiT was trained with",
        json_schema_extra=NOT_IDENTITY,
    )
    selection: str = Field(
        default="",
        description="id of the selection; empty: the one that the DiT was trained on",
        json_schema_extra=NOT_IDENTITY,
    )
    captions: tuple[CaptionsOfKind, ...] = Field(
        default=(),
        description="captions, as in train_dit.captions; empty: those that the DiT was trained on",
        json_schema_extra=NOT_IDENTITY,
    )
    gate: GateConfig = GateConfig()
    num_val_clips: int = Field(default=64, ge=1, description="held-out clips for the validation loss")
    num_reconstructions: int = Field(
        default=4, ge=0, description="held-out clips that are reconstructed and shown beside their reconstructions"
    )
    num_samples: int = Field(
        default=2, ge=0, description="clips sampled from training captions, to measure their motion and to show them"
    )
    request: GenerationRequest = Field(
        default=GenerationRequest(),
        description="how clips are sampled; size and length are those of the training clips",
    )
    seed: int = Field(default=0, ge=0, description="seed of the sampled clips")
    num_cpus: float = Field(
        default=1, gt=0, description="CPUs and torch threads of the evaluation", json_schema_extra=NOT_IDENTITY
    )
    num_gpus: float = Field(default=0, ge=0, description="1 evaluates on a GPU", json_schema_extra=NOT_IDENTITY)


class EvaluateResult(StepResult):
    """The gate's verdict."""

    evaluation_id: str
    passed: bool = Field(description="the model passed the gate")
    candidate: Literal["trained", "untrained"]
    dit: str = Field(description="folder of the evaluated DiT")


class Subject(Config):
    """Models and data of an evaluation."""

    candidate: Literal["trained", "untrained"]
    models: ModelSet
    record: TrainedModel | None = Field(description="how the DiT was trained; null: it was not trained here")
    source: PairSource
    train: InstanceOf[Pairs]
    val: InstanceOf[Pairs]
    rival: Champion | None = Field(
        description="the champion to compare with; null: there is none, or the candidate is champion"
    )
