"""The averages of a checkpoint become a folder that the loaders of released models read."""

import json

import pytest
import torch

from pyramid_model.config import MiniFluxConfig, VAEConfig, VAEStackConfig
from pyramid_model.train.checkpoints import Checkpoints
from pyramid_model.train.loop import TrainState
from pyramid_model.weights.weights import load_dit, load_vae
from tasks.running.errors import StepError
from tasks.tables.current import selected_clips
from tasks.training.clip_reader import ClipReader
from tasks.training.export import _objective, export_checkpoint
from tasks.training.marks import About
from tasks.training.train_dit import TrainDiTConfig
from tasks.training.train_vae import TrainVAEConfig, save_normalised

SIZES = {"latent_channels": 4, "num_heads": 1, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}
STACK = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
CONFIGS = {
    "dit": TrainDiTConfig(model=MiniFluxConfig(**SIZES, num_double_blocks=1, num_single_blocks=1, rope_axes=(2, 2, 4))),
    "vae": TrainVAEConfig(model=VAEConfig(latent_channels=4, encoder=STACK, decoder=STACK)),
}


def training_clips(run) -> list[dict]:
    """The training clips of a root."""
    return selected_clips(run.root, "", "train", ("clip_id", "uri")).to_pylist()


@pytest.fixture(params=["dit", "vae"])
def saved(request, tmp_path, squares):
    """Kind, state and folder of a training with checkpoints of the steps 3 and 4; averages differ from weights."""
    config = CONFIGS[request.param]
    about = {"kind": request.param, "model_id": "m", "settings": config.model_dump(mode="json"), "trained_on": {}}
    about["norm_clips"] = training_clips(squares)
    state = TrainState.start(_objective(About.model_validate(about)), config.optim)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), about=about)
    for state.step in (3, 4):
        for average in state.ema.shadow.values():
            average.add_(0.25)
        checkpoints.save(state)
    checkpoints.wait()
    return request.param, state, tmp_path / "checkpoints"


def test_the_newest_checkpoint_is_exported_with_its_averages(saved, tmp_path, squares):
    kind, state, folder = saved
    assert export_checkpoint(str(folder), str(tmp_path / "model")) == 4
    model = load_dit(tmp_path / "model") if kind == "dit" else load_vae(tmp_path / "model")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, state.ema.shadow[f"{kind}.{name}"]), name
    if kind == "vae":
        measured = tmp_path / "measured"
        measured.mkdir()
        save_normalised(model, ClipReader(training_clips(squares), 0), 4, str(measured))
        assert load_vae(tmp_path / "model").config.latent_norm == load_vae(measured).config.latent_norm is not None
    with pytest.raises(StepError, match="model exists: give the name of a new folder"):
        export_checkpoint(str(folder), str(tmp_path / "model"))


def test_a_checkpoint_is_exported_by_its_own_folder(saved, tmp_path):
    _, _, folder = saved
    assert export_checkpoint(str(folder / "step-00000003"), str(tmp_path / "model")) == 3


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(StepError, match="has no checkpoint: give a folder step-"):
        export_checkpoint(str(tmp_path), str(tmp_path / "model"))


def test_settings_of_another_version_are_told_in_a_sentence(saved, tmp_path):
    _, _, folder = saved
    for file in folder.glob("*/whole.json"):
        content = json.loads(file.read_text())
        content["about"]["settings"]["nonsense"] = 1
        file.write_text(json.dumps(content))
    with pytest.raises(StepError, match=r"are not those of a train_\w+ of this version \(nonsense: Extra inputs"):
        export_checkpoint(str(folder), str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()
