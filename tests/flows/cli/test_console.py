"""Names from elsewhere do nothing to a terminal."""

import ast
import io
from pathlib import Path

import pytest
from rich.text import Text

from flows.cli.console import PlainConsole, echo, styled
from flows.cli.manifest_view import grid, print_rows, print_stats
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.manifest import select_rows
from tasks.tables.rows import Lineage, ok_row

HOSTILE = [
    "[/red] tiny",
    "[red]x[/red]",
    "\x1b]0;PWNED\x07\x1b[2J.mp4",
    "\u202etxt",
    ":smile:",
    "a\rb",
    "\x9b2J",
    "[link=x]y",
]
CLI = Path(__file__).parents[3] / "flows" / "cli"


def printed(*parts) -> str:
    out = io.StringIO()
    PlainConsole(file=out, width=200, force_terminal=True, color_system=None).print(*parts)
    return out.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is_without_control_characters(name):
    text = printed(name) + printed(styled(("ok", "green"), f" {name}")) + printed(grid(["a"], [[name]]))
    for part in (text, printed(Text(name))):
        assert not set("\x1b\x07\r\x9b\u202e") & set(part)
    assert text.count(name.replace("\x1b", r"\x1b").replace("\x07", r"\x07")) == 3 or not name.isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_root_with_hostile_names_can_be_looked_at(tmp_path, capsys, name):
    run = Run(root=str(tmp_path / "root"))
    line = Lineage("r", "s", "1", "p" * 32, "x")
    rows = {
        "videos": [ok_row({}, video_id=content_id("v"), uri=f"/x/{name}", path=name, source=name, license=name)],
        "captions": [ok_row({}, caption_id=content_id("a"), clip_id=content_id("c"), kind="human", text=name)],
        "scores": [ok_row({}, score_id=content_id("s"), clip_id=content_id("c"), scorer=name, value=1.0)],
    }
    for table, of_table in rows.items():
        append_block(run.root, table, of_table, table, line)
        print_rows(run.root, table, select_rows(run.root, table, [], None, None), every_column=False)
        print_stats(run.root, table, None)
    echo(name)
    assert not set("\x1b\x07\r\x9b\u202e") & set(capsys.readouterr().out)


def test_a_line_holds_no_secret_of_a_url(capsys):
    echo("http://u:PASS@h/a?sig=S is missing")
    assert capsys.readouterr().out == "http://h/a is missing\n"


def test_the_whole_cli_prints_through_this_module():
    for path in CLI.glob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert not (node.module or "").startswith("rich.markup"), path
                assert path.name == "progress.py" or not (node.module == "rich.console" and "Console" in names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "typer.secho", "Console"), f"{path}:{node.lineno}"
