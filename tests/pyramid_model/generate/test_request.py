"""From prompts to frames on tiny models (five seconds)."""

import numpy as np
import pytest
import torch

from pyramid_model.config import LatentNorm, PyramidConfig, VAEConfig
from pyramid_model.generate.batch import ClipBatch, PromptFeatures
from pyramid_model.generate.pipeline import VideoPipeline
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.generate.sampling import guidance
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 72}, r"height 72 px .* multiple of 64 .* Nearest: 64 or 128. Set request.height"),
        ({"width": 40}, r"width 40 px .* Nearest: 64. Set request.width"),
        ({"num_latent_frames": 4}, "1 plus a multiple of 2"),
        ({"num_inference_steps": (1, 2)}, "one for each of the 3 stages"),
        ({"video_num_inference_steps": 0}, "at least 1"),
    ],
)
def test_what_the_models_cannot_make_is_refused_with_what_would_be_right(change, message):
    fine = {"height": 64, "width": 128, "num_latent_frames": 3, "num_inference_steps": (1, 2, 3)}
    pyramid = PyramidConfig(frames_per_unit=2)
    GenerationRequest.model_validate(fine).check(VAEConfig(), pyramid)
    with pytest.raises(ValueError, match=message):
        GenerationRequest.model_validate(fine | change).check(VAEConfig(), pyramid)


def test_defaults_are_those_of_the_released_384p_model():
    request = GenerationRequest()
    request.check(VAEConfig(), PyramidConfig())
    assert (request.height, request.width, request.num_frames(VAEConfig())) == (384, 640, 121)


def test_fields_that_came_later_are_written_down_only_where_they_are_used():
    assert set(GenerationRequest().model_dump(mode="json")) == {
        *("height", "width", "num_latent_frames", "num_inference_steps", "video_num_inference_steps"),
        *("guidance_scale", "video_guidance_scale", "fps", "decode_window"),
    }
    used = GenerationRequest(guidance_falloff=0.5, negative_prompt="")
    assert used.model_dump()["negative_prompt"] == ""
    assert GenerationRequest.model_validate(used.model_dump()) == used


def test_guidance_may_differ_for_the_first_frame_or_fall_unit_by_unit():
    assert guidance(GenerationRequest(guidance_scale=7, video_guidance_scale=5), 3) == [7, 5, 5]
    assert guidance(GenerationRequest(guidance_scale=7, guidance_falloff=2.5), 4) == [7, 4.5, 2, 2]
