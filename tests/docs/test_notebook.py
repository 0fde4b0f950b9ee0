"""docs/first_steps.ipynb runs from top to bottom and is committed without outputs. One to two minutes on idle cores."""

import copy
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

REPO = Path(__file__).parents[2]
NOTEBOOK = REPO / "docs" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count]


def test_notebook_stops_with_advice_when_its_run_fails(notebook, tmp_path, monkeypatch):
    failing = tmp_path / "bin" / "pyramid"
    failing.parent.mkdir()
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PYRAMID_EXAMPLE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("PATH", str(failing.parent), prepend=os.pathsep)
    start = copy.deepcopy(notebook)
    first = next(number for number, cell in enumerate(start.cells) if cell.cell_type == "code")
    start.cells = start.cells[: first + 1]
    client = NotebookClient(start, timeout=60, kernel_name="python3", resources={"metadata": {"path": REPO}})
    with pytest.raises(CellExecutionError, match="pyramid run smoke failed"):
        client.execute()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.server
@pytest.mark.timeout(600)
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    """On a root that it makes itself, as for a newcomer who has none."""
    monkeypatch.setenv("PYRAMID_EXAMPLE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    done = NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": REPO}}
    ).execute()
    pictures = [
        output for cell in done.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3, "the clip, its reconstruction, the generated clip"
