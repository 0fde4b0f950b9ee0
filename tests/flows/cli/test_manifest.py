"""`pyramid manifest` from the command line: what it prints and how it exits. About 3 s."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.manifest import app
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, bad_row, ok_row

LINEAGE = Lineage("run", "step", "1", "recipe", "code")
IDS = [content_id("caption", number) for number in range(3)]


@pytest.fixture
def root(tmp_path) -> str:
    root = str(tmp_path)
    texts = ["a hill at dusk", "a river [bold]"]
    rows = [ok_row({}, caption_id=IDS[i], kind="human", text=text) for i, text in enumerate(texts)]
    append_block(root, "captions", rows, "1", LINEAGE)
    append_block(root, "captions", [bad_row({}, ("timeout", "took 60 s"), caption_id=IDS[2])], "2", LINEAGE)
    return root


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output + result.stderr
    return result.output + result.stderr


def test_without_a_table_the_tables_are_listed(root):
    assert "captions" in (output := run("show", root))
    assert "2 ok, 1 failed" in output


def test_rows_are_shown_by_filter_and_column(root):
    output = run("show", root, "captions", "--where", "status = 'failed'", "--columns", "caption_id,error")
    assert IDS[2] in output
    assert "took 60 s" in output
    assert IDS[0] not in output


def test_text_of_users_is_not_read_as_markup(root):
    assert "a river [bold]" in run("show", root, "captions", "--columns", "text")


def test_rows_too_wide_for_the_terminal_come_one_block_a_row(root):
    output = run(
        "show", root, "captions", "--columns", "caption_id,kind,text,status,error_type,error,run_id,created_at"
    )
    assert "captions 3" in output
    assert "took 60 s" in output


def test_a_limit_is_said(root):
    assert "1 of 3 rows" in run("show", f"{root}/tables/captions", "--limit", "1", "--columns", "kind")


def test_stats_and_diff_print_counts(root):
    assert "failed timeout" in run("stats", root)
    output = run("diff", root, "captions", "1", "2")
    assert "captions 1 -> 2: 1 added, 0 removed, 0 changed status" in output
    assert IDS[2] in output


def test_a_diff_of_verdicts_and_scores_says_which_clips_and_values_moved(root):
    for number, reasons in enumerate(([], ["motion_low"])):
        verdict = {"clip_id": IDS[0], "keep": not reasons, "drop_reasons": reasons, "bucket": "", "split": "train"}
        row = ok_row({}, selection_id=content_id(number), **verdict)
        append_block(root, "selections", [row], str(number), LINEAGE)
        row = ok_row({}, score_id=content_id(number), clip_id=IDS[0], scorer="motion", value=1.0 + number)
        append_block(root, "scores", [row], str(number), LINEAGE)
    output = run("diff", root, "selections", "1", "2")
    assert "(the same settings): 1 of 1 clips kept before, 0 of 1 after" in output
    assert "newly dropped: 1 clips" in output
    assert "motion_low" in output
    assert "1.00         1   before" in run("diff", root, "scores", "1", "2")
    assert "no value of any scorer differs" in run("diff", root, "scores", "2", "2")


def test_verify_exits_1_and_says_what_to_do(root):
    append_block(root, "captions", [ok_row({}, caption_id="seven")], "3", LINEAGE)
    output = run("verify", root, code=1)
    assert "ids are 32 hex digits: 1, such as 'seven'" in output
    assert "what to do:" in output


def test_verify_of_a_whole_root_exits_0(root):
    assert "none failed" in run("verify", root)


def test_export_writes_lines_or_files(root, tmp_path):
    lines = run("export", root, "captions", "--format", "jsonl", "--columns", "text", "--where", "kind=human")
    assert [json.loads(line)["text"] for line in lines.splitlines()] == ["a hill at dusk", "a river [bold]"]
    assert "3 rows of captions" in run("export", root, "captions", "-o", str(tmp_path / "captions.csv"))
    assert len((tmp_path / "captions.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "ROOT", "clip"), "there is no table 'clip'"),
        (("show", "ROOT", "captions", "--version", "9"), "has no version 9"),
        (("show", "ROOT", "captions", "--version", "-1"), "greater than or equal to 0"),
        (("show", "ROOT/none"), "no tables under"),
        (("diff", "ROOT", "captions"), "give ROOT TABLE BEFORE AFTER"),
        (
            ("show", "ROOT", "clips-with-scores"),
            "'clips' has not been written under",
        ),
        (("show", "ROOT", "--where", "status=ok"), "--where: rows belong to one table; name it"),
        (("show", "ROOT", "--columns", "text", "--version", "0"), "--columns, --version: rows belong to one table"),
        (("export", "ROOT"), "name the table to export"),
        (("export", "ROOT", "--format", "lance"), "there is no format 'lance': csv or jsonl for rows"),
        (("export", "ROOT", "captions", "--columns", "txt"), "no column 'txt'"),
    ],
)
def test_mistakes_end_with_a_sentence_and_exit_code_2(root, arguments, message):
    assert message in run(*(part.replace("ROOT", root) for part in arguments), code=2)


@pytest.mark.parametrize(
    ("table", "writer"),
    [
        ("clips", "pyramid curate writes it"),
        ("latents", "pyramid extract writes it"),
        ("duplicates", "pyramid curate writes it"),
    ],
)
def test_a_table_that_is_not_there_yet_is_named_with_what_writes_it(root, table, writer):
    message = f"table {table!r} has not been written under {root} yet: {writer}"
    for arguments in (("show", root, table), ("stats", root, table), ("verify", root, table)):
        assert message in run(*arguments, code=2)
    assert message in run("diff", root, table, "0", "1", code=2)


@pytest.mark.parametrize("damage", ["lost", "truncated"])
def test_a_damaged_table_is_named_and_the_others_are_shown(root, damage):
    append_block(root, "sources", [ok_row({}, source_id=IDS[0], path="a.mp4")], "1", LINEAGE)
    file = next(Path(root, "tables", "captions").glob("*.parquet"))
    size = file.stat().st_size
    if damage == "lost":
        file.unlink()
        what = f"{file} is missing"
    else:
        file.write_bytes(file.read_bytes()[:100])
        what = f"{file} has 100 bytes, expected {size}"
    sentence = f"table 'captions' is damaged: {what}. To list all damage: pyramid manifest verify {root}"
    for command in ("show", "stats"):
        output = run(command, root, code=1)
        assert sentence in output
        assert "sources" in output
    assert "damaged" in run("show", root, code=1).split("table 'captions'")[0]
    assert "a.mp4" in run("show", root, "sources")
    for arguments in (("show", root, "captions"), ("diff", root, "captions", "1", "2"), ("report", root)):
        assert sentence in run(*arguments, code=2)
    assert what in run("verify", root, code=1)


def test_vacuum_lists_before_it_removes(root):
    assert "no left-over files older than 24 h" in run("vacuum", root)


@pytest.mark.parametrize("command", [("show",), ("stats",), ("show", "captions"), ("stats", "captions")])
def test_a_damaged_log_is_a_sentence_and_repair_mends_it(root, command):
    newest = Path(root, "tables", "captions", "_delta_log", f"{2:020d}.json")
    newest.write_bytes(newest.read_bytes()[:200])
    name, *table = command
    output = run(name, root, *table, code=2 if table else 1)
    assert "table 'captions' is damaged" in output.replace("\n", " ")
    assert f"{newest.name} is damaged: line" in output.replace("\n", "")
    assert "Traceback" not in output
    assert "unknown" not in output
    failed = run("verify", root, code=1)
    assert "pyramid manifest repair" in failed
    assert "nothing was changed" in run("repair", root)
    assert "1 rows that no commit names" in run("repair", root, "--apply")
    assert "2 ok, 1 failed" in run("show", root)
    assert "nothing to repair" in run("repair", root)
