"""All checks of the doctor together, and the command that prints them."""

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.doctor import doctor
from tasks.doctor.doctor import all_checks


def test_every_check_runs_here(tmp_path):
    checks = list(all_checks(str(tmp_path)))
    assert not [check for check in checks if check.name == "a check broke"]
    assert all(check.advice for check in checks if check.status != "ok")


@pytest.mark.parametrize(
    ("root", "code", "words"), [("root", 0, "can run the demo"), ("file/root", 1, "not ready: root")]
)
def test_the_command_prints_a_table_and_exits_1_when_something_is_missing(tmp_path, root, code, words):
    (tmp_path / "file").write_text("")
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, ["--root", str(tmp_path / root)])
    assert result.exit_code == code
    assert words in " ".join(result.output.split())
