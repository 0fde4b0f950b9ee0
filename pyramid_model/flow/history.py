"""The temporal pyramid (arXiv:2410.05954): earlier units condition the current one; older units are coarser."""

from __future__ import annotations

from torch import Tensor

from pyramid_model.flow.jump import downsample


def latent_pyramid(latents: Tensor, num_stages: int) -> list[Tensor]:
    """The clip at the resolution of every stage, coarse to fine; the last entry is `latents` itself, (b c t h w)."""
    pyramid = [latents]
    for _ in range(num_stages - 1):
        pyramid.insert(0, downsample(pyramid[0]))
    return pyramid


def history_clips(pyramid: list[Tensor], stage: int, num_units: int, frames_per_unit: int) -> list[Tensor]:
    """History clips of the unit that follows the given units, oldest first.

    The newest unit has the resolution of the stage. Each unit before it has half the height and width of the next one,
    down to stage 0; all older units form one clip at stage 0. Example: with many units, the history of stage 2 is
    [all older units at stage 0, last but one at stage 1, last at stage 2].

    Args:
        pyramid: `latent_pyramid` of the earlier units, 1 + (num_units - 1) * frames_per_unit frames.
        stage: stage that is predicted next.
        num_units: number of units in the pyramid.
        frames_per_unit: latent frames of every unit but the first; the first unit has one frame.

    Returns:
        At most stage + 2 clips (b c t h w), which contain every frame once; an empty list if there are no units.
    """
    if num_units == 0:
        return []
    clips = []
    for unit in range(1, num_units + 1):  # 1 is the newest
        if unit > 1 and stage - unit + 1 <= 0:  # stage 0 is reached: all older units form one clip
            clips.append(pyramid[0][:, :, : -(unit - 1) * frames_per_unit])
            break
        stop = -(unit - 1) * frames_per_unit or None
        clips.append(pyramid[stage - unit + 1][:, :, -unit * frames_per_unit : stop])
    return clips[::-1]
