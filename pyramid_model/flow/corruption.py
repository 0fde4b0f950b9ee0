"""Corruption of the history in training, so that a model bears the errors in units that it generated itself.

The published training adds noise. Blur and a change of contrast are options, since long clips mostly lose detail and
gain contrast. They act on normalised latents, not on pixels, so contrast means the distance of a channel from its mean
over the picture. The ranges are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from pyramid_model.config import PyramidConfig
from pyramid_model.flow.jump import downsample
from pyramid_model.flow.noise import Noise


@dataclass(frozen=True)
class Corruption:
    """How much each sample's history is corrupted; (b 1 1 1 1) each.

    sigma: share of noise. blur: share of the picture at half resolution. contrast: factor; 1 changes nothing.
    """

    sigma: Tensor
    blur: Tensor | None = None
    contrast: Tensor | None = None

    @classmethod
    def draw(cls, noise: Noise, like: Tensor, config: PyramidConfig) -> Corruption:
        """Draw strengths for the samples of `like`, (b c t h w): of the noise, then of what else is switched on."""

        def uniform(most: float) -> Tensor:
            values = noise.uniform(like.shape[0]).to(like.dtype) * most
            return values[:, None, None, None, None]

        sigma = uniform(config.corrupt_ratio)
        blur = uniform(config.corrupt_blur) if config.corrupt_blur else None
        contrast = None
        if config.corrupt_contrast:
            contrast = 1 - config.corrupt_contrast + uniform(2 * config.corrupt_contrast)
        return cls(sigma, blur, contrast)

    def apply(self, clip: Tensor, noise: Noise) -> Tensor:
        """A history clip (b c t h w) with blur, contrast, then fresh noise."""
        if self.blur is not None:
            clip = clip + self.blur * (_blurred(clip) - clip)
        if self.contrast is not None:
            mean = clip.mean(dim=(3, 4), keepdim=True)
            clip = mean + self.contrast * (clip - mean)
        return self.sigma * noise.normal(*clip.shape).to(clip.dtype) + (1 - self.sigma) * clip

    def apply_newest_first(self, clips: Sequence[Tensor], noise: Noise) -> list[Tensor]:
        """History clips, oldest first; noise is drawn for the newest first, as in the published code."""
        return [self.apply(clip, noise) for clip in reversed(clips)][::-1]


def _blurred(clip: Tensor) -> Tensor:
    """The clip at half of its height and width, enlarged again."""
    frames = rearrange(downsample(clip), "b c t h w -> (b t) c h w")
    enlarged = F.interpolate(frames, size=clip.shape[3:], mode="bilinear", align_corners=False)
    return rearrange(enlarged, "(b t) c h w -> b c t h w", b=clip.shape[0])
