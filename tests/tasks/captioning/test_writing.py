"""Rows of captions from the answers of a model behind a real HTTP server."""

import json
from collections import Counter
from collections.abc import Sequence

from pyramid_model.captioning.structured import FIELDS
from tasks.inspecting.leftovers import vacuum
from tasks.tables.content_ids import content_id

CLIPS = [content_id("clip", number) for number in range(6)]
SQUARE = FIELDS | {"subject": "a red square", "action": "slides to the right"}


def in_turn(server, answers: Sequence[tuple]):
    remaining = iter(answers)
    return lambda text, times: next(remaining)


def test_another_limit_judges_kept_answers_anew_and_a_retry_asks_again(squares, chat_server, by_endpoint, written):
    written(squares, by_endpoint(chat_server, "short"))
    rows = written(squares, by_endpoint(chat_server, "short", max_repetition=0.1))
    assert {json.loads(row["quality"])["num_asked"] for row in rows} == {0}
    assert len(vacuum(squares.root, older_than_h=0)) == 0  # no caption of theirs is in the table
    rows = written(squares, by_endpoint(chat_server, "short"), attempt=2)
    assert {json.loads(row["quality"])["num_asked"] for row in rows} == {1}
    assert chat_server.requests[-1]["seed"] == chat_server.requests[0]["seed"] + 1


def test_answers_of_no_use_are_rows_with_a_reason(squares, chat_server, by_endpoint, written):
    answers = [
        chat_server.completion("I'm sorry, but I cannot describe this."),
        chat_server.completion(""),
        chat_server.completion("a square a square a square a square a square a square."),
        chat_server.completion("一个红色的方块在灰色的平面上慢慢地向右滑动。"),
        chat_server.completion("A square that goes on and", finish="length"),
        chat_server.error(400, "image too large"),
    ]
    chat_server.script = in_turn(chat_server, answers)
    rows = written(squares, by_endpoint(chat_server, "short"))
    assert {row["status"] for row in rows} == {"failed"}
    assert Counter(row["error_type"] for row in rows) == Counter(
        ["refused", "empty", "repetitive", "language", "cut", "bad_request"]
    )
    refused = next(row for row in rows if row["error_type"] == "refused")
    assert json.loads(refused["quality"])["answer"] == "I'm sorry, but I cannot describe this."
    assert refused["num_prompt_tokens"] == 100


def test_a_structured_caption_is_repaired_or_asked_for_once_more(squares, chat_server, by_endpoint, written):
    good = json.dumps(SQUARE)
    first = [f"```json\n{good[:-1]},}}\n```", good, '{"subject": "a square"}', "A red square.", good, good]
    again = [good, "still no JSON"]
    chat_server.script = in_turn(chat_server, [chat_server.completion(text) for text in first + again])
    rows = written(squares, by_endpoint(chat_server, "structured"))
    assert Counter(row["error_type"] for row in rows if row["status"] != "ok") == {"bad_json": 1}
    assert sum(json.loads(row["quality"]).get("repaired", False) for row in rows) == 1
    assert sorted(row["num_prompt_tokens"] for row in rows) == [100] * 4 + [200] * 2
    second = chat_server.text(chat_server.requests[6])
    assert "'action' is a required property" in second
    assert '{"subject": "a square"}' in second


def test_a_clip_that_is_gone_fails_and_the_others_go_on(squares, chat_server, by_endpoint, written):
    from tasks.tables import storage

    fs, path = storage.filesystem(squares.media("clips", f"{CLIPS[1]}.mp4"))
    fs.rm(path)
    rows = written(squares, by_endpoint(chat_server, ("short", "dense")))
    bad = [row for row in rows if row["status"] == "failed"]
    assert {(row["clip_id"], row["error_type"]) for row in bad} == {(CLIPS[1], "missing")}
    assert len(chat_server.requests) == 10
