"""Shared by all models that see sampled frames of clips: settings, and the frames of a block of clips."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar

from pydantic import Field

from pyramid_model.config import NOT_IDENTITY, Config
from tasks.tables.rows import ClipFile

if TYPE_CHECKING:
    import numpy as np

    from pyramid_model.video.video import VideoError

Result = TypeVar("Result")
FrameModel = Callable[["Sequence[np.ndarray]"], Sequence[Result]]  # frames of several clips -> one result per clip


class FrameModelConfig(Config):
    """The frames that a model scores, and the resources of its actors."""

    num_frames: int = Field(default=8, ge=1, description="frames that the model reads, spread over the clip")
    shorter_side: int = Field(
        default=448,
        ge=32,
        description="larger frames are scaled to this shorter side in px before the model's own resizing",
    )
    block_size: int = Field(
        default=16,
        ge=1,
        description="clips in a block; their sampled frames are in memory together",
        json_schema_extra=NOT_IDENTITY,
    )
    num_cpus: float = Field(default=0.5, gt=0, description="CPUs of an actor", json_schema_extra=NOT_IDENTITY)

    @property
    def num_threads(self) -> int:
        """CPU threads of an actor's model: as many as the CPUs that Ray reserves for the actor."""
        return max(1, int(self.num_cpus))


class Placement(TypedDict):
    """Keyword arguments of the models of `TorchModelConfig`."""

    device: str
    dtype: str
    batch_size: int


class TorchModelConfig(FrameModelConfig):
    """Settings of a model that may run on a GPU."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="type of the model's weights"
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        description="frames in one pass of the model, of several clips",
        json_schema_extra=NOT_IDENTITY,
    )
    num_gpus: float = Field(
        default=0,
        ge=0,
        description="GPUs of an actor, e.g. 0.25; above 0 runs the model on the GPU",
        json_schema_extra=NOT_IDENTITY,
    )

    def placement(self) -> Placement:
        """Device, type of the weights and batch size of the model."""
        return {"device": "cuda" if self.num_gpus else "cpu", "dtype": self.dtype, "batch_size": self.batch_size}


def limit_torch_threads(num_threads: int) -> None:
    """Limit torch to the CPUs of an actor: by default it uses all cores in every process."""
    import torch

    torch.set_num_threads(num_threads)


def sampled_frames(clip: ClipFile, config: FrameModelConfig) -> "np.ndarray | VideoError | ValueError":
    """Frames of a clip for a model, uint8 RGB (t h w c), or the error of its file."""
    from pyramid_model.metrics.sampling import spread_frames
    from pyramid_model.video.video import VideoError

    try:
        return spread_frames(
            clip["uri"],
            height=clip["height"],
            width=clip["width"],
            num_frames=clip["num_frames"],
            fps=clip["fps_num"] / clip["fps_den"],
            num_wanted=config.num_frames,
            shorter_side=config.shorter_side,
        )
    except (VideoError, ValueError) as err:
        return err


def over_clips(
    clips: Sequence[ClipFile], config: FrameModelConfig, model: FrameModel[Result]
) -> list[Result | Exception]:
    """Result of a model for each clip, or the error of its file."""
    frames_or_errors = [sampled_frames(clip, config) for clip in clips]
    readable = [frames for frames in frames_or_errors if not isinstance(frames, Exception)]
    results = iter(model(readable) if readable else ())
    return [frames if isinstance(frames, Exception) else next(results) for frames in frames_or_errors]
