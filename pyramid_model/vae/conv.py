"""Causal 3-D convolution and per-frame normalisation: the two operations that let a video be coded in chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Chunk:
    """One chunk of a clip on its way through the VAE, and what the convolutions remember of the chunks before.

    The caller owns it: the modules hold no state, so one VAE can code many clips at once.

    starts_clip: the chunk's first frame is the clip's first one.
    remember: keep the last frames of each convolution's input for the next chunk.
    """

    starts_clip: bool = True
    remember: bool = False
    past: dict[nn.Module, Tensor] = field(default_factory=dict)

    def next(self) -> Chunk:
        """The chunk that follows this one."""
        return Chunk(starts_clip=False, remember=self.remember, past=self.past)


def causal_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], num_zeros: int) -> Tensor:
    """3-D convolution, same padding in space and `num_zeros` frames of zeros before the first one in time.

    Done as one 2-D convolution a time tap, summed: on CPUs several times faster than conv3d at small channel counts,
    and the zero frames cost nothing.

    Args:
        x: (b c t h w), fastest in channels_last_3d.
        weight: (o c kt kh kw), odd kh and kw.
        bias: (o,) or None.
        stride: of t, h and w.
        num_zeros: at most kt - 1.

    Returns:
        (b o t' h' w') in channels_last_3d.
    """
    b, _, t, _, _ = x.shape
    num_taps, step = weight.shape[2], stride[0]
    num_out = (t + num_zeros - num_taps) // step + 1
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    out: Tensor | None = None
    for tap in reversed(range(num_taps)):
        skip = max(0, -((tap - num_zeros) // step))  # output frames whose input at this tap is a zero frame
        if skip >= num_out:
            continue
        first = skip * step + tap - num_zeros
        frames = rearrange(x[:, :, first : first + (num_out - skip - 1) * step + 1 : step], "b c t h w -> (b t) c h w")
        y = F.conv2d(frames, weight[:, :, tap], bias if out is None else None, stride[1:], padding)
        y = rearrange(y, "(b t) c h w -> b c t h w", b=b)
        out = y if out is None else out + F.pad(y, (0, 0, 0, 0, skip, 0))
    assert out is not None, "the last tap never meets a zero frame"
    return out


class CausalConv3d(nn.Conv3d):
    """Convolution whose output at a frame depends on that frame and earlier ones. The past of a clip is zeros."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)):
        super().__init__(in_channels, out_channels, kernel, stride)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """x: (b c t h w) -> (b o t' h' w'); a stride-2 step in time takes 1 + 2m frames to 1 + m."""
        reach = self.kernel_size[0] - 1
        if reach == 0:
            return causal_conv3d(x, self.weight, self.bias, self.stride, num_zeros=0)
        num_past = reach
        if (past := chunk.past.get(self)) is not None:
            num_past = self.kernel_size[0] - self.stride[0]
            past = past[:, :, -num_past:]
            x = torch.cat([past, x], dim=2)
            num_past -= past.shape[2]
        if chunk.remember:
            chunk.past[self] = x[:, :, -reach:].clone()
        return causal_conv3d(x, self.weight, self.bias, self.stride, num_zeros=num_past)


class FrameGroupNorm(nn.GroupNorm):
    """Group norm with the statistics of one frame, so that a frame's result does not depend on its chunk."""

    def __init__(self, num_groups: int, channels: int):
        super().__init__(num_groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x: (b c t h w) -> same shape."""
        frames = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
