"""Sampling of the frames of a clip that a vision-language model gets."""

import numpy as np

from pyramid_model.captioning.question import FrameSampling
from pyramid_model.video.video import read_clip


def sampled_frames(
    uri: str, sampling: FrameSampling, *, height: int, width: int, num_frames: int, fps: float
) -> tuple[np.ndarray, float]:
    """Read the frames of one of our clips that `sampling` selects.

    Args:
        uri: path or URI of the clip.
        sampling: number and size of the frames.
        height, width: of the clip, px.
        num_frames: of the whole clip.
        fps: of the clip.

    Returns:
        (frames, fps): uint8 RGB (t h w 3), and their frame rate.

    Raises:
        VideoError: the file is missing or cannot be read.
    """
    count = sampling.count(num_frames, fps)
    sampled_fps = count / (num_frames / fps)
    sampled_height, sampled_width = sampling.size(height, width)
    start_s = max(0.0, (0.5 / sampled_fps) - (0.5 / fps))  # middle of the first part; a frame is displayed for 1/fps
    frames = read_clip(
        uri, height=sampled_height, width=sampled_width, fps=sampled_fps, num_frames=count, start_s=start_s
    )
    return frames, sampled_fps
