"""The short pages that Prefect shows beside a run."""

import base64

import numpy as np

from pyramid_model.video.video import write_image
from tasks.report.media import MediaBudget
from tasks.report.previews import curation_page, frames_of


def test_a_generated_picture_is_shown_like_a_clip(tmp_path):

    uri = str(tmp_path / "dog.png")
    write_image(uri, np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8))
    assert [frame.shape for frame in frames_of(uri, 4)] == [(72, 128, 3)]
    data = base64.b64decode(MediaBudget(10**7).video(uri).removeprefix("data:video/mp4;base64,"))
    assert data[4:8] == b"ftyp"
    assert frames_of(str(tmp_path / "gone.png"), 4) == []


def test_the_page_beside_a_run_says_what_was_lost_where_and_shows_kept_clips(whole_root):

    page = curation_page(whole_root)
    for line in ("# 5 of 6 clips kept", "| clips | 6 |", "| after motion | 5 | -1 |", "| motion | 1 | 1 | 1 |"):
        assert line in page
    assert page.count("data:image/svg+xml;base64,") == 3  # length, motion, sharpness
    assert "data:image/jpeg;base64," in page
