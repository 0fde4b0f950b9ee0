"""Facts about model folders, and what steps say where a model is missing."""

import os
from pathlib import Path

import pytest

from pyramid_model.config import VAEConfig, VAEStackConfig
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.weights import save_vae, weights_hash
from tasks.encoding.latents import LatentsConfig, latents
from tasks.encoding.text_features import TextFeaturesConfig, text_features
from tasks.evaluating.config import EvaluateConfig
from tasks.evaluating.evaluate import evaluate
from tasks.models.folders import changed_weights, find_model, folder_hash, load_vae
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, ok_row
from tasks.training.train_dit import TrainDiTConfig, train_dit


def test_steps_say_which_step_must_run_first(squares):
    with pytest.raises(StepError, match="run the captions step first"):
        text_features(squares, TextFeaturesConfig())
    with pytest.raises(StepError, match="run the train_vae step, or set `vae`"):
        latents(squares, LatentsConfig())
    with pytest.raises(StepError, match="run the train_vae step"):
        train_dit(squares, TrainDiTConfig())
    with pytest.raises(StepError, match="run the train_dit step"):
        evaluate(squares, EvaluateConfig())


def test_a_folder_without_a_model_is_named(squares):
    with pytest.raises(StepError, match="there is no model folder '/nowhere'"):
        latents(squares, LatentsConfig(vae="/nowhere"))


def test_a_root_that_was_moved_is_told_with_the_place_of_its_model(tmp_path):
    row = ok_row({}, model_id=content_id("dit"), kind="dit", weights_hash="0", uri="/old/root/models/dit-1")
    append_block(str(tmp_path), "models", [row], "1", Lineage("run", "train_dit", "1", "", ""))
    with pytest.raises(StepError, match=r"is at /old/root/models/dit-1, outside of this root: .* put a root that was"):
        find_model(Run(root=str(tmp_path)), "dit")


def test_files_that_changed_and_kept_size_and_time_have_another_hash(tmp_path):
    run = Run(root=str(tmp_path / "root"))
    path = tmp_path / "model" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(b"abcd")
    facts = path.stat()
    before = folder_hash(run, str(path.parent), "files")
    path.write_bytes(b"abce")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert folder_hash(run, str(path.parent), "files") != before


@pytest.mark.parametrize("damage", ["bit", "truncated", "gone"])
def test_weights_that_differ_from_their_record_are_refused(tmp_path, damage):
    stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
    config = VAEConfig(latent_channels=4, encoder=stack, decoder=stack)
    save_vae(CausalVideoVAE(config), tmp_path / "vae")
    uri = str(tmp_path / "vae")
    expected = weights_hash(uri)
    assert changed_weights(uri, expected) == ""
    load_vae(uri, "cpu", expected)
    [path] = Path(uri).glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data if damage == "bit" else data[:1000])
    if damage == "gone":
        path.unlink()
    load_vae.cache_clear()
    with pytest.raises(StepError, match=r"weights in .*vae (were changed|are missing).* Restore the folder"):
        load_vae(uri, "cpu", expected)
    assert changed_weights(uri, expected)
