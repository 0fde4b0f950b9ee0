"""The frames of a clip that a model gets."""

from pyramid_model.captioning.question import FrameSampling


def test_a_rate_gives_longer_clips_more_frames_up_to_the_number():
    sampling = FrameSampling(num_frames=8, fps=2.0)
    assert [sampling.count(frames, 24.0) for frames in (6, 24, 48, 480)] == [1, 2, 4, 8]
    assert FrameSampling(num_frames=8).count(5, 24.0) == 5


def test_sizes_keep_their_aspect_are_even_and_never_grow():
    sampling = FrameSampling(longer_side=448)
    assert sampling.size(720, 1280) == (252, 448)
    assert sampling.size(100, 60) == (100, 60)
    assert sampling.size(101, 61) == (100, 60)
