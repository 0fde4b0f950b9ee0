"""Record of a model that was trained here: the file `training.json` beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, JsonValue, ValidationError

from pyramid_model.config import CaptionsOfKind, Config, LatentNorm, PyramidConfig

TRAINING_FILE = "training.json"


class ModelFolder(Config):
    """A model on disk: a DiT, a VAE, a text encoder or any other.

    uri: its folder. hash: of its weights and of all other files that change its results.
    random_init: its weights are random, not trained.
    """

    uri: str
    hash: str
    random_init: bool = False


class TrainedOn(Config):
    """Training data of a model.

    selection, captions: the selection and captions that were read, at the table versions `versions`.
    vae, encoder: for a DiT, the models of its latents and text features. latent_norm: shift and scale of these latents.
    init: for a DiT, the one whose weights it started from; None: random weights.
    """

    selection: str = ""
    captions: tuple[CaptionsOfKind, ...] = ()
    versions: dict[str, int] = Field(default_factory=dict)
    vae: ModelFolder | None = None
    encoder: ModelFolder | None = None
    init: ModelFolder | None = None
    latent_norm: LatentNorm | None = None


class TrainedModel(Config):
    """A trained VAE or DiT, and how it was trained.

    model_id: identity of settings and data. weights_hash: of its folder. settings: of the step that trained it.
    metrics: figures on held-out clips before (`…_untrained`) and after training, and counts. curve: one row per
    logged step. busy_s: seconds of training.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")  # NaN and Inf are kept in JSON

    kind: Literal["vae", "dit"]
    model_id: str
    weights_hash: str
    settings: dict[str, JsonValue]
    trained_on: TrainedOn = TrainedOn()
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    curve: list[dict[str, float]] = Field(default_factory=list)
    busy_s: float = 0.0

    @property
    def pyramid(self) -> PyramidConfig:
        """Stages and units that a DiT was trained with."""
        return PyramidConfig.model_validate(self._section("pyramid"))

    @property
    def autoregressive(self) -> bool:
        """Whether a DiT was trained unit by unit; else it generates all frames at once."""
        return bool(self._section("loss").get("autoregressive", True))

    def _section(self, name: str) -> dict[str, JsonValue]:
        section = self.settings.get(name)
        return section if isinstance(section, dict) else {}


def parse_record(content: str | bytes, source: str) -> TrainedModel:
    """The record in a `training.json`; source: its path, for the message.

    Raises:
        ValueError: the content is not a record of a training.
    """
    try:
        return TrainedModel.model_validate_json(content)
    except ValidationError as err:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in err.errors()[:3])
        raise ValueError(
            f"{source} is not a record of a training ({problems}): train the model again, or remove it"
        ) from err


def read_record(folder: str | Path) -> TrainedModel | None:
    """The record in a local model folder; None for a model that was not trained here.

    Raises:
        ValueError: training.json is damaged.
    """
    file = Path(folder) / TRAINING_FILE
    return parse_record(file.read_bytes(), str(file)) if file.exists() else None
