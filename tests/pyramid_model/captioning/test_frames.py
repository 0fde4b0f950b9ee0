"""Sampling of frames for a vision-language model."""

import numpy as np

from pyramid_model.captioning.frames import sampled_frames
from pyramid_model.captioning.question import FrameSampling
from pyramid_model.video.video import jpeg, write_video


def test_frames_come_from_the_middle_of_equal_parts_of_a_clip(tmp_path):
    shades = np.repeat(np.arange(24, dtype=np.uint8) * 10, 64 * 96 * 3).reshape(24, 64, 96, 3)
    uri = str(tmp_path / "clip.mp4")
    write_video(uri, shades, 12, crf=0)
    clip = {"height": 64, "width": 96, "num_frames": 24, "fps": 12.0}
    seen, fps = sampled_frames(uri, FrameSampling(num_frames=4, longer_side=48), **clip)
    assert (seen.shape, fps) == ((4, 32, 48, 3), 2.0)
    assert (seen.mean((1, 2, 3)) / 10).round().tolist() == [2, 8, 14, 20]
    assert sampled_frames(uri, FrameSampling(num_frames=30), **clip)[0].shape == (24, 64, 96, 3)
    assert sampled_frames(uri, FrameSampling(num_frames=30, fps=1.5), **clip)[0].shape[0] == 3
    assert jpeg(seen[0]).startswith(b"\xff\xd8")
