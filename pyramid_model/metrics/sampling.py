"""Sampling of a few frames of a clip as input of a model."""

import numpy as np

from pyramid_model.video.video import read_clip


def spread_frames(
    uri: str, *, height: int, width: int, num_frames: int, fps: float, num_wanted: int, shorter_side: int
) -> np.ndarray:
    """Frames in the middles of equal parts of a clip, not cropped.

    Args:
        uri: path or fsspec URI of one of our clips.
        height, width: of the clip, px.
        num_frames: of the clip.
        fps: mean frame rate of the clip.
        num_wanted: number of parts; a clip with fewer frames gives all of its frames.
        shorter_side: shorter side of the result in px, aspect ratio unchanged; smaller clips are not scaled.

    Returns:
        uint8 RGB, (t h w c).

    Raises:
        ValueError: the file has fewer frames than `num_frames`.
        VideoError: the file is missing or cannot be read.
    """
    scale = min(1.0, shorter_side / min(height, width))
    count = min(num_wanted, num_frames)
    part_s = num_frames / fps / count
    size = {"height": max(1, round(height * scale)), "width": max(1, round(width * scale))}
    return read_clip(uri, **size, fps=1 / part_s, num_frames=count, start_s=part_s / 2)
