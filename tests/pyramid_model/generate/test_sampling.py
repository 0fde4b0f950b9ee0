"""Facts about what a request means for the sampler."""

from pyramid_model.generate.request import GenerationRequest
from pyramid_model.generate.sampling import guidance


def test_guidance_may_differ_for_the_first_frame_or_fall_unit_by_unit():
    assert guidance(GenerationRequest(guidance_scale=7, video_guidance_scale=5), 3) == [7, 5, 5]
    assert guidance(GenerationRequest(guidance_scale=7, guidance_falloff=2.5), 4) == [7, 4.5, 2, 2]
