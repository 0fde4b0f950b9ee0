"""Captions that a model writes: behind a real HTTP server, and by a tiny random local model. About 30 s."""

import json
from collections import Counter

import pyarrow.compute as pc
import pytest

from pyramid_model.captioning.structured import FIELDS
from pyramid_model.config import CaptionsOfKind
from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.inspecting.leftovers import vacuum
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import captions_by_kind, captions_of
from tasks.tables.delta import read_table, table_version
from tasks.tables.manifest import clips_with_scores
from tasks.tables.rows import Lineage

CLIPS = [content_id("clip", number) for number in range(6)]
SQUARE = FIELDS | {"subject": "a red square", "action": "slides to the right"}


def rows_of(run: Run, kind: str) -> dict[str, dict]:
    rows = read_table(run.root, "captions", where=pc.field("kind") == kind).to_pylist()
    return {row["clip_id"]: row for row in rows}


def as_instructed(server):
    """Answers as their instruction asks, known by words that only that instruction has."""
    plain = {"25 words": "A square slides.", "60 to 80 words": "The clip shows a square. It slides.", "anew": "Anew."}

    def script(text, times):
        if "JSON" in text:
            return server.completion(json.dumps(SQUARE))
        return server.completion(next(answer for words, answer in plain.items() if words in text))

    return script


@pytest.mark.ray
@pytest.mark.slow
def test_every_kind_is_written_and_paid_for_once(ray_local, squares, chat_server, by_endpoint, written):
    chat_server.script = as_instructed(chat_server)
    written(squares, by_endpoint(chat_server, "short"))  # answered, and killed before the rows were committed
    assert len(chat_server.requests) == 6
    kinds = ["dense", "short", "structured", "rewritten", "human"]
    config = by_endpoint(chat_server, kinds, max_concurrency=4, rewrite_from="dense")
    result = captions(squares, config)
    assert (result.num_ok, result.num_skipped, result.num_in) == (29, 1, 30)  # one clip has no human caption
    assert len(chat_server.requests) == 24
    cost = pytest.approx(24 * 0.002)  # the kept answers were paid for, too
    assert result.usage.model_dump() == {
        "num_asked": 18,
        "num_reused": 6,
        "num_prompt_tokens": 2400,
        "num_completion_tokens": 240,
        "cost_usd": cost,
    }
    assert result.note == "2400 prompt and 240 answer tokens, 0.048 USD"
    dense, rewritten = rows_of(squares, "dense")[CLIPS[0]], rows_of(squares, "rewritten")[CLIPS[0]]
    assert dense["text"] == "A square. It slides."
    assert json.loads(dense["quality"])["opening"] == "The clip shows"
    assert json.loads(dense["settings"])["frames"] == {"num_frames": 3, "fps": None, "longer_side": 448}
    assert (dense["num_prompt_tokens"], dense["cost_usd"], dense["model"]) == (100, 0.002, "tiny")
    assert (rewritten["text"], rewritten["parent_caption_id"]) == ("Anew.", dense["caption_id"])
    structured = rows_of(squares, "structured")[CLIPS[0]]
    assert json.loads(structured["json"]) == SQUARE
    assert structured["text"].startswith("A red square. Slides to the right. The place, and what else is there.")
    assert captions_of(squares.root, CLIPS, result.captions)[CLIPS[0]] == "A square. It slides."
    assert captions_of(squares.root, CLIPS) == dict.fromkeys(CLIPS, "A square. It slides.")  # the preferred kind
    texts = captions_by_kind(squares.root, CLIPS, (CaptionsOfKind(kind="short"), CaptionsOfKind(kind="human")))
    assert texts[CLIPS[3]] == {"short": "A square slides."}
    assert texts[CLIPS[0]] == {"short": "A square slides.", "human": "A red square slides to the right."}
    assert len(vacuum(squares.root, older_than_h=0, delete=True)) == 24  # answers whose captions are in the table
    chat_server.close()
    again = captions(squares, config)  # nothing new: nobody is asked
    assert (again.num_new, again.num_done, again.note) == (0, 30, "nothing new")
    with pytest.raises(StepError, match="no server answers at") as stopped:
        captions(squares, by_endpoint(chat_server, "short", max_repetition=0.1))
    assert stopped.value.transient


