"""Codecs: each is tried, and a missing one is named."""

import pytest

from tasks.doctor.media import CODECS, check_codec


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec[0])
def test_every_codec_of_the_list_decodes_here(codec):
    check = check_codec(*codec)
    assert (check.status, check.facts.split(";")[0].split(" (")[0]) in {
        ("ok", "decodes"),
        ("ok", f"decoder {codec[2]} is installed"),
    }


def test_missing_codecs_are_named():
    assert "no decoder nonsense" in check_codec("av1", "libsvtav1", "nonsense", False).facts
    assert check_codec("av1", "libsvtav1", "nonsense", False).status == "warn"
    assert check_codec("h264", "nonsense", "h264", True).status == "fail"
    assert check_codec("hevc", "nonsense", "hevc", False).status == "ok"
