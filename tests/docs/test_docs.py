"""The docs say what the code says: tables, settings, links. Runs in about 3 s."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyramid_model.metrics.scorers import SCORERS
from tasks.tables.schemas import COMMON, SCHEMAS

REPO = Path(__file__).parents[2]
PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("*/README.md"), *REPO.glob("datasets/*/*.md")])


def table_sections() -> dict[str, str]:
    """Heading -> text of the sections of docs/tables.md that describe a table."""
    text = (REPO / "docs" / "tables.md").read_text()
    parts = re.split(r"^## `(\w+)`$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def columns_described(section: str) -> set[str]:
    """Names in backticks in the first cell of each line of a table."""
    return {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }


def test_every_table_is_described():
    assert list(table_sections()) == list(SCHEMAS)


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_is_described_and_no_other(table):
    assert columns_described(table_sections()[table]) == set(SCHEMAS[table].names) - set(COMMON)


def test_every_scorer_without_a_model_is_described():
    assert set(SCORERS) <= columns_described((REPO / "docs" / "scores.md").read_text())


def test_tables_of_scorers_are_up_to_date():
    """docs/write_scores.py writes those of docs/scores.md and docs/model_scores.md from the scorers' records."""
    checked = subprocess.run(
        [sys.executable, str(REPO / "docs" / "write_scores.py"), "--check"], cwd=REPO, capture_output=True, text=True
    )
    assert checked.returncode == 0, f"run `uv run python docs/write_scores.py` ({checked.stderr.strip()})"


def test_common_columns_are_described():
    text = (REPO / "docs" / "tables.md").read_text()
    section = text.partition("## Columns that every table has")[2].partition("\n## ")[0]
    assert columns_described(section) == set(COMMON)


def test_list_of_settings_is_up_to_date():
    """docs/settings.md is written by docs/write_settings.py from the configs themselves."""
    written = subprocess.run(
        [sys.executable, str(REPO / "docs" / "write_settings.py"), "--stdout"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (REPO / "docs" / "settings.md").read_text() == written, "run `uv run python docs/write_settings.py`"


def test_messages_in_the_docs_are_the_codes_own():
    """What docs/troubleshooting.md quotes from us, cut at each ellipsis, stands in the source."""
    text = (REPO / "docs" / "troubleshooting.md").read_text()
    section = text.partition("## Messages")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    files = [file for package in ("flows", "tasks", "pyramid_model") for file in (REPO / package).rglob("*.py")]
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    quoted = [
        part.strip(" .") for cell in cells for quote in re.findall(r"`([^`]+)`", cell) for part in quote.split("…")
    ]
    assert quoted
    assert not [part for part in quoted if part and part != "No space left on device" and part not in source]


def test_every_field_failure_is_listed_with_tests_that_exist_or_a_reason():
    lines = (REPO / "docs" / "field_failures.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| \d", line)]
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    for number, _, here, tests in rows:
        assert tests or here.startswith("cannot occur: "), number
        file = ""
        for name, test in re.findall(r"`([\w.…]+)::(\w+)", tests):
            file = file if name == "…" else name
            files = [path for path in (REPO / "tests").rglob(file) if f"def {test}(" in path.read_text()]
            # Two files of one name in two folders: the test is in one of them.
            assert len(files) == 1, f"{number}: {file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


# Commands of README.md and the file that runs them: a test, or CI itself. All words but the program stand in the file.
RUN_BY = {
    "pip install uv": ".ci/run",
    "uv run pytest": ".ci/run",
    "uv run pyramid": "tests/flows/test_end_to_end.py::test_commands_of_the_readme_run",
    "prefect work-pool create local-process --type process": "tests/flows/conftest.py::prefect_worker",
    "prefect deploy --all": "tests/flows/conftest.py::prefect_worker",
    "prefect worker start --pool local-process": "tests/flows/conftest.py::prefect_worker",
}


def shell_commands(page: Path) -> list[str]:
    """Commands in the shell blocks of a page, without prompts, comments and variables that are set."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0].removeprefix("$ ") for block in blocks for line in block.splitlines()]
    commands = [command.strip() for line in lines for command in line.split("&&")]
    return [command for command in commands if command and not command.startswith(("#", "export "))]


@pytest.mark.parametrize("command", shell_commands(REPO / "README.md"))
def test_every_command_of_the_readme_is_run_by_a_test(command):
    (part,) = (
        part for part in RUN_BY if command == part or (command.startswith("uv run pyramid ") and part in command)
    )
    file, _, name = RUN_BY[part].partition("::")
    text = (REPO / file).read_text()
    assert f"def {name}(" in text or not name
    if not command.startswith("uv run pyramid "):  # that test takes its commands from the README
        assert all(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) for word in part.split()[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_modules_that_a_page_names_exist(page):
    named = re.findall(r"`((?:flows|tasks|pyramid_model|tests|docs|benchmarks)/[\w/]+\.py)`", page.read_text())
    assert not [name for name in named if not (REPO / name).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_modules_and_scripts_that_a_page_runs_exist(page):
    for command in re.findall(r"^(?:uv run )?(?:python|torchrun)\b.*$", page.read_text(), re.MULTILINE):
        if module := re.search(r" -m ([\w.]+)", command):
            assert importlib.util.find_spec(module[1]), command
        elif script := re.search(r" ([\w/]+\.py)\b", command):
            assert (REPO / script[1]).is_file(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_python_in_the_docs_defines_or_imports_every_name(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        checked = subprocess.run(
            [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--select", "E9,F", "-"],
            input=code,
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout
        for module, names in re.findall(r"^from ((?:pyramid_model|tasks)[\w.]*) import ([\w, ]+)", code, re.MULTILINE):
            assert all(hasattr(importlib.import_module(module), name) for name in names.split(", ")), module


def test_commands_in_the_docs_exist():
    """Every `pyramid <command>` that a page mentions is one of the CLI's, and so is every option after it."""
    from typer.main import get_command

    from flows.cli.main import app

    commands = get_command(app).commands
    for page in PAGES:
        for line in re.findall(r"^(?:.*&& )?(?:\$ )?(?:uv run )?(pyramid .*)$", page.read_text(), re.MULTILINE):
            words = line.partition("#")[0].split()[1:]
            command = commands.get(words[0])
            assert command is not None or words[0].startswith("-"), f"{page.name}: {line}"
            while hasattr(command, "commands") and len(words) > 1:
                words = words[1:]
                command = command.commands.get(words[0])
                assert command is not None, f"{page.name}: {line}"
            options = {option for param in getattr(command, "params", ()) for option in param.opts} | {"--help", "-h"}
            used = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
            assert used <= options, f"{page.name}: {line}"
