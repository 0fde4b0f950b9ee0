"""Causal 3-D convolution and per-frame normalisation, which make it possible to code a video in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

PAIR_CHANNELS, MIN_PAIRS = 32, 3  # below, the sums of frames cost what the convolutions save


@dataclass
class Chunk:
    """State of one chunk of a clip: the past frames that each convolution needs from the chunks before.

    The caller owns this state. The modules hold none, so one VAE can code several clips at the same time.

    starts_clip: the chunk's first frame is the first frame of the clip.
    keep_past: store the last input frames of each convolution for the next chunk.
    past: these frames, by convolution.
    """

    starts_clip: bool = True
    keep_past: bool = False
    past: dict[nn.Module, Tensor] = field(default_factory=dict)

    def next(self) -> Chunk:
        """The chunk that follows this one."""
        return Chunk(starts_clip=False, keep_past=self.keep_past, past=self.past)

    def pieces(self, x: Tensor, length: int) -> list[tuple[Tensor, Chunk]]:
        """Split x (b c t h w) into pieces of at most `length` frames, each with its chunk.

        Without `keep_past`, x is returned as one piece.
        """
        if not self.keep_past:
            return [(x, self)]
        return [(piece, self.next() if i else self) for i, piece in enumerate(x.split(length, dim=2))]

    def with_past(self, conv: nn.Module, x: Tensor, num_past: int) -> Tensor:
        """Prepend up to num_past earlier frames to a convolution's input (b c t h w); none at the start of the clip.

        All information that passes from one chunk of a clip to the next passes through this method.
        """
        if (past := self.past.get(conv)) is not None:
            x = join_frames(past, x)
        if self.keep_past:
            self.past[conv] = x[:, :, -num_past:].clone()
        return x


def to_frames(x: Tensor) -> Tensor:
    """(b c t h w) -> frames (t b) c h w; a view if x has the memory layout of `store_by_frame` on a CPU."""
    return rearrange(x, "b c t h w -> (t b) c h w")


def from_frames(frames: Tensor, batch: int) -> Tensor:
    """Inverse of `to_frames`, always a view."""
    return rearrange(frames, "(t b) c h w -> b c t h w", b=batch)


def store_by_frame(x: Tensor) -> Tensor:
    """Copy (b c t h w) to the channels-last memory layout that is fastest for convolutions on its device.

    On a CPU t b h w c, so that consecutive frames are contiguous; elsewhere b t h w c.
    """
    order = _storage_order(x)
    return rearrange(rearrange(x, f"b c t h w -> {order}").contiguous(), f"{order} -> b c t h w")


def join_frames(before: Tensor, after: Tensor) -> Tensor:
    """Concatenate (b c t h w) tensors in time, in the memory layout of `store_by_frame`."""
    order = _storage_order(after)
    stored = torch.cat([rearrange(x, f"b c t h w -> {order}") for x in (before, after)], dim=order.split().index("t"))
    return rearrange(stored, f"{order} -> b c t h w")


def _storage_order(x: Tensor) -> str:
    return "t b h w c" if x.device.type == "cpu" else "b t h w c"


def causal_conv3d(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], num_zeros: int) -> Tensor:
    """3-D convolution with same padding in space and `num_zeros` zero frames before the first frame.

    Args:
        x: (b c t h w); fastest in the memory layout of `store_by_frame`.
        weight: (o c kt kh kw), odd kh and kw.
        bias: (o,).
        stride: of t, h and w.
        num_zeros: at most kt - 1.

    Returns:
        (b o t' h' w'), in the memory layout of `store_by_frame`.
    """
    if x.device.type == "cpu":
        return TapSum.apply(x, weight, bias, stride, num_zeros)
    if num_zeros:
        x = join_frames(x.new_zeros(*x.shape[:2], num_zeros, *x.shape[3:]), x)
    # Channels-last input makes cuDNN choose channels-last kernels, which pad h and w without a copy.
    return F.conv3d(store_by_frame(x), weight, bias, stride, (0, weight.shape[3] // 2, weight.shape[4] // 2))


class TapSum(torch.autograd.Function):
    """`causal_conv3d` as a sum of 2-D convolutions over the time taps of the kernel.

    On CPUs this is several times faster than conv3d at small channel counts, and zero frames cost nothing. The backward
    pass is written by hand: autograd's would pad and copy at each tap, which makes training a third slower.

    In training, a kernel of three taps computes two output frames with four 2-D convolutions instead of six
    (`_pair_inputs`, `_pair_kernels`). Calls without gradients do not, because it takes more memory. An output frame
    does not depend on later input frames, not even by rounding.

    Source of the pairs: minimal filtering F(2, 3), arXiv:1509.09308, here along time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], num_zeros: int) -> Tensor:
        """See `causal_conv3d`."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.num_zeros = stride, num_zeros
        ctx.num_pairs = num_pairs = _num_pairs(x, weight, stride, num_zeros) if ctx.needs_input_grad[1] else 0
        if not num_pairs:
            return _sum_taps(x, weight, bias, stride, num_zeros)
        padding = (weight.shape[3] // 2, weight.shape[4] // 2)
        num_direct = x.shape[2] + num_zeros - 2 - 2 * num_pairs
        m1, m2, m3, m4 = (
            from_frames(F.conv2d(to_frames(frames), kernel, offset, stride[1:], padding), x.shape[0])
            for frames, kernel, offset in zip(
                _pair_inputs(x, num_pairs), _pair_kernels(weight), (None, bias, None, None), strict=True
            )
        )
        order = _storage_order(x)
        b, _, _, h, w = m1.shape
        sizes = {"t": num_direct + 2 * num_pairs, "b": b, "h": h, "w": w, "c": weight.shape[0]}
        out = rearrange(x.new_empty([sizes[axis] for axis in order.split()]), f"{order} -> b c t h w")
        if num_direct:
            out[:, :, :num_direct] = _sum_taps(x[:, :, : num_direct + 2 - num_zeros], weight, bias, stride, num_zeros)
        torch.add(m1.add_(m2), m3, out=out[:, :, num_direct::2])
        torch.sub(m2.sub_(m3), m4, out=out[:, :, num_direct + 1 :: 2])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        need_x = ctx.needs_input_grad[0]
        if not ctx.num_pairs:
            return *_tap_gradients(grad, x, weight, ctx.stride, ctx.num_zeros, need_x), None, None
        num_direct = grad.shape[2] - 2 * ctx.num_pairs
        grad_x, grad_weight, grad_bias = _pair_gradients(grad[:, :, num_direct:], x, weight, ctx.stride, need_x)
        if num_direct:
            num_read = num_direct + 2 - ctx.num_zeros
            direct = grad[:, :, :num_direct], x[:, :, :num_read]
            y, tap_weight, tap_bias = _tap_gradients(*direct, weight, ctx.stride, ctx.num_zeros, need_x)
            grad_weight += tap_weight
            grad_bias += tap_bias
            if y is not None and grad_x is not None:
                grad_x[:, :, :num_read] += y
        return grad_x, grad_weight, grad_bias, None, None


def _sum_taps(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], num_zeros: int) -> Tensor:
    """`causal_conv3d` with one 2-D convolution for each tap."""
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    out: Tensor | None = None
    for tap, into, source in _taps(x.shape[2], weight.shape[2], stride[0], num_zeros):
        first = out is None
        y = F.conv2d(to_frames(x[:, :, source]), weight[:, :, tap], bias if first else None, stride[1:], padding)
        y = from_frames(y, x.shape[0])
        if out is None:
            out = y
        else:
            out[:, :, into] += y
    assert out is not None, "the last tap never meets a zero frame"
    return out


def _tap_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], num_zeros: int, need_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x (None unless `need_x`), weight and bias of `_sum_taps` from that of its result."""
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    grad_x: Tensor | None = None
    grad_weight, grad_bias = torch.zeros_like(weight), None
    for tap, into, source in _taps(x.shape[2], weight.shape[2], stride[0], num_zeros):
        y, grad_weight[:, :, tap], tap_bias = torch.ops.aten.convolution_backward(
            *(to_frames(grad[:, :, into]), to_frames(x[:, :, source]), weight[:, :, tap], weight.shape[:1]),
            *(stride[1:], padding, (1, 1), False, (0, 0), 1, (need_x, True, grad_bias is None)),
        )
        grad_bias = tap_bias if grad_bias is None else grad_bias
        if not need_x:
            continue
        y = from_frames(y, x.shape[0])
        if grad_x is None:  # the last tap comes first; it reads all frames unless the stride skips some
            grad_x = y if y.shape == x.shape else torch.zeros_like(x)
        if grad_x is not y:
            grad_x[:, :, source] += y
    assert grad_bias is not None, "the last tap never meets a zero frame"
    return grad_x, grad_weight, grad_bias


