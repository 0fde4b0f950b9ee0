"""What every model that looks at sampled frames of clips shares: its settings, and the frames of a block of clips."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from pyramid_model.config import Config

# Settings that say how fast and where, not what is computed: no part of ids.
SPEED = {"block_size", "batch_size", "num_cpus", "num_gpus"}


class FrameModelConfig(Config):
    """Which frames a model sees, and what its actors take."""

    num_frames: int = Field(8, ge=1, description="frames that are looked at, spread over the clip")
    shorter_side: int = Field(
        448, ge=32, description="px to which a larger frame's shorter side is scaled, before the model's own resizing"
    )
    block_size: int = Field(16, ge=1, description="clips a block; their sampled frames lie in memory together")
    num_cpus: float = Field(0.5, gt=0, description="CPUs of an actor")

    @property
    def num_threads(self) -> int:
        """Threads of an actor's model on the CPU: as many as Ray has reserved for it."""
        return max(1, int(self.num_cpus))

    def identity(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """The settings that decide what is computed; of all, or of those named."""
        return self.model_dump(mode="json", include=set(names) or None, exclude=SPEED)


class TorchModelConfig(FrameModelConfig):
    """The same of a model that may run on a GPU."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the model's weights")
    batch_size: int = Field(32, ge=1, description="frames through the model at a time, of several clips")
    num_gpus: float = Field(0, ge=0, description="GPUs of an actor, e.g. 0.25; more than 0 runs the model on the GPU")

    def placement(self) -> dict[str, Any]:
        """Arguments of a model that say where and how it runs."""
        device = "cuda" if self.num_gpus else "cpu"
        return {"device": device, "dtype": self.dtype, "batch_size": self.batch_size}


def limit_torch_threads(num_threads: int) -> None:
    """Keep torch to an actor's CPUs: by default it takes all cores in every process."""
    import torch

    torch.set_num_threads(num_threads)


def sampled_frames(clip: Mapping[str, Any], config: FrameModelConfig) -> Any:
    """Frames of a clip that a model looks at, uint8 RGB (t h w c), or why there are none.

    clip: `uri`, `height`, `width`, `num_frames`, `fps_num` and `fps_den` of a row of `clips`.
    """
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


def over_clips(clips: Sequence[Mapping[str, Any]], config: FrameModelConfig, model: Any) -> list[Any]:
    """What a model says of each clip (frames of several clips -> one result a clip), or the error of its file."""
    read = [sampled_frames(clip, config) for clip in clips]
    sound = [frames for frames in read if not isinstance(frames, Exception)]
    found = iter(model(sound) if sound else ())
    return [frames if isinstance(frames, Exception) else next(found) for frames in read]
