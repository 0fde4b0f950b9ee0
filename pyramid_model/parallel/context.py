"""The VAE over several ranks, each holding consecutive frames of one clip.

The convolutions alone look back in time, so all that ranks exchange is the last frames of each convolution's input.
Results and gradients are those of one process, up to rounding. Every rank of the group must make the same calls, the
backward pass included.

Each rank's backward pass gives the share of its own frames in the gradient of the weights: sum the weights' gradients
over the group (not their mean, if the losses of the ranks are summed to the loss of the clip).
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
    """This rank's part of a clip that every rank of the group holds.

    Args:
        x: (b c 1+kn h w), the same on every rank: 1 + n frames go to the first rank, n to each of the k - 1 others.
        group: the ranks that share the clip.
        multiple: what n must be a multiple of: the VAE's time factor for frames, 1 for latents.

    Raises:
        ValueError: the number of frames does not divide.
    """
    t, ranks, rank = x.shape[2], dist.get_world_size(group), dist.get_rank(group)
    each, left = divmod(t - 1, ranks * multiple)
    if left or each < 1:
        nearest = 1 + max(1, each) * ranks * multiple
        raise ValueError(
            f"{t} frames over {ranks} ranks: 1 + a multiple of {ranks} * {multiple} is needed, for example {nearest}"
        )
    return x[:, :, _part(rank, each * multiple)]


def _part(rank: int, n: int) -> slice:
    """Which frames of a clip a rank holds: 1 + n the first one, n each other."""
    return slice(0 if rank == 0 else 1 + rank * n, 1 + (rank + 1) * n)


def encode_in_context(vae: CausalVideoVAE, frames: Tensor, group: dist.ProcessGroup) -> Posterior:
    """Posterior over the latents of this rank's frames.

    Args:
        vae: the same on every rank.
        frames: (b 3 t h w) in [-1, 1], as `split_frames` gives them; h and w multiples of 8.
        group: the ranks that share the clip.

    Returns:
        One latent frame for every 8 frames, and on the first rank one more.
    """
    chunk = _RankChunk.of(group)
    return Posterior.from_moments(vae.to_moments(vae.encoder(frames, chunk), chunk))


def decode_in_context(vae: CausalVideoVAE, latents: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Frames (b 3 t h w) of this rank's latents (b c t h w): 1 + 8n from 1 + n on the first rank, else 8n from n."""
    chunk = _RankChunk.of(group)
    return vae.decoder(vae.from_latents(latents, chunk), chunk)


def gather_latents(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The whole (b c 1+kn h w) on every rank, from parts of 1 + n frames on the first one and n on the others.

    The gradient of a rank's part is what that rank's own use of it gives: where every rank computes the same loss of
    the whole, as with the KL term, the sum of weight gradients over the group counts that loss once.
    """
    return _Gather.apply(x, group)


@dataclass
class _RankChunk(Chunk):
    """A chunk that is one rank's part of a clip; the chunk before it lies on the rank before."""

    group: dist.ProcessGroup = field(kw_only=True)

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> _RankChunk:
        return cls(starts_clip=dist.get_rank(group) == 0, group=group)

    def with_past(self, conv: nn.Module, x: Tensor, num_past: int) -> Tensor:
        """See `Chunk.with_past`: here the frames come from the rank before, and go to the rank after."""
        return _JoinPast.apply(x, num_past, self.group)


class _JoinPast(torch.autograd.Function):
    """This rank's frames with the last ones of the rank before in front; where there is none, the frames alone.

    Handing on and receiving are one operation, so that the gradient of what was handed on has a way back even where
    nothing is received. Autograd runs operations in reverse order on every rank, so the messages meet there as well.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_past: int, group: dist.ProcessGroup) -> Tensor:
        """x: (b c t h w) -> (b c num_past+t h w)."""
        ctx.num_past, ctx.group, ctx.num_frames = num_past, group, x.shape[2]
        own = _frames_first(x)
        past = own.new_empty(num_past, *own.shape[1:]) if dist.get_rank(group) > 0 else own[:0]
        if len(own) >= num_past:
            _exchange(group, 1, own[-num_past:], past)
            return _frames_third(torch.cat([past, own]))
        # Fewer frames here than the next rank looks back on: it gets some of those received as well.
        _exchange(group, 1, None, past)
        joined = torch.cat([past, own])
        assert len(joined) > num_past, "the first rank has one frame more than the others, so at least two"
        _exchange(group, 1, joined[-num_past:], None)
        return _frames_third(joined)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of x, with what the next rank made of its last frames.

        The published code drops the gradient of received frames. Here it goes back to where they came from.
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
    """Send to the rank `step` further on and receive from the one as far back, both where there is such a rank."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    ops = []
    if send is not None and 0 <= rank + step < ranks:
        ops.append(dist.P2POp(dist.isend, send.contiguous(), group=group, group_peer=rank + step))
    if receive is not None and 0 <= rank - step < ranks:
        ops.append(dist.P2POp(dist.irecv, receive, group=group, group_peer=rank - step))
    for work in dist.batch_isend_irecv(ops) if ops else ():
        work.wait()


def _frames_first(x: Tensor) -> Tensor:
    """(b c t h w) -> (t b h w c), on a CPU as it lies in memory."""
    return rearrange(x, "b c t h w -> t b h w c")


def _frames_third(x: Tensor) -> Tensor:
    """Inverse of `_frames_first`."""
    return rearrange(x, "t b h w c -> b c t h w")


class _Gather(torch.autograd.Function):
    """Parts of every rank in a row; backward, each rank's own part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """x: (b c t h w) -> (b c 1+kn h w)."""
        own = _frames_first(x)
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        n = len(own) - (rank == 0)
        ctx.own = _part(rank, n)
        # Parts of one size, the others with a frame too many: backends differ in whether they take uneven ones.
        even = torch.cat([own, own[:1]]) if rank else own
        parts = [torch.empty_like(even, memory_format=torch.contiguous_format) for _ in range(ranks)]
        dist.all_gather(parts, even.contiguous(), group=group)
        return _frames_third(torch.cat([parts[0], *(part[:n] for part in parts[1:])]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of x."""
        return grad[:, :, ctx.own], None
