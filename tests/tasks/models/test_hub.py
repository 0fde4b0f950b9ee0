"""Facts about models that are fetched by name, from a Hub cache that is written here: no network."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.models.folders import folder_hash
from tasks.models.hub import SOURCE_FILE, model_folder, once_a_node
from tasks.models.score_models import open_clip_folder
from tasks.running.errors import StepError
from tasks.running.run import Run

REPO = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "weights", "README.md": "words"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a model into the cache of an offline Hub, as huggingface_hub lays it out; returns the cache."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def put(name: str, files: dict[str, str] = FILES, revision: str = "main") -> None:
        folder = cache / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(COMMIT)
        for file, text in files.items():
            path = folder / "snapshots" / COMMIT / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return put


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(root=str(tmp_path / "root"))


def test_a_model_is_copied_into_the_root_once_and_its_commit_is_recorded(hub, run, tmp_path):
    hub("owner/model", revision="v2")
    uri = model_folder(run, "text_encoder", "owner/model@v2", "text_features.encoder")
    assert uri == run.models("text_encoder-owner--model@v2")
    assert Path(uri, "model.safetensors").read_text() == "weights"
    source = yaml.safe_load(Path(uri, SOURCE_FILE).read_text())
    assert source == {"name": "owner/model", "revision": "v2", "commit": COMMIT}
    shutil.rmtree(tmp_path / "hub")
    assert model_folder(run, "text_encoder", "owner/model@v2", "text_features.encoder") == uri


def test_where_a_model_came_from_is_no_part_of_its_hash(hub, run, tmp_path):
    hub("owner/model")
    fetched = model_folder(run, "image_classifier", "owner/model", "scores.classifiers.x.model")
    local = tmp_path / "local"
    local.mkdir()
    for name, text in FILES.items():
        (local / name).write_text(text)
    assert folder_hash(run, fetched, "files") == folder_hash(run, str(local), "files")


def test_a_folder_is_taken_as_it_is(run, tmp_path):
    assert model_folder(run, "open_clip", str(tmp_path), "scores.embeddings.model") == str(tmp_path)


def test_offline_the_message_says_what_was_asked_and_how_to_give_a_folder(hub, run):
    with pytest.raises(StepError) as told:
        model_folder(run, "text_encoder", "owner/absent", "text_features.encoder")
    for part in (
        "'owner/absent'",
        "HF_HUB_OFFLINE is set",
        "Set text_features.encoder to a local folder",
        "hf download",
    ):
        assert part in str(told.value)


def test_a_tag_of_open_clip_is_fetched_like_any_model_and_its_commit_is_recorded(hub, run, tmp_path):
    repository = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    hub(repository, {"open_clip_model.safetensors": "weights"})
    uri = open_clip_folder(run, "ViT-B-32", "laion2b_s34b_b79k")
    assert Path(uri, "open_clip_pytorch_model.safetensors").read_text() == "weights"
    source = yaml.safe_load(Path(uri, SOURCE_FILE).read_text())
    assert source == {"name": repository, "revision": "", "commit": COMMIT}
    shutil.rmtree(tmp_path / "hub")
    assert open_clip_folder(run, "ViT-B-32", "laion2b_s34b_b79k") == uri


def test_offline_a_tag_of_open_clip_is_refused_like_any_model(hub, run):
    with pytest.raises(StepError, match=r"HF_HUB_OFFLINE is set.*Set scores.embeddings.pretrained to a local folder"):
        open_clip_folder(run, "ViT-B-32", "laion2b_s34b_b79k")


def test_processes_of_one_machine_take_turns(tmp_path):
    code = f"from tasks.models.hub import once_a_node\nwith once_a_node({str(tmp_path)!r}): print('in')"
    with once_a_node(str(tmp_path)):
        waiting = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=5)
    assert waiting.communicate(timeout=120)[0] == "in\n"


def test_every_call_that_loads_a_model_refuses_its_code_and_only_the_hub_module_downloads():
    loads = 0
    for path in (path for package in ("flows", "tasks", "pyramid_model") for path in (REPO / package).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert "download" not in name or path.stem == "hub", f"{path}:{call.lineno} {name}"
            if not name.endswith(".from_pretrained") or name == "VideoPipeline.from_pretrained":
                continue
            loads += 1
            said = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert said.get("trust_remote_code") == "False", f"{path}:{call.lineno} does not refuse the model's code"
            assert said.get("local_files_only") == "True", f"{path}:{call.lineno} may reach for the network"
    assert loads >= 9
