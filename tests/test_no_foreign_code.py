"""No file from elsewhere can bring code that we run: looked up in the syntax tree of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [path for room in ("pyramid_model", "tasks", "flows", "benchmarks") for path in (ROOT / room).rglob("*.py")]
OURS = ("VideoPipeline", "cls")  # classes of this package that have a `from_pretrained`
FORBIDDEN = ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec", "numpy.load", "np.load")
ALLOWED = {"tasks/tables/yaml_text.py": ("yaml.load",)}  # with a safe loader of its own


def all_calls() -> list:
    calls = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                calls.append((str(path.relative_to(ROOT)), ast.unparse(node.func), node))
    return calls


CALLS = all_calls()


def keyword(node: ast.Call, name: str) -> object:
    return next((ast.unparse(word.value) for word in node.keywords if word.arg == name), None)


@pytest.mark.parametrize("name", ["from_pretrained", "from_config", "pipeline"])
def test_transformers_never_runs_code_of_a_folder(name):
    for path, called, node in CALLS:
        owner, _, method = called.rpartition(".")
        if method == name and not owner.endswith(OURS):
            assert keyword(node, "trust_remote_code") == "False", f"{path}:{node.lineno}: {called}"


def test_torch_load_reads_weights_only():
    loads = [(path, node) for path, called, node in CALLS if called in ("torch.load", "load") and "torch" in called]
    assert loads
    for path, node in loads:
        assert keyword(node, "weights_only") == "True", f"{path}:{node.lineno}"


def test_no_pickle_no_eval_and_no_unsafe_yaml():
    for path, called, node in CALLS:
        assert called not in FORBIDDEN or called in ALLOWED.get(path, ()), f"{path}:{node.lineno}: {called}"
        assert keyword(node, "allow_pickle") in (None, "False"), f"{path}:{node.lineno}"
        assert keyword(node, "shell") in (None, "False"), f"{path}:{node.lineno}"
