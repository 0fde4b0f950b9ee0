"""The shape of the tree: who may import whom, what is packaged, what a folder may hold. Runs in about 5 s."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "pyramid_model")
MACHINE_PATH = re.compile(rb"(?<![\w.$}/-])(?:/work|/root|/home/\w+|/Users/\w+|[A-Z]:\\Users)[/\\]")


def tracked_files() -> list[Path]:
    """Files that git knows, or every file of an unpacked archive."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=False)
    if listed.returncode == 0:
        return [path for name in listed.stdout.decode().split("\0") if name and (path := REPO / name).is_file()]
    return [path for path in REPO.rglob("*") if path.is_file() and ".venv" not in path.parts]


def test_imports_point_one_way():
    # Not in this process: it would switch off every logger that is there already.
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=REPO, check=False)
    assert done.returncode == 0, "run `uv run lint-imports` to see which import breaks which contract"


def test_no_chain_of_imports_in_tasks_is_longer_than_twelve_modules():
    """Imports inside functions and of types count too: whoever reads the first module may have to read the last."""
    files = {".".join(file.relative_to(REPO).with_suffix("").parts): file for file in (REPO / "tasks").rglob("*.py")}
    imports = {name: imported(file) & files.keys() - {name} for name, file in files.items()}

    @functools.cache
    def longest(name: str) -> tuple[str, ...]:
        return (name, *max((longest(other) for other in imports[name]), key=len, default=()))

    chain = max((longest(name) for name in files), key=len)
    assert len(chain) <= 12, " imports ".join(chain)


def imported(file: Path) -> set[str]:
    """Dotted names of what a file imports anywhere, modules and what they define."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_package_folder_is_packaged():
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())
    folders = [init.parent for package in PACKAGES for init in (REPO / package).rglob("__init__.py")]
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(
        ".".join(folder.relative_to(REPO).parts) for folder in folders
    )


def test_every_python_file_is_in_a_packaged_folder():
    loose = [
        str(file.relative_to(REPO))
        for package in PACKAGES
        for file in (REPO / package).rglob("*.py")
        if not (file.parent / "__init__.py").exists()
    ]
    assert not loose


def test_package_inits_are_empty():
    filled = [
        str(init.relative_to(REPO)) for p in PACKAGES for init in (REPO / p).rglob("__init__.py") if init.read_text()
    ]
    assert not filled


def test_no_module_is_named_like_a_dependency():
    """A file entry point puts its own folder on the path, where `ray.py` would hide Ray."""
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())
    names = {re.split(r"[\[<>=;~ ]", line)[0].replace("-", "_") for line in settings["project"]["dependencies"]}
    modules = {file.stem for package in PACKAGES for file in (REPO / package).rglob("*.py")}
    assert not modules & names


def test_datasets_folder_holds_no_python():
    assert not [str(file) for pattern in ("*.py", "*.pyc") for file in (REPO / "datasets").rglob(pattern)]


def test_import_datasets_is_hugging_faces_from_the_repository_root():
    script = "import datasets; assert datasets.load_dataset; print(datasets.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert "site-packages" in done.stdout


def test_no_file_names_a_path_of_somebodys_machine():
    named = {
        str(file.relative_to(REPO)): match.group().decode()
        for file in tracked_files()
        if file.suffix not in (".mkv", ".mp4", ".webm", ".avi", ".png", ".jpg", ".gif", ".safetensors")
        and file != Path(__file__)
        and (match := MACHINE_PATH.search(file.read_bytes()))
    }
    assert not named


@pytest.mark.parametrize("name", [".ci/run"])
def test_scripts_are_executable(name):
    assert (REPO / name).stat().st_mode & 0o111


def modules() -> list[Path]:
    """Every module of our packages but the empty ones."""
    return [file for package in PACKAGES for file in (REPO / package).rglob("*.py") if file.name != "__init__.py"]


def test_a_module_is_read_in_one_sitting_and_a_function_fits_on_a_screen():
    files = [*modules(), *(REPO / "tests").rglob("*.py")]
    long = {str(file.relative_to(REPO)): lines for file in files if (lines := len(file.read_text().splitlines())) > 400}
    assert not long
    functions = {
        f"{file.relative_to(REPO)}:{node.name}": node.end_lineno - node.lineno + 1
        for file in modules()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: lines for name, lines in functions.items() if lines > 60}


def test_facts_of_a_module_stand_in_the_test_file_of_its_name():
    """For three modules of five at least; the rest are seen through the step or flow that they serve."""
    with_logic = [file for file in modules() if file.name not in ("__main__.py", "config.py")]
    mirrored = [REPO / "tests" / file.relative_to(REPO).with_name(f"test_{file.name}") for file in with_logic]
    assert sum(file.exists() for file in mirrored) >= 0.6 * len(with_logic)


def test_few_values_are_untyped():
    """`Any` is for JSON and for libraries without types: at most 12 in 1000 lines of tasks."""
    text = "\n".join(file.read_text() for file in (REPO / "tasks").rglob("*.py"))
    assert len(re.findall(r"\bAny\b", text)) <= 12 * len(text.splitlines()) / 1000
