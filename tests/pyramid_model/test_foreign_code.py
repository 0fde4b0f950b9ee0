"""A folder from elsewhere brings code with its weights: the code is not run, and the message does not advise it."""

import json
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyramid_model.captioning.question import Decoding
from pyramid_model.captioning.vision_model import VisionModel
from pyramid_model.metrics.classifier import ImageClassifier
from pyramid_model.metrics.open_clip_model import OpenCLIP
from pyramid_model.text import load_text_encoder

REFUSED = "such code is never run"


def with_code(folder: Path) -> Path:
    """A folder whose every class is in `evil.py`, which writes the file `ran` when it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass P: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoModelForImageTextToText")
    classes = {
        **dict.fromkeys((*names, "AutoImageProcessor", "AutoProcessor"), "evil.P"),
        "AutoTokenizer": ["evil.P", None],
    }
    labels = {"id2label": {"0": "nsfw"}, "model_type": "evil", "architectures": ["P"]}
    kinds = {"image_processor_type": "P", "processor_class": "P", "tokenizer_class": "P"}
    for name in ("config", "preprocessor_config", "processor_config", "tokenizer_config"):
        (folder / f"{name}.json").write_text(json.dumps({**labels, **kinds, "auto_map": classes}))
    return folder


@pytest.fixture
def yes_on_a_terminal(monkeypatch):
    """Standard input is a terminal on which somebody answers every question with y."""
    ours, theirs = pty.openpty()
    with open(ours, "wb", buffering=0) as answers, open(theirs) as terminal:
        answers.write(b"y\n" * 20)
        monkeypatch.setattr(sys, "stdin", terminal)
        yield


LOADERS: dict[str, Callable[[Path], object]] = {
    "classifier": lambda folder: ImageClassifier(folder, "nsfw"),
    "vision model": lambda folder: VisionModel(folder, Decoding(), dtype=torch.float32),
    "text encoder": lambda folder: load_text_encoder(folder),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_transformers_is_told_not_to_run_it(kind, tmp_path, yes_on_a_terminal):
    folder = with_code(tmp_path / "model")
    with pytest.raises(ValueError, match=REFUSED) as caught:
        LOADERS[kind](folder)
    assert "trust_remote_code" not in str(caught.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer that is allowed to", "text model"])
def test_open_clip_passes_nothing_to_transformers_that_runs_it(part, tmp_path, write_open_clip, yes_on_a_terminal):
    folder = with_code(write_open_clip(tmp_path / "clip"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    of_text = config["model_cfg"]["text_cfg"]
    if part == "text model":
        of_text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    else:
        of_text |= {"hf_tokenizer_name": "any"}
        of_text |= {"tokenizer_kwargs": {"trust_remote_code": True}} if "allowed" in part else {}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds no CLIP model") as caught:
        OpenCLIP(folder, with_text=True)
    assert "trust_remote_code" not in str(caught.value)
    assert not (folder / "ran").exists()