def _num_pairs(x: Tensor, weight: Tensor, stride: tuple[int, ...], num_zeros: int) -> int:
    """Number of pairs of output frames that are cheaper with four 2-D convolutions than with six."""
    if weight.shape[2] != 3 or stride[0] != 1 or min(weight.shape[:2]) < PAIR_CHANNELS:
        return 0
    num_out = x.shape[2] + num_zeros - 2
    num_pairs = (num_out - num_zeros) // 2
    return num_pairs if num_pairs >= MIN_PAIRS else 0


def _pair_inputs(x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames of the four 2-D convolutions (b c num_pairs h w): the last pair reads the last four frames of x."""
    x = x[:, :, -2 * num_pairs - 2 :]
    even, odd = x[:, :, ::2], x[:, :, 1::2]
    a, b, c, d = even[:, :, :-1], odd[:, :, :-1], even[:, :, 1:], odd[:, :, 1:]
    return a - c, b + c, c - b, b - d


def _pair_kernels(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernels (o c kh kw) of the four 2-D convolutions m1, m2, m3, m4: frames are m1 + m2 + m3 and m2 - m3 - m4."""
    first, middle, last = weight.unbind(2)
    return first, (first + middle + last) / 2, (first - middle + last) / 2, last


def _pair_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], need_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x (None unless `need_x`), weight and bias from that of the pairs, (b o 2*num_pairs h w)."""
    num_pairs = grad.shape[2] // 2
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    even, odd = grad[:, :, ::2], grad[:, :, 1::2]
    grads = even, even + odd, even - odd, -odd
    ys, kernels, biases = zip(
        *(
            torch.ops.aten.convolution_backward(
                *(to_frames(up), to_frames(frames), kernel, weight.shape[:1]),
                *(stride[1:], padding, (1, 1), False, (0, 0), 1, (need_x, True, number == 1)),
            )
            for number, (up, frames, kernel) in enumerate(
                zip(grads, _pair_inputs(x, num_pairs), _pair_kernels(weight), strict=True)
            )
        ),
        strict=True,
    )
    outer = (kernels[1] + kernels[2]) / 2
    grad_weight = torch.stack([kernels[0] + outer, (kernels[1] - kernels[2]) / 2, kernels[3] + outer], dim=2)
    if not need_x:
        return None, grad_weight, biases[1]
    y1, y2, y3, y4 = (from_frames(y, x.shape[0]) for y in ys)
    grad_x = torch.zeros_like(x)
    own = grad_x[:, :, -2 * num_pairs - 2 :]
    own[:, :, :-2:2] += y1
    own[:, :, 2::2] += (y2 + y3).sub_(y1)
    own[:, :, 1:-2:2] += y2.sub_(y3).add_(y4)
    own[:, :, 3::2] -= y4
    return grad_x, grad_weight, biases[1]


def _taps(t: int, num_taps: int, step: int, num_zeros: int) -> Iterator[tuple[int, slice, slice]]:
    """Time taps from last to first: (index, output frames that the tap adds to, input frames that it reads).

    The last tap adds to all output frames. The others skip the output frames at which they would read a zero frame.
    """
    num_out = (t + num_zeros - num_taps) // step + 1
    for tap in reversed(range(num_taps)):
        skip = max(0, -((tap - num_zeros) // step))
        if skip < num_out:
            first = skip * step + tap - num_zeros
            yield tap, slice(skip, num_out), slice(first, first + (num_out - skip - 1) * step + 1, step)


class CausalConv3d(nn.Conv3d):
    """3-D convolution whose output at a frame depends on that frame and earlier ones. Zero frames precede a clip."""

    bias: nn.Parameter  # pyright: ignore[reportIncompatibleVariableOverride] - never None here

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)):
        super().__init__(in_channels, out_channels, kernel, stride)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - a causal convolution needs the past
        self, x: Tensor, chunk: Chunk
    ) -> Tensor:
        """x: (b c t h w) -> (b o t' h' w'); a stride-2 step in time takes 1 + 2m frames to 1 + m."""
        num_past = self.kernel_size[0] - self.stride[0]
        joined = chunk.with_past(self, x, num_past) if num_past else x
        num_joined = joined.shape[2] - x.shape[2]
        num_zeros = num_past - num_joined if num_joined else self.kernel_size[0] - 1
        return causal_conv3d(joined, self.weight, self.bias, self.stride, num_zeros)


class FrameGroupNorm(nn.GroupNorm):
    """Group norm with the statistics of one frame, so that a frame's result does not depend on its chunk."""

    def __init__(self, num_groups: int, channels: int):
        super().__init__(num_groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x: (b c t h w) -> same shape."""
        return from_frames(super().forward(to_frames(x)), x.shape[0])
