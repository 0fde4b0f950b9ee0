"""Facts about model folders, and what steps say where a model is missing."""

import pytest

from tasks.encoding.latents import LatentsConfig, latents
from tasks.encoding.text_features import TextFeaturesConfig, text_features
from tasks.evaluating.config import EvaluateConfig
from tasks.evaluating.evaluate import evaluate
from tasks.models.folders import writing_folder
from tasks.running.errors import StepError
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


def test_a_model_folder_appears_whole_or_not_at_all(tmp_path):
    uri = str(tmp_path / "models" / "m")
    with pytest.raises(RuntimeError), writing_folder(uri) as folder:  # noqa: PT012
        (tmp_path / "models").joinpath(folder, "half").write_text("x")
        raise RuntimeError
    assert not list((tmp_path / "models").iterdir())
    for content in ("first", "second"):
        with writing_folder(uri) as folder:
            (tmp_path / folder / "file").write_text(content)
    assert (tmp_path / "models" / "m" / "file").read_text() == "first"
