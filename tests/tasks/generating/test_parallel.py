"""Facts about clips that several processes make together: they are the clip of one. About half a minute."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pyramid_model.config import LatentNorm, MiniFluxConfig, VAEConfig, VAEStackConfig
from pyramid_model.generate.request import GenerationRequest
from tasks.generating.clip_generator import ModelFolders
from tasks.generating.parallel import Rank, SharedClip, generate_with_ray, is_guided
from tasks.running.errors import StepError

pytestmark = [pytest.mark.ray, pytest.mark.slow]
REQUEST = GenerationRequest(
    height=64, width=64, num_latent_frames=3, num_inference_steps=1, video_num_inference_steps=2, guidance_scale=3
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip to make, by models with random weights."""
    import torch

    from pyramid_model.dit.miniflux import MiniFlux
    from pyramid_model.text import build_tiny_text_encoder
    from pyramid_model.vae.autoencoder import CausalVideoVAE
    from pyramid_model.weights.weights import save_dit, save_vae

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
    norm = LatentNorm(first_shift=0, first_scale=1, rest_shift=0, rest_scale=1)
    save_vae(
        CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack, latent_norm=norm)), folder / "vae"
    )
    sizes = {"latent_channels": 4, "num_heads": 4, "head_dim": 8, "text_dim": 16, "pooled_dim": 16}
    dit = MiniFlux(MiniFluxConfig(**sizes, num_double_blocks=1, num_single_blocks=1, rope_axes=(2, 2, 4)))
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    save_dit(dit, folder / "dit")
    build_tiny_text_encoder(["a lake at dawn", "a street at night"], folder / "text", dim=16)
    models = ModelFolders(dit=str(folder / "dit"), vae=str(folder / "vae"), encoder=str(folder / "text"))
    return SharedClip(
        models=models, prompt="a lake at dawn", uri=str(folder / "clip.mp4"), request=REQUEST, num_ranks=2
    )


@pytest.fixture(scope="module")
def alone(clip):
    """Makes a clip in this process."""

    def alone(**changes):
        changed = SharedClip(**clip.model_dump() | changes | {"uri": clip.uri.replace("clip.mp4", "alone.mp4")})
        Rank(clip.models, "cpu").generate(changed, writes=True)
        return frames(changed.uri)

    return alone


@pytest.fixture(scope="module")
def expected(alone):
    """The clip that one process makes, as a player shows it."""
    return alone()


def frames(uri):
    from pyramid_model.video.video import read_clip

    return read_clip(uri, height=64, width=64).astype(int)


def difference(a, b):
    """Mean over all values. A last digit that rounds differently moves some by a few grey levels: the file is lossy."""
    return np.abs(a - b).mean()


def test_two_processes_of_torchrun_that_share_guidance_make_the_clip_of_one(clip, expected):
    clip = SharedClip(**clip.model_dump() | {"uri": clip.uri.replace("clip.mp4", "torchrun.mp4")})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tasks.generating.parallel", clip.model_dump_json()],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["uri"] == clip.uri
    assert difference(frames(clip.uri), expected) < 0.1


def test_another_prompt_is_further_away_than_that(alone, expected):
    assert difference(alone(prompt="a street at night"), expected) > 1


def test_two_ray_actors_that_share_the_tokens_make_the_clips_of_one(ray_local, clip, alone):
    unguided = REQUEST.model_copy(update={"video_guidance_scale": 1.0})
    seeds = (0, 1)
    clips = [
        SharedClip(
            **clip.model_dump() | {"request": unguided, "seed": seed, "uri": clip.uri.replace("clip", f"{seed}")}
        )
        for seed in seeds
    ]
    assert len(generate_with_ray(clips)) == 2
    for made, seed in zip(clips, seeds, strict=True):
        assert difference(frames(made.uri), alone(request=unguided, seed=seed)) < 0.1


def test_a_cluster_that_is_too_small_is_told_at_once(ray_local, clip):
    with pytest.raises(StepError, match=r"99 ranks of 1 CPUs need 99 and the cluster has 2: lower num_ranks"):
        generate_with_ray([SharedClip(**clip.model_dump() | {"num_ranks": 99})])


def test_the_guidance_of_most_frames_decides_whether_ranks_share_it():
    assert is_guided(REQUEST)
    assert not is_guided(GenerationRequest(video_guidance_scale=1))
    assert is_guided(GenerationRequest(video_guidance_scale=1, num_latent_frames=1))
