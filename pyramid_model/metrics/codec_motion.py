"""Motion of an encoded clip by the motion vectors in its stream, without decoding pixels."""

from typing import Any

import numpy as np

CELLS = 3  # the frame is divided into CELLS x CELLS


def codec_motion(uri: str, fps: float) -> tuple[float | None, float | None]:
    """Mean length of the motion vectors of one of our clips: of the whole frame, and of the ninth with least motion.

    Vectors are weighted by the area of their block; intra-coded blocks have none and are not counted. Vectors are
    assumed to refer to the previous frame, which is true for x264's presets up to veryfast.

    Args:
        uri: path or fsspec URI.
        fps: frames per second of the clip.

    Returns:
        (mean, least mean of a ninth), in longer sides of the frame per second, so both are independent of size and
        frame rate. 0 for a still; None for a clip of one frame or without vectors.

    Raises:
        VideoError: the file is missing or cannot be read.

    Source: the motion filter of NeMo Curator (global mean and least mean of a patch), made independent of size and
        frame rate.
    """
    from pyramid_model.video.video import open_clip  # needs PyAV, which the names of scorers do not need

    lengths, areas = np.zeros(CELLS**2), np.zeros(CELLS**2)
    with open_clip(uri) as (container, stream):
        context = stream.codec_context
        context.thread_count = 1
        # Only vectors are needed, so the deblocking filter and the residual are skipped.
        context.options = {"flags2": "+export_mvs", "skip_loop_filter": "all", "skip_idct": "all"}
        height, width = stream.height, stream.width
        for frame in container.decode(stream):
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None:
                _add(vectors.to_ndarray(), height, width, lengths, areas)
    if not areas.any():
        return None, None
    speeds = lengths / np.maximum(areas, 1) * fps / max(height, width)
    overall = lengths.sum() / areas.sum() * fps / max(height, width)
    return float(overall), float(speeds[areas > 0].min())


def _add(vectors: Any, height: int, width: int, lengths: np.ndarray, areas: np.ndarray) -> None:
    """Add the vectors of a frame, an array of AVMotionVector, to the sums (cells,) of lengths and areas."""
    area = vectors["w"].astype(np.float64) * vectors["h"]
    length = np.hypot(vectors["motion_x"], vectors["motion_y"]) / np.maximum(vectors["motion_scale"], 1)
    column = np.clip(vectors["dst_x"].astype(int) * CELLS // width, 0, CELLS - 1)
    row = np.clip(vectors["dst_y"].astype(int) * CELLS // height, 0, CELLS - 1)
    cell = row * CELLS + column
    lengths += np.bincount(cell, area * length, CELLS**2)
    areas += np.bincount(cell, area, CELLS**2)
