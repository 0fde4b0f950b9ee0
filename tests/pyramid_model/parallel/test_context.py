"""A clip coded by several processes at once is the clip coded by one. Runs in about 30 s.

This file is also what the processes run: `test_context.py RANK NUM_RANKS FRAMES_EACH FOLDER`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pyramid_model.config import VAEConfig, VAEStackConfig
from pyramid_model.parallel.context import decode_in_context, encode_in_context, split_frames
from pyramid_model.vae.autoencoder import CausalVideoVAE


def small_vae() -> CausalVideoVAE:
    torch.manual_seed(0)
    stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
    return CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack))


def inputs(num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames, and noise for their latents."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(2, 3, num_frames, 16, 24, generator=generator) * 2 - 1
    return frames, torch.randn(2, 4, 1 + (num_frames - 1) // 8, 2, 3, generator=generator)


def loss_of(restored: torch.Tensor, frames: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
    """Squared error and divergence, both summed, so that the parts of a clip add up."""
    return (restored - frames).square().sum() + 0.1 * kl.sum()


def run_rank(rank: int, num_ranks: int, frames_each: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=num_ranks)
    group, vae = dist.group.WORLD, small_vae()
    frames, noise = inputs(1 + num_ranks * frames_each)
    own = split_frames(frames, group)
    posterior = encode_in_context(vae, own, group)
    latents = posterior.mean + posterior.std * split_frames(noise, group, multiple=1)
    restored = decode_in_context(vae, latents, group)
    loss_of(restored, own, posterior.kl()).backward()
    result = {"mean": posterior.mean.detach(), "latents": latents.detach(), "restored": restored.detach()}
    result["grads"] = {name: parameter.grad for name, parameter in vae.named_parameters()}
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "frames_each"), [(2, 16), (4, 8)])
def test_ranks_that_share_a_clip_give_the_results_and_gradients_of_one_process(tmp_path, num_ranks, frames_each):
    # With 8 frames a rank, deep layers have one each: less than a convolution looks back on.
    command = [sys.executable, __file__]
    ranks = [
        subprocess.Popen([*command, *map(str, (rank, num_ranks, frames_each, tmp_path))], env=os.environ)
        for rank in range(num_ranks)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * num_ranks

    vae = small_vae()
    frames, noise = inputs(1 + num_ranks * frames_each)
    posterior = vae.encode(frames)
    latents = posterior.mean + posterior.std * noise
    restored = vae.decode(latents)
    loss_of(restored, frames, posterior.kl()).backward()

    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(num_ranks)]
    for name, expected in (("mean", posterior.mean), ("latents", latents), ("restored", restored)):
        torch.testing.assert_close(torch.cat([part[name] for part in parts], dim=2), expected, atol=1e-5, rtol=0)
    for name, parameter in vae.named_parameters():
        total = sum(part["grads"][name] for part in parts)
        # Keys' biases have a gradient of zero, which rounding leaves at about 1e-6.
        assert (total - parameter.grad).norm() <= 1e-5 * (parameter.grad.norm() + 1), name
    assert parts[0]["restored"].shape[2] == 1 + frames_each


def test_a_clip_that_does_not_divide_over_the_ranks_is_refused(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert split_frames(torch.zeros(1, 3, 17, 1, 1), dist.group.WORLD).shape[2] == 17
        for num_frames in (1, 16):
            with pytest.raises(ValueError, match=r"among 1 ranks: .* must be 1 \+ a multiple of 1 \* 8, .* 9$"):
                split_frames(torch.zeros(1, 3, num_frames, 1, 1), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
