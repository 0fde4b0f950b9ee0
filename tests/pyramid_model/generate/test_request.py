"""Facts about requests: what models can make, defaults, and what is written down."""

import pytest

from pyramid_model.config import PyramidConfig, VAEConfig
from pyramid_model.generate.request import GenerationRequest


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


def test_an_empty_negative_prompt_is_kept_when_a_request_is_written_down():
    used = GenerationRequest(guidance_falloff=0.5, negative_prompt="")
    assert used.model_dump()["negative_prompt"] == ""
    assert GenerationRequest.model_validate(used.model_dump()) == used
