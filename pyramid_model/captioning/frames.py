"""Which frames of a clip a vision-language model sees."""

import numpy as np

from pyramid_model.captioning.question import FrameSampling
from pyramid_model.video.video import read_clip


def sampled_frames(
    uri: str, sampling: FrameSampling, *, height: int, width: int, num_frames: int, fps: float
) -> tuple[np.ndarray, float]:
    """The frames of a clip of ours that `sampling` asks for.

    Args:
        uri: path or URI of the clip.
        sampling: which frames, and how large.
        height: px of the clip; the same for `width`.
        num_frames: of the whole clip.
        fps: of the clip.

    Returns:
        uint8 RGB (t h w 3), and how many of them there are a second.

    Raises:
        VideoError: the file is missing or is no clip of ours.
    """
    count = sampling.count(num_frames, fps)
    taken_fps = count / (num_frames / fps)
    rows, columns = sampling.size(height, width)
    start_s = (0.5 / taken_fps) - (0.5 / fps)  # a frame stands for the time up to the next one
    frames = read_clip(uri, height=rows, width=columns, fps=taken_fps, num_frames=count, start_s=max(0.0, start_s))
    return frames, taken_fps
