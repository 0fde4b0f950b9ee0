"""Videos inside the report: small, and within a budget of bytes."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from pyramid_model.video.video import write_video
from tasks.report.media import BESIDE_TEXT, THUMBNAIL, MediaBudget, small_frames


def test_a_budget_serves_who_asks_first_and_counts_the_rest(tmp_path, moving_square):
    uri = str(tmp_path / "a.mp4")
    write_video(uri, moving_square(1), 12)
    budget = MediaBudget(len(base64.b64encode(Path(uri).read_bytes())) + 10)
    assert budget.video(uri).startswith("data:video/mp4;base64,")
    assert budget.video(uri) == ""
    assert budget.video(str(tmp_path / "none.mp4")) == ""
    assert (budget.left_out, budget.missing) == (1, 1)


def test_long_wide_clips_become_short_small_previews(tmp_path):
    uri = str(tmp_path / "a.mp4")
    frames = np.random.default_rng(0).integers(0, 255, (100, 180, 480, 3), np.uint8)
    write_video(uri, frames, 24)
    data = base64.b64decode(MediaBudget(10**7).video(uri).split(",")[1])
    frames, fps = small_frames(data, BESIDE_TEXT)
    assert (frames.shape, fps) == ((50, 96, 256, 3), 12)
    [(thumbnail, picture)] = MediaBudget(10**7).thumbnails({"a": uri, "none": str(tmp_path / "none.mp4")}).values()
    frames, fps = small_frames(base64.b64decode(thumbnail), THUMBNAIL)
    assert (frames.shape, fps) == ((24, 84, 224, 3), 8)
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (160, 60)
