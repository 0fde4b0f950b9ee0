"""A tiny DiT learns one clip of the sample, and an adapter on it another one. About half a minute."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyramid_model.config import LoRAConfig, MiniFluxConfig, PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.sampler import Sampling, sample_video
from pyramid_model.text import TextFeatures
from pyramid_model.train.batches import step_generator
from pyramid_model.train.config import DiTLossConfig, OptimConfig
from pyramid_model.train.dit_loss import DiTObjective
from pyramid_model.train.loop import Batch, TrainState, train
from pyramid_model.train.vae_init import initialise_vae
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.norm import measure_latent_norm
from pyramid_model.vae.pixels import to_unit_range
from pyramid_model.video.footage import Footage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SAMPLE = Path(__file__).parents[3] / "datasets" / "sample"
PYRAMID, NUM_FRAMES, SIDE = PyramidConfig(num_stages=2), 17, 64
SIZES = {"num_heads": 4, "head_dim": 32, "text_dim": 8, "pooled_dim": 8, "latent_channels": 8, "rope_axes": (8, 12, 12)}
TEXT = TextFeatures(torch.ones(2, 1, 8), torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 8))


def frames_of(path: Path) -> np.ndarray:
    """17 frames from the middle of a video, scaled to 64x64 px."""
    import cv2

    with Footage(str(path)) as footage:
        frames = [cv2.resize(frame.rgb(), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in footage.frames()]
    start = len(frames) // 2
    return np.stack(frames[start : start + NUM_FRAMES])


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    """Normalised latents of the videos of the sample, by a VAE that is a linear codec; (n c t h w)."""
    torch.manual_seed(0)
    stack = VAEStackConfig(channels=(8, 16, 32, 32), layers=(1, 1, 1, 1), norm_groups=2)
    vae = CausalVideoVAE(VAEConfig(latent_channels=8, encoder=stack, decoder=stack))
    paths = sorted(path for path in SAMPLE.iterdir() if path.suffix in (".mp4", ".mkv", ".webm", ".avi"))
    clips = torch.stack([to_unit_range(frames_of(path)) for path in paths])
    initialise_vae(vae, clips, torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = vae.encode(clips).mode()
    return measure_latent_norm(list(raw.split(1))).normalise(raw)


def learn(dit: MiniFlux, clip: torch.Tensor, num_steps: int, lr: float) -> None:
    """Train on one clip alone; the DiT then has its averaged weights."""
    optim = OptimConfig(num_steps=num_steps, batch_size=2, lr=lr, warmup_steps=10, ema_decay=0.9, log_every=1000)
    objective = DiTObjective(dit, PYRAMID, DiTLossConfig())
    state = TrainState.start(objective, optim)
    pair = clip[None].expand(2, -1, -1, -1, -1)
    train(state, optim, lambda step: [Batch((pair, TEXT, step_generator(0, step), step, 0), ["clip"])])
    state.use_ema()


def nearest(dit: MiniFlux, latents: torch.Tensor) -> int:
    """Index of the clip that is nearest to a sample of the DiT."""
    t, h, w = latents.shape[2:]
    sampling = Sampling(PYRAMID, (t, h, w), (8, 8), (8, 8), [1.0] * t)
    sample = sample_video(dit.eval(), TEXT.rows([0]), None, sampling, Noise(torch.Generator().manual_seed(9)))
    return int((latents - sample).square().mean(dim=(1, 2, 3, 4)).argmin())


def test_a_model_and_an_adapter_on_it_each_learn_a_clip(latents):
    from pyramid_model.weights.lora import add_lora

    torch.manual_seed(0)
    dit = MiniFlux(MiniFluxConfig(**SIZES, num_double_blocks=1, num_single_blocks=2))
    learn(dit, latents[3], num_steps=300, lr=3e-3)
    assert nearest(dit, latents) == 3
    add_lora(dit, LoRAConfig(rank=4, alpha=8))
    trained = sum(weight.numel() for weight in dit.parameters() if weight.requires_grad)
    assert trained <= 0.05 * sum(weight.numel() for weight in dit.parameters())
    learn(dit, latents[1], num_steps=300, lr=3e-3)
    assert nearest(dit, latents) == 1
