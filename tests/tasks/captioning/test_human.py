"""Facts about captions that people wrote: spans of files, matched with clips."""

import pytest

from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.captioning.human import Span, best_caption, read_sidecar
from tasks.running.errors import StepError

SPANS = [Span(0.0, 2.0, "first"), Span(2.0, 5.0, "second")]


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [(0.1, 1.9, ("first", 1.0)), (1.5, 3.5, ("second", 0.75)), (4.0, 8.0, ("second", 0.25)), (6.0, 7.0, ("", 0.0))],
)
def test_the_caption_that_covers_most_of_a_clip_is_taken(start_s, end_s, expected):
    assert best_caption(SPANS, start_s, end_s) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,start,text\n", "lacks the columns"),
        ("file,start_s,end_s,text\na.mp4,zero,1,x\n", "line 2"),
        ("file,start_s,end_s,text\na.mp4,1.2,0,A cat\n", r"line 2: start_s 1.2 is not before end_s 0"),
        ("file,start_s,end_s,text\na.mp4,0,1.2,A cat, a dog\n", r"line 2: it has more cells than the first line"),
        ("file,start_s,end_s,text\na.mp4,nan,1,A cat\n", "line 2: start_s nan is not before end_s 1"),
        ('file,start_s,end_s,text\na.mp4,0,1,"A cat\n', r"line \d: unexpected end of data"),
        ("file,start_s,end_s,text\na.mp4,0,1,caf\udce9\n", r"captions\.csv, line 2: it is not UTF-8"),
    ],
)
def test_a_wrong_caption_file_is_named_with_its_line(tmp_path, content, message):
    file = tmp_path / "captions.csv"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(StepError, match=message):
        read_sidecar(str(file))


def test_lines_may_end_as_on_any_system(tmp_path):
    for ending in ("\n", "\r\n", "\r"):
        (tmp_path / "captions.csv").write_bytes(
            ending.join(["file,start_s,end_s,text", "a.mp4,0,1.2,A cat", ""]).encode()
        )
        assert read_sidecar(str(tmp_path / "captions.csv")) == {"a.mp4": [Span(0.0, 1.2, "A cat")]}


def test_a_caption_file_that_is_named_and_missing_stops_the_step(squares):
    with pytest.raises(StepError, match=r"there is no caption file .*captions\.sidecar"):
        captions(squares, CaptionsConfig(sidecar="/nowhere/captions.csv"))
