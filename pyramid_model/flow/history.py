"""The temporal pyramid: earlier units condition the current one, the older the coarser."""

from __future__ import annotations

from torch import Tensor

from pyramid_model.flow.jump import downsample


def latent_pyramid(latents: Tensor, num_stages: int) -> list[Tensor]:
    """The clip at every stage, coarse to fine; the last entry is `latents` itself, (b c t h w)."""
    pyramid = [latents]
    for _ in range(num_stages - 1):
        pyramid.insert(0, downsample(pyramid[0]))
    return pyramid


def history_clips(pyramid: list[Tensor], stage: int, num_units: int, frames_per_unit: int) -> list[Tensor]:
    """Clips that condition the unit after the given ones, oldest first.

    The newest unit is kept at the resolution of the stage, each one before it at half the resolution of its successor,
    and all that is older than the first coarsest one stays together at stage 0. With three stages and many units,
    stage 2 sees [all older at 0, last but one at 1, last at 2].

    Args:
        pyramid: `latent_pyramid` of the earlier units, 1 + (num_units - 1) * frames_per_unit frames.
        stage: stage about to be predicted.
        num_units: units in the pyramid.
        frames_per_unit: latent frames of a unit after the first, which is one frame.

    Returns:
        At most stage + 2 clips (b c t h w); together they hold every frame once. None for no units.
    """
    if num_units == 0:
        return []
    clips = []
    for unit in range(1, num_units + 1):  # 1 is the newest
        if unit > 1 and stage - unit + 1 <= 0:  # the coarsest stage is reached: the rest stays together
            clips.append(pyramid[0][:, :, : -(unit - 1) * frames_per_unit])
            break
        stop = -(unit - 1) * frames_per_unit or None
        clips.append(pyramid[stage - unit + 1][:, :, -unit * frames_per_unit : stop])
    return clips[::-1]
