"""The command line: instant help, clear refusals. Runs in 5 s."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli.launch import _check_source
from flows.cli.main import app
from tasks.sources.ingest import IngestConfig

HEAVY = ("torch", "ray", "prefect", "mlflow", "transformers", "diffusers", "av", "deltalake", "numpy", "matplotlib")
COMMANDS = (
    *("demo", "run", "curate", "recaption", "extract", "train-vae", "train-dit", "evaluate", "generate"),
    *("parity", "weights inspect", "weights export"),
)
SAMPLE = str(Path(__file__).parents[2] / "datasets" / "sample")


def pyramid(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from flows.cli.main import app\n"
        f"for args in [['--help'], *([*c.split(), '--help'] for c in {COMMANDS!r})]:\n"
        "    result = CliRunner().invoke(app, args); assert result.exit_code == 0, result.output\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(command):
    done = pyramid(*command.split(), "--help")
    assert f"Example: pyramid {command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--set", "train_dit.optim.num_step=3"], ["train_dit.optim.num_step", "train_dit.optim.num_steps"]),
        (["demo", "--set", "train_dit.optim.num_steps=many"], ["num_steps = 'many'", "integer"]),
        (["curate", "--source", SAMPLE, "--set", "ingest.source=other"], ["ingest.source is given twice", "'other'"]),
        (["generate", "x", "--seed", "7", "--set", "generate.seed=8"], ["generate.seed is given twice", "'8'"]),
        (["demo", "--ray", "cluster:6379"], ["cluster:6379", "ray.address"]),
        (["run", "smok"], ["'smok'", "smoke"]),
        (["run", "smoke", "--source", "no/such/folder"], ["no/such/folder"]),
        (["curate"], ["no videos are named", "--source"]),  # not the sample videos
        (["curate", "--source", "no/such/folder"], ["no/such/folder"]),
        (["curate", "--set", "ingest.source=no/such/folder"], ["no/such/folder"]),
        (["curate", "--source", SAMPLE, "--set", "select.preset=pretrain"], ["'aesthetic', 'nsfw'", "preset pretrain"]),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing_behind(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    done = pyramid(*arguments, "--root", str(root))
    assert done.exit_code == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not root.exists() or not any(root.iterdir())


def test_empty_source_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    done = pyramid("run", "smoke", "--source", "videos", "--root", "root")
    assert done.exit_code == 2, done.stderr
    assert str(tmp_path / "videos") in done.stderr


@pytest.mark.parametrize("name", ["logging.yml", "profiles.toml"])
def test_settings_of_prefect_that_a_root_brings_are_not_read(tmp_path, monkeypatch, name):
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ran = tmp_path / "ran"
    settings = tmp_path / "root" / "prefect" / name
    settings.parent.mkdir(parents=True)
    settings.write_text(f"version: 1\nhandlers: {{h: {{(): subprocess.getoutput, cmd: 'touch {ran}'}}}}")
    done = pyramid("curate", "--source", SAMPLE, "--root", str(tmp_path / "root"))
    assert done.exit_code == 2, done.stderr
    assert "holds settings of Prefect" in done.stderr
    assert "PREFECT_HOME" in done.stderr
    assert not ran.exists()


def test_unwritable_root_is_refused():
    done = pyramid("demo", "--root", "/proc/nowhere")
    assert done.exit_code == 2
    assert "/proc/nowhere" in done.stderr
    assert "--root" in done.stderr


def test_parity_prints_a_row_a_case_and_fails_if_one_is_not_understood(tmp_path):
    cases = Path(__file__).parents[1] / "pyramid_model" / "parity"
    shutil.copytree(cases / "renoise", tmp_path / "good")
    done = pyramid("parity", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert "good" in done.stdout
    assert "1.0e-06" in done.stdout
    assert "1 cases: 1 pass" in done.stdout
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    done = pyramid("parity", str(tmp_path))
    assert done.exit_code == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "broken" / "config.json") in done.stdout
    assert "1 pass, 1 error" in done.stdout


def test_parity_refuses_a_folder_without_cases(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        done = pyramid("parity", str(folder))
        assert done.exit_code == 2
        assert str(folder) in done.stderr


def test_a_folder_of_pictures_alone_is_a_source_where_pictures_count(tmp_path):
    (tmp_path / "one.jpg").write_bytes(b"picture")
    config = IngestConfig(source=str(tmp_path))
    with pytest.raises(ValueError, match="holds no video"):
        _check_source(config, str(tmp_path / "root"))
    _check_source(config.model_copy(update={"images": True}), str(tmp_path / "root"))
