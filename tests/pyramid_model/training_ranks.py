"""Trainings of tiny models on one rank of several, for `parallel_ranks.py`."""

import math
from dataclasses import replace

import torch
import torch.distributed as dist

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig, VAEConfig, VAEGANConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.parallel.training import parallelise
from pyramid_model.text import stack_features
from pyramid_model.train.batches import step_generator
from pyramid_model.train.checkpoints import Checkpoints
from pyramid_model.train.config import DiTLossConfig, OptimConfig, ParallelConfig, VAELossConfig
from pyramid_model.train.dit_loss import DiTObjective
from pyramid_model.train.dit_validation import validate_dit
from pyramid_model.train.loop import Batch, TrainState, train
from pyramid_model.train.vae_gan import VAEGANObjective
from pyramid_model.train.vae_loss import VAEObjective, validate_vae
from pyramid_model.vae.autoencoder import CausalVideoVAE

NUM_BATCHES = 4  # of a step, on any number of ranks
OPTIM = OptimConfig(
    num_steps=3, lr=3e-3, warmup_steps=1, log_every=1, val_every=2, checkpoint_every=1, max_skips=1, ema_decay=0.5
)
# 4 heads for Ulysses on 4 ranks; shards are uneven too: the last convolution of the VAE has 3 output channels
SIZES = {"latent_channels": 4, "num_heads": 4, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}
GAN = VAEGANConfig(
    perceptual_weight=0, kl_weight=0.1, adversarial_start=1, discriminator_layers=2, discriminator_channels=4
)
PYRAMID = PyramidConfig(num_stages=2)


def objective_of(kind):
    """A freshly initialised objective; the same weights on every rank."""
    torch.manual_seed(0)
    if kind in ("vae", "gan"):
        stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
        vae = CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack))
        if kind == "gan":
            return VAEGANObjective(vae, GAN)
        return VAEObjective(vae, VAELossConfig(l1_weight=0.5, kl_weight=0.1))
    dit = (
        MMDiT(MMDiTConfig(**SIZES, num_blocks=2, position_grid=8, position_base=4))
        if kind == "mmdit"
        else MiniFlux(MiniFluxConfig(**SIZES, num_double_blocks=2, num_single_blocks=1, rope_axes=(2, 2, 4)))
    )
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return DiTObjective(dit, PYRAMID, DiTLossConfig())


def batch(kind, step, index):
    """Batch `index` of a step: two latents with texts, or a clip of 33 frames."""
    generator = step_generator(0, step, index)
    if kind in ("vae", "gan"):
        frames = torch.rand(1, 3, 33, 16, 16, generator=generator) * 2 - 1
        return Batch((frames, generator, step), [f"clip{index}"])
    rows = [(torch.randn(2 + i, 6, generator=generator), torch.randn(5, generator=generator)) for i in range(2)]
    latents = torch.randn(2, 4, 3, 8, 8, generator=generator)
    return Batch((latents, stack_features(rows), generator, step, index), [f"clip{index}"])


def batches_of(kind, config):
    """Batches of this rank at a step: those of its group, in the order of the groups."""
    weights = config.batches_of_rank(NUM_BATCHES, dist.get_rank(), dist.get_world_size())
    return lambda step: [replace(batch(kind, step, index), weight=weight) for index, weight in weights]


def validation_of(kind, objective):
    """A function that validates the objective's model."""
    if kind in ("vae", "gan"):
        clip = torch.randint(256, (9, 16, 16, 3), dtype=torch.uint8, generator=step_generator(1, 0)).numpy()
        return lambda: validate_vae(objective.vae, [clip])
    generator = step_generator(1, 0)
    latents = [torch.randn(4, 3, 8, 8, generator=generator)]
    texts = [(torch.randn(3, 6, generator=generator), torch.randn(5, generator=generator))]
    return lambda: validate_dit(objective.dit, latents, texts, PYRAMID, DiTLossConfig(), num_draws=1)


class Killed(Exception):
    """The end of a training that is killed."""


def check_training(kind, folder=None, killed_at=None, poisoned=None, optimizer="adamw", **options):
    """The curve of a training, which continues from the checkpoints in `folder`; empty if it is killed on the way.

    poisoned: [step, rank] whose batches are not numbers; one step may be skipped.
    """
    config = ParallelConfig(**options)
    objective = objective_of(kind)
    module = parallelise(objective, config, torch.device("cpu"), compiler="eager")
    optim = OptimConfig.model_validate(OPTIM.model_dump() | {"name": optimizer})
    state = TrainState.start(module, optim)
    checkpoints = Checkpoints(folder) if folder else None
    batches = batches_of(kind, config)

    def until_killed(step):
        if step == killed_at:
            raise Killed
        if poisoned == [step, dist.get_rank()]:
            return [Batch((batch.args[0] * math.nan, *batch.args[1:]), batch.ids) for batch in batches(step)]
        return batches(step)

    if checkpoints and checkpoints.load(state):
        assert state.step == 2, "the training was killed at step 2"
    validate = validation_of(kind, objective)
    try:
        return train(state, optim, until_killed, validate=validate, checkpoints=checkpoints)
    except Killed:
        checkpoints.wait()
        return []
