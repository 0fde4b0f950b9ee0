"""Context parallelism in the training of a VAE: consecutive ranks share the frames of each clip (`context`)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Generator, Tensor
from torch.nn import functional as F

from pyramid_model.parallel.context import decode_in_context, encode_in_context, split_frames
from pyramid_model.parallel.exchange import own_group
from pyramid_model.train.vae_loss import VAEObjective, vae_loss, weighted_loss


def share_clips(objective: VAEObjective, size: int) -> None:
    """Let groups of `size` consecutive ranks compute the loss of one batch. A collective call of all ranks.

    Each rank computes the part of the loss that belongs to its frames, times the number of ranks. So the mean over
    ranks of losses and of gradients is that of the whole batch. Single frames are computed on every rank.

    Args:
        objective: with the same weights on every rank; its `forward` is replaced. The ranks of a group must call it
            with equal arguments, whose number of frames is 1 + a multiple of 8 * size.
        size: ranks of a group.
    """
    group = own_group([range(first, first + size) for first in range(0, dist.get_world_size(), size)])
    vae, config = objective.vae, objective.config

    def forward(frames: Tensor, generator: Generator, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """See `VAEObjective.forward`."""
        if frames.shape[2] == 1:
            return vae_loss(vae, frames, config, generator)
        own = split_frames(frames, group, vae.config.time_factor)
        posterior = encode_in_context(vae, own, group)
        b, c, _, h, w = posterior.mean.shape
        shape = torch.Size((b, c, 1 + (frames.shape[2] - 1) // vae.config.time_factor, h, w))
        # Every rank draws the noise of the whole clip, so the result does not depend on the number of ranks.
        noise = split_frames(torch.randn(shape, generator=generator), group, multiple=1).to(own.device)
        restored = decode_in_context(vae, posterior.mean + posterior.std * noise, group)
        share = size * own.numel() / frames.numel()  # of the frames, relative to an equal share
        parts = {
            "mse": share * F.mse_loss(restored, own),
            "l1": share * F.l1_loss(restored, own),
            "kl": size * posterior.kl().sum() / shape.numel(),
        }
        return weighted_loss(parts, config)

    objective.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