def test_of_several_kinds_the_preferred_good_one_is_the_newest_of_a_clip(squares, chat_server, by_endpoint, written):
    def script(text, times):
        refused = "25 words" not in text and times == 1  # the dense caption of the first clip
        return chat_server.completion("I cannot help." if refused else "Short." if "25 words" in text else "Dense.")

    chat_server.script = script
    config = by_endpoint(chat_server, ["dense", "short"])
    rows = written(squares, config)
    append_block(squares.root, "captions", rows, "block", Lineage("test", "captions", "1", "", ""))
    for _ in range(2):
        assert captions(squares, config).num_new == 0
        assert Counter(captions_of(squares.root, CLIPS).values()) == {"Dense.": 5, "Short.": 1}
    version = table_version(squares.root, "captions")
    captions(squares, config)
    assert table_version(squares.root, "captions") == version  # said once
    captions(squares, by_endpoint(chat_server, ["short", "dense"]))
    assert set(captions_of(squares.root, CLIPS).values()) == {"Short."}


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_model_writes_under_the_hash_of_its_files(ray_local, squares, write_vision_model, tmp_path):
    folder = write_vision_model(tmp_path / "vlm")
    local = {"name": str(folder), "dtype": "float32", "num_gpus": 0, "max_new_tokens": 12, "batch_size": 3}
    given = {"kind": ["short"], "language": "", "max_repetition": 1, "frames": {"num_frames": 2}}
    result = captions(squares, CaptionsConfig.model_validate(given | {"local": local}))
    rows = rows_of(squares, "short").values()
    assert result.num_ok + result.num_failed == len(rows) == 6
    assert {row["error_type"] for row in rows} <= {"", "cut"}  # random words rarely end in a full stop
    assert all(row["num_prompt_tokens"] > 100 and 0 < row["num_completion_tokens"] <= 12 for row in rows)
    (revision,) = {row["model_revision"] for row in rows}
    assert len(revision) == 32
    moved = folder.rename(tmp_path / "elsewhere")
    same = captions(squares, CaptionsConfig.model_validate(given | {"local": local | {"name": str(moved)}}))
    assert (same.num_new, same.num_done) == (0, 6)


def test_a_kind_that_a_model_writes_needs_a_model_and_is_named_once():
    with pytest.raises(ValueError, match=r"written by a model: set one of captions\.local\.name"):
        CaptionsConfig(kind="dense")
    with pytest.raises(ValueError, match="each kind once"):
        CaptionsConfig(kind=("human", "human"))


@pytest.mark.ray
def test_captions_are_what_the_present_settings_decided(ray_local, squares, tmp_path):
    sidecar = tmp_path / "halves.csv"
    sidecar.write_text("file,start_s,end_s,text\nvideo0.mp4,0,9,All of it.\nvideo1.mp4,0,0.6,Half of it.\n")
    for min_overlap, expected in ((0.3, ["All of it.", "Half of it."]), (0.9, ["All of it."])) * 2:
        result = captions(squares, CaptionsConfig(sidecar=str(sidecar), min_overlap=min_overlap))
        assert sorted(captions_of(squares.root, CLIPS).values()) == expected
        assert sorted(captions_of(squares.root, CLIPS, result.captions).values()) == expected
        assert sorted(filter(None, clips_with_scores(squares.root)["caption"].to_pylist())) == expected
    assert (result.num_new, result.note) == (0, "6 clips use captions of an earlier run again")
    again = captions(squares, CaptionsConfig(sidecar=str(sidecar), min_overlap=0.9))
    assert (again.num_new, again.note) == (0, "nothing new")
