"""The record of a training beside its weights."""

import math

import pytest

from pyramid_model.config import PyramidConfig
from pyramid_model.weights.record import TRAINING_FILE, TrainedModel, read_record


def test_a_record_comes_back_with_its_settings_and_values_that_are_not_finite(tmp_path):
    settings = {"pyramid": {"num_stages": 2}, "loss": {"autoregressive": False}}
    facts = {"kind": "dit", "model_id": "m", "weights_hash": "w"}
    record = TrainedModel(**facts, settings=settings, metrics={"val_loss": math.inf}, curve=[{"loss": math.nan}])
    (tmp_path / TRAINING_FILE).write_text(record.model_dump_json())
    again = read_record(tmp_path)
    assert again is not None
    assert (again.pyramid, again.autoregressive) == (PyramidConfig(num_stages=2), False)
    assert again.metrics["val_loss"] == math.inf
    assert math.isnan(again.curve[0]["loss"])


def test_without_settings_a_dit_has_the_defaults_of_its_training():
    record = TrainedModel(kind="dit", model_id="m", weights_hash="w", settings={})
    assert (record.pyramid, record.autoregressive) == (PyramidConfig(), True)


def test_a_folder_without_a_record_was_not_trained_here_and_a_damaged_record_is_refused(tmp_path):
    assert read_record(tmp_path) is None
    (tmp_path / TRAINING_FILE).write_text('{"kind": "gan"}')
    with pytest.raises(ValueError, match=rf"{TRAINING_FILE} is not a record of a training \(kind: "):
        read_record(tmp_path)
