"""Facts about batches whose prompts arrive encoded, on tiny models (five seconds)."""

import numpy as np
import pytest
import torch

from pyramid_model.config import LatentNorm, PyramidConfig, VAEConfig
from pyramid_model.generate.batch import ClipBatch, PromptFeatures
from pyramid_model.generate.pipeline import VideoPipeline
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.text import TextFeatures

PYRAMID = PyramidConfig(num_stages=2)


REQUEST = GenerationRequest(
    height=32, width=64, num_latent_frames=3, num_inference_steps=2, video_num_inference_steps=(1, 2), guidance_scale=3
)


@pytest.fixture
def pipeline(dit, tiny_vae):
    """Models without a text encoder: every batch brings the features of its prompts."""
    norm = LatentNorm(first_shift=0.1, first_scale=0.5, rest_shift=-0.2, rest_scale=0.4)
    tiny_vae.config = VAEConfig.model_validate(tiny_vae.config.model_dump() | {"latent_norm": norm})
    return VideoPipeline(dit, tiny_vae, pyramid=PYRAMID, device="cpu")


def row(text: TextFeatures, i: int) -> TextFeatures:
    return TextFeatures(text.embeds[i : i + 1], text.mask[i : i + 1], text.pooled[i : i + 1])


def batch(cond: TextFeatures, uncond: TextFeatures, seeds: list[int]) -> ClipBatch:
    features = PromptFeatures(cond, uncond)
    return ClipBatch(["a dog"] * len(seeds), REQUEST, seeds, features=features)


def test_clips_have_the_size_and_length_that_was_asked_for(pipeline, text_rows):
    units = []
    made = pipeline.generate(batch(text_rows(2), row(text_rows(3), 2), [0, 1]), lambda *done: units.append(done))
    assert [video.shape for video in made.videos] == [(17, 32, 64, 3)] * 2
    assert all(video.dtype == np.uint8 for video in made.videos)
    assert units == [(1, 3), (2, 3), (3, 3)]
    assert set(made.timings) == {"text_s", "sample_s", "decode_s"}


def test_a_clip_depends_on_its_text_and_seed_alone(pipeline, text_rows):
    text, null = text_rows(3), row(text_rows(4), 3)
    together = pipeline.generate(batch(text, null, [5, 6, 7]))
    alone = pipeline.generate(batch(row(text, 1), null, [6]))
    torch.testing.assert_close(alone.latents[0], together.latents[1], atol=1e-4, rtol=1e-4)
    assert np.abs(alone.videos[0].astype(int) - together.videos[1]).max() <= 1


def test_another_seed_gives_another_clip(pipeline, text_rows):
    text, null = text_rows(1), row(text_rows(2), 1)
    a, b = (pipeline.generate(batch(text, null, [seed])).latents for seed in (0, 1))
    assert not torch.allclose(a, b)


def test_a_vae_without_latent_norm_is_refused(tiny_dit, tiny_vae):
    with pytest.raises(ValueError, match="latent_norm"):
        VideoPipeline(tiny_dit, tiny_vae, device="cpu")
