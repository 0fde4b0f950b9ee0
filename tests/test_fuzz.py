"""Whatever a stranger writes into a file or a caption, the readers give a value or say in a sentence what is wrong.

About 30 s. More examples: HYPOTHESIS_EXAMPLES=5000 uv run pytest tests/test_fuzz.py
"""

# ruff: noqa: PT017 (an error is one of two right results)

import io
import json
import os
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.cli.console import PlainConsole
from flows.cli.manifest_view import grid
from pyramid_model.captioning.quality import judge
from tasks.captioning.human import read_sidecar
from tasks.running.errors import StepError
from tasks.sources.archives import Member, members
from tasks.sources.card import SourceCard, read_card
from tasks.sources.list_formats import BadEntry, Entry
from tasks.sources.listing import source_files
from tasks.sources.lists import list_kind, read_list
from tasks.tables.appending import append_block
from tasks.tables.delta import TableError, read_table
from tasks.tables.manifest import OPERATORS, filter_expression, parse_filter
from tasks.tables.plain_text import cut, markdown, shown, spreadsheet_cell, visible
from tasks.tables.rows import Lineage, bad_row, ok_row
from tasks.tables.schemas import SCHEMAS
from tasks.tables.url_secrets import text_without_secrets, without_secrets

FUZZ = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(max_size=200)
CELL = st.one_of(
    TEXT,
    st.sampled_from(
        ["", "=1", "a.mp4", "/etc/passwd", "http://[::1", "zip://x::y", "[['0:00:01', '0:00:02']]", "9" * 400]
    ),
)
HEADERS = [
    "path",
    "uri,text",
    "path,start_s,end_s,text",
    "video,caption",
    "videoID,url,timestamp,caption",
    "path\ttext",
]
KEYS = st.sampled_from(["path", "uri", "text", "start_s", "end_s", "sha256", "md5", "videoID", "timestamp", "caption"])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**300, 10**400), st.floats(), CELL),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def check_list(path, kind: str) -> None:
    try:
        entries = list(read_list(str(path), kind)[1])
    except ValueError as err:
        assert str(path) in str(err)
        assert len(str(err)) < 5000
        return
    assert all(isinstance(entry, Entry | BadEntry) for entry in entries)
    try:
        files = source_files(str(path), "/elsewhere").files
    except ValueError:
        return
    assert all(len(file.error) < 10_000 for file in files)


@FUZZ
@given(data=st.binary(max_size=400), kind=st.sampled_from(["txt", "csv", "tsv", "jsonl"]))
def test_any_bytes_as_a_list(tmp_path, data, kind):
    path = tmp_path / f"list.{kind}"
    path.write_bytes(data)
    assert list_kind(str(path)) in ("", "txt", "csv", "tsv", "jsonl", "tar", "parquet")
    check_list(path, kind)


@FUZZ
@given(header=st.sampled_from(HEADERS), rows=st.lists(st.lists(CELL, max_size=5), max_size=4))
def test_any_cells_of_a_csv_list(tmp_path, header, rows):
    path = tmp_path / "list.csv"
    text = header + "\n" + "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    check_list(path, "csv")


@FUZZ
@given(rows=st.lists(st.dictionaries(KEYS, JSON, max_size=5), max_size=4))
def test_any_values_of_json_lines(tmp_path, rows):
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_list(path, "jsonl")


CARD_KEYS = st.sampled_from([*SourceCard.model_fields, "path", "split", "start_s", "cuts", "x"])
CARD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(CARD_KEYS, inner, max_size=4)),
    max_leaves=8,
)


@FUZZ
@given(text=st.one_of(st.binary(max_size=300), CARD.map(lambda value: json.dumps(value).encode())))
def test_any_source_card(tmp_path, text):
    path = tmp_path / "source.yaml"
    path.write_bytes(text)
    try:
        assert isinstance(read_card(str(path)), SourceCard)
    except ValueError as err:
        assert str(err).startswith(str(path))
        assert len(str(err)) < 10_000


def shard() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in {"a.mp4": b"x" * 700, "a.json": b'{"caption": "A cat."}', "b" * 120 + ".mp4": b"y"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


SHARD = shard()


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, len(SHARD) - 1), st.binary(min_size=1, max_size=12)), max_size=4))
def test_any_damage_of_an_archive(tmp_path, changes):
    data = bytearray(SHARD)
    for place, new in changes:
        data[place : place + len(new)] = new
    for start in range(0, len(data) - 511, 512):  # with the right checksum, so that the damage is read
        if any(start <= place < start + 512 for place, _ in changes) and data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(data[start : start + 512]))[0]
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    try:
        assert all(isinstance(member, Member) for member in members(str(path)))
    except ValueError as err:
        assert str(path) in str(err)


@FUZZ
@given(
    text=st.one_of(
        TEXT,
        st.tuples(
            st.sampled_from(SCHEMAS["clips"].names + SCHEMAS["scores"].names), st.sampled_from(list(OPERATORS)), CELL
        ).map("".join),
    )
)
def test_any_filter(text):
    for table in ("clips", "scores", "models", "evaluations"):
        try:
            filter_expression([parse_filter(text)], SCHEMAS[table])
        except TableError as err:
            assert len(str(err)) < 5000


@FUZZ
@given(text=TEXT)
def test_any_answer_of_a_vision_model(text):
    judge(answer_of(text))


def answer_of(text: str):
    from pyramid_model.captioning.question import Answer

    return Answer(text=text)


@FUZZ
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.lists(st.lists(CELL, max_size=4), max_size=4).map(
            lambda rows: ("file,start_s,end_s,text\n" + "".join(",".join(row) + "\n" for row in rows)).encode(
                "utf-8", "replace"
            )
        ),
    )
)
def test_any_caption_file(tmp_path, data):
    path = tmp_path / "captions.csv"
    path.write_bytes(data)
    try:
        read_sidecar(str(path))
    except StepError as err:
        assert str(path) in str(err)


@FUZZ
@given(text=st.text())
def test_any_text_is_shown_without_control_codes_and_without_a_loss_of_letters(text):
    out = io.StringIO()
    PlainConsole(file=out, width=100, force_terminal=True, color_system=None).print(text, grid(["a"], [[text]]))
    for line in (out.getvalue(), visible(text), markdown(text)):
        assert all(sign == "\n" or sign == "\t" or ord(sign) >= 32 for sign in line)
        assert not set("\x1b\x7f\x9b\u202e\u2066") & set(line)
    assert visible(visible(text)) == visible(text)
    assert len(shown(text)) <= 200
    assert not str(spreadsheet_cell(text)).startswith(("=", "+", "-", "@")) or spreadsheet_cell(text) == text
    without_secrets(f"http://{text}")
    text_without_secrets(f"http://{text}?sig=x")
    assert len(cut(text, 10)) <= 10


@FUZZ
@given(texts=st.lists(st.text(max_size=50), min_size=3, max_size=3))
@pytest.mark.slow
def test_any_text_in_a_row_is_read_back(tmp_path_factory, texts):
    root = str(tmp_path_factory.mktemp("fuzz") / "root")
    name, text, error = (text.encode("utf-8", "replace").decode() for text in texts)
    rows = [ok_row({}, caption_id="a", clip_id=name, text=text), bad_row({}, ("kind", error), caption_id="b")]
    append_block(root, "captions", rows, "block", Lineage("r", "s", "1", "p", "x"))
    first, second = read_table(root, "captions").sort_by("caption_id").to_pylist()
    assert (first["clip_id"], first["text"]) == (name, text)
    assert second["error"] == cut(visible(text_without_secrets(error)))
