"""Context parallelism of the VAE: several ranks share one clip, each rank holds consecutive frames.

Only convolutions read earlier frames, so ranks exchange only the last input frames of each convolution. Results and
gradients equal those of one process up to rounding. All ranks of the group must make the same calls, in the forward and
in the backward pass.

The backward pass of a rank gives the contribution of its own frames to the gradient of the weights. If the loss of the
clip is the sum of the ranks' losses, sum the weight gradients over the group; do not average them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.conv import Chunk
from pyramid_model.vae.posterior import Posterior


def split_frames(x: Tensor, group: dist.ProcessGroup, multiple: int = 8) -> Tensor:
    """This rank's frames of a clip that all ranks of the group hold.

    Args:
        x: (b c 1+kn h w), the same on each of the k ranks. The first rank gets 1 + n frames, every other rank n.
        group: the ranks that share the clip.
        multiple: n must be a multiple of this: the VAE's time factor for frames, 1 for latents.

    Returns:
        (b c 1+n h w) on the first rank, (b c n h w) on the others; a view of x.

    Raises:
        ValueError: the number of frames does not divide among the ranks.
    """
    t, ranks, rank = x.shape[2], dist.get_world_size(group), dist.get_rank(group)
    quotient, remainder = divmod(t - 1, ranks * multiple)
    if remainder or quotient < 1:
        nearest = 1 + max(1, quotient) * ranks * multiple
        raise ValueError(
            f"{t} frames do not divide among {ranks} ranks: the number of frames must be 1 + a multiple of "
            f"{ranks} * {multiple}, for example {nearest}"
        )
    return x[:, :, _rank_frames(rank, quotient * multiple)]


def _rank_frames(rank: int, n: int) -> slice:
    """Range of frames that a rank holds: 1 + n on the first rank, n on every other."""
    return slice(0 if rank == 0 else 1 + rank * n, 1 + (rank + 1) * n)


def encode_in_context(vae: CausalVideoVAE, frames: Tensor, group: dist.ProcessGroup) -> Posterior:
    """Posterior over the latents of this rank's frames.

    Args:
        vae: with the same weights on every rank.
        frames: (b 3 t h w) in [-1, 1], as `split_frames` returns them; h and w multiples of 8.
        group: the ranks that share the clip.

    Returns:
        Posterior of n latent frames for 8n frames; on the first rank, of 1 + n for 1 + 8n.
    """
    chunk = _RankChunk.of(group)
    return Posterior.from_moments(vae.to_moments(vae.encoder(frames, chunk), chunk))


def decode_in_context(vae: CausalVideoVAE, latents: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Frames (b 3 t h w) of this rank's latents (b c t' h/8 w/8).

    The first rank decodes 1 + n latent frames to 1 + 8n frames, every other rank n latent frames to 8n.
    """
    chunk = _RankChunk.of(group)
    return vae.decoder(vae.from_latents(latents, chunk), chunk)


@dataclass
class _RankChunk(Chunk):
    """A chunk that holds one rank's frames of a clip; the previous rank holds the previous chunk."""

    group: dist.ProcessGroup = field(kw_only=True)

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> _RankChunk:
        return cls(starts_clip=dist.get_rank(group) == 0, group=group)

    def with_past(self, conv: nn.Module, x: Tensor, num_past: int) -> Tensor:
        """See `Chunk.with_past`. Past frames come from the previous rank; own last frames go to the next rank."""
        return _JoinPast.apply(x, num_past, self.group)


class _JoinPast(torch.autograd.Function):
    """Prepend the last frames of the previous rank to this rank's frames; the first rank prepends nothing.

    Sending and receiving are one autograd operation, so that the first rank, which only sends, still receives the
    gradient of the frames that it sent. Autograd runs operations in reverse order on all ranks, so sends and receives
    match in the backward pass too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_past: int, group: dist.ProcessGroup) -> Tensor:
        """x: (b c t h w) -> (b c num_past+t h w)."""
        ctx.num_past, ctx.group, ctx.num_frames = num_past, group, x.shape[2]
        frames = _frames_first(x)
        past = frames.new_empty(num_past, *frames.shape[1:]) if dist.get_rank(group) > 0 else frames[:0]
        if len(frames) >= num_past:
            _exchange(group, 1, frames[-num_past:], past)
            return _frames_third(torch.cat([past, frames]))
        # The next rank needs more past frames than this rank has: also pass on some of the received frames.
        _exchange(group, 1, None, past)
        joined = torch.cat([past, frames])
        assert len(joined) > num_past, "the first rank has one frame more than the others, so at least two"
        _exchange(group, 1, joined[-num_past:], None)
        return _frames_third(joined)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of x, including the gradient that the next rank returns for the frames it received.

        Differs from the published code, which drops the gradient of received frames.
        """
        joined = _frames_first(grad).clone()
        num_received = len(joined) - ctx.num_frames
        last = dist.get_rank(ctx.group) + 1 == dist.get_world_size(ctx.group)
        returned = joined.new_empty(0 if last else ctx.num_past, *joined.shape[1:])
        if ctx.num_frames >= ctx.num_past:
            _exchange(ctx.group, -1, joined[:num_received], returned)
            joined[len(joined) - len(returned) :] += returned
        else:
            _exchange(ctx.group, -1, None, returned)
            joined[len(joined) - len(returned) :] += returned
            _exchange(ctx.group, -1, joined[:num_received], None)
        return _frames_third(joined[num_received:]), None, None


def _exchange(group: dist.ProcessGroup, step: int, send: Tensor | None, receive: Tensor | None) -> None:
    """Send to rank + step and receive from rank - step, in place; either is skipped if that rank does not exist."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    ops = []
    if send is not None and 0 <= rank + step < ranks:
        ops.append(dist.P2POp(dist.isend, send.contiguous(), group=group, group_peer=rank + step))
    if receive is not None and 0 <= rank - step < ranks:
        ops.append(dist.P2POp(dist.irecv, receive, group=group, group_peer=rank - step))
    for work in dist.batch_isend_irecv(ops) if ops else ():
        work.wait()


def _frames_first(x: Tensor) -> Tensor:
    """(b c t h w) -> (t b h w c), which is the memory layout of VAE activations on a CPU."""
    return rearrange(x, "b c t h w -> t b h w c")


def _frames_third(x: Tensor) -> Tensor:
    """Inverse of `_frames_first`."""
    return rearrange(x, "t b h w c -> b c t h w")
