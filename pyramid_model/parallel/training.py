"""Parallelism and memory savings of a training, applied to an objective from outside.

`parallelise` reads as the recipe: what is applied, and in which order. Losses and gradients stay those of one process
up to rounding.

All of it runs on CPUs with the backend gloo: FSDP2 reduces gradients there by gloo's reduce-scatter, shards of unequal
size are padded by FSDP2, and averages are sums divided by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pyramid_model.dit.transformer import DiT
from pyramid_model.parallel.clips import share_clips
from pyramid_model.parallel.compiling import compile_blocks
from pyramid_model.parallel.sequence import sequence_parallel
from pyramid_model.train.config import ParallelConfig
from pyramid_model.train.dit_loss import DiTObjective
from pyramid_model.train.ranks import num_ranks
from pyramid_model.train.vae_loss import VAEObjective
from pyramid_model.vae.autoencoder import CausalVideoVAE


def parallelise(
    objective: nn.Module, config: ParallelConfig, device: torch.device, compiler: str = "inductor"
) -> nn.Module:
    """Apply everything that `config` asks for to an objective. A collective call of all ranks.

    Args:
        objective: a `DiTObjective` or `VAEObjective` on `device`, with the same weights on every rank; changed in
            place. Any other module can only be copied to every rank.
        config: see `ParallelConfig`.
        device: of this rank.
        compiler: backend of torch.compile.

    Returns:
        The module to call in a training: the objective, inside DistributedDataParallel if each rank has a copy.

    Raises:
        ValueError: the ranks do not divide into the groups, or the heads of a DiT not among the ranks.
    """
    config.check(num_ranks())
    if config.share_batch > 1:  # first: it replaces methods that later steps wrap
        share_batches(objective, config.share_batch)
    if config.checkpoint_blocks:  # inside the compiled code and inside FSDP, whose hooks must not run twice
        checkpoint_blocks(blocks_of(objective), config.checkpoint_blocks)
    if config.compile_blocks:  # before FSDP, whose hooks stay outside of the graphs
        compile_training(objective, compiler)
    if config.ranks_per_copy(num_ranks()) > 1 or config.precision != "float32":
        return shard(objective, config, device)
    if num_ranks() > 1:
        return DistributedDataParallel(objective, find_unused_parameters=True)
    return objective


def blocks_of(objective: nn.Module) -> list[nn.Module]:
    """The blocks of an objective's model, in the order they run: units of recomputation, of compiling and of sharding.

    Raises:
        ValueError: the objective is neither a `DiTObjective` nor a `VAEObjective`.
    """
    if isinstance(objective, DiTObjective):
        return objective.dit.blocks
    if isinstance(objective, VAEObjective):
        encoder, decoder = objective.vae.encoder, objective.vae.decoder
        return [*encoder.blocks, encoder.mid, decoder.mid, *decoder.blocks]
    raise ValueError(f"{type(objective).__name__} has no known blocks: only a DiT and a VAE can be sharded")


def share_batches(objective: nn.Module, size: int) -> None:
    """Let `size` consecutive ranks compute one batch: tokens of a DiT, frames of a VAE's clips.

    Ranks of a group must get equal batches. Gradients must be averaged over all ranks.
    """
    if isinstance(objective, DiTObjective):
        sequence_parallel(objective.dit, ulysses=size)
    elif isinstance(objective, VAEObjective):
        share_clips(objective, size)


def checkpoint_blocks(blocks: Sequence[nn.Module], every: int) -> None:
    """Recompute the activations of every `every`-th block in the backward pass, from the first block on."""
    for block in blocks[::every]:
        # Blocks draw no random numbers, so no state of a generator has to be restored.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_training(objective: nn.Module, backend: str) -> None:
    """Compile each block of the model by itself (regional compilation); blocks of a kind share their code."""
    if isinstance(objective, DiTObjective):
        compile_blocks(objective.dit, backend)
        return
    for block in blocks_of(objective):
        block.compile(backend=backend)


def shard(objective: nn.Module, config: ParallelConfig, device: torch.device) -> nn.Module:
    """Shard parameters, gradients and optimiser state (FSDP2); optimisers must be built afterwards.

    Each block is one unit, which is gathered before it runs and freed after it. With bfloat16, blocks compute in
    bfloat16 and gradients are reduced in float32. Modules that are called on their own, without the module that
    contains them, are sharded on their own, so that validation can call them too.
    """
    mesh = _mesh(config, device)
    dtype = getattr(torch, config.precision)
    exact = None if dtype == torch.float32 else torch.float32
    inside = MixedPrecisionPolicy(None if exact is None else dtype, exact, cast_forward_inputs=False)
    at_ends = MixedPrecisionPolicy(inside.param_dtype, exact, output_dtype=exact, cast_forward_inputs=True)
    for block in blocks_of(objective):
        fully_shard(block, mesh=mesh, mp_policy=inside)
    if isinstance(objective, DiTObjective):
        fully_shard(objective.dit, mesh=mesh, mp_policy=inside, reshard_after_forward=True)
        if exact:
            objective.dit.register_forward_pre_hook(partial(_cast_inputs, dtype))
    elif isinstance(objective, VAEObjective):
        for part in _called_parts(objective.vae):
            fully_shard(part, mesh=mesh, mp_policy=at_ends, reshard_after_forward=True)
    return objective


def _mesh(config: ParallelConfig, device: torch.device) -> DeviceMesh:
    """One axis if all ranks share a copy; otherwise two, of copies and of the ranks that share one (HSDP)."""
    ranks, size = num_ranks(), config.ranks_per_copy(num_ranks())
    if size == ranks:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (ranks // size, size), mesh_dim_names=("copy", "shard"))


def _called_parts(vae: CausalVideoVAE) -> list[nn.Module]:
    return [vae.encoder, vae.to_moments, vae.from_latents, vae.decoder]


def _cast_inputs(dtype: torch.dtype, dit: DiT, args: tuple) -> tuple:
    """Latents and text in `dtype`. Timesteps stay float32: bfloat16 rounds numbers up to 1000 to multiples of 4."""
    columns, timestep, text, *rest = args
    return [[clip.to(dtype) for clip in column] for column in columns], timestep, text.to(dtype), *rest
