"""The few frames of a clip that a model looks at."""

import numpy as np

from pyramid_model.video.video import read_clip


def spread_frames(
    uri: str, *, height: int, width: int, num_frames: int, fps: float, num_wanted: int, shorter_side: int
) -> np.ndarray:
    """Frames of a clip from the middles of equal parts of it, with the whole picture.

    Args:
        uri: path or fsspec URI of a clip that we wrote.
        height: of the clip, px; the same for `width`.
        num_frames: of the clip.
        fps: its mean frame rate.
        num_wanted: how many parts; a clip of fewer frames gives all of them.
        shorter_side: px to which height and width are scaled down, aspect kept; a smaller clip stays as it is.

    Returns:
        uint8 RGB, (t h w c).

    Raises:
        ValueError: the file has fewer frames than `num_frames`.
        VideoError: the file is missing or is no clip of ours.
    """
    scale = min(1.0, shorter_side / min(height, width))
    count = min(num_wanted, num_frames)
    part_s = num_frames / fps / count
    size = {"height": max(1, round(height * scale)), "width": max(1, round(width * scale))}
    return read_clip(uri, **size, fps=1 / part_s, num_frames=count, start_s=part_s / 2)
