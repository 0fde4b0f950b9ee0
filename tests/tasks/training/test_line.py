"""A new training continues the right one; nothing is trained if settings and data are unchanged."""

import json
from pathlib import Path

import pytest

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from pyramid_model.weights.record import ModelFolder, TrainedOn
from tasks.running.errors import StepError
from tasks.running.run import Run, lineage
from tasks.tables.appending import append_block
from tasks.tables.rows import ok_row
from tasks.training.ids import Parent, TrainingIds
from tasks.training.line import check_parent, identify
from tasks.training.train_dit import TrainDiTConfig

SIZES = {"latent_channels": 4, "num_heads": 1, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}
MINIFLUX = MiniFluxConfig(**SIZES, num_double_blocks=1, num_single_blocks=1, rope_axes=(2, 2, 4))
DATA = TrainedOn(vae=ModelFolder(uri="/vae", hash="v"), encoder=ModelFolder(uri="/t5", hash="t"))


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(root=str(tmp_path))


def config_of(**settings) -> TrainDiTConfig:
    return TrainDiTConfig.model_validate({"model": MINIFLUX} | settings)


def ids_of(run: Run, clips=("a", "b"), data=DATA, **settings) -> TrainingIds:
    config = config_of(**settings)
    return identify(run, "dit", "1", config, config.continue_from, data, clips)


def finish(run: Run, ids: TrainingIds, **settings) -> TrainingIds:
    """Add the row of a finished training."""
    config = config_of(**settings)
    about = {"settings": config.model_dump(mode="json"), "trained_on": DATA.model_dump(mode="json")}
    row = {"line_id": ids.line_id, "data_id": ids.data_id, "config": json.dumps(about)}
    steps = {"first_step": ids.parent.step if ids.parent else 0, "num_steps": config.optim.num_steps}
    rows = [ok_row({}, model_id=ids.model_id, kind="dit", uri=f"/{ids.model_id}", **row, **steps)]
    append_block(run.root, "models", rows, ids.model_id, lineage(run, "train_dit", "1", config))
    return ids


def test_models_of_two_kinds_are_of_two_lines(run):
    other = ids_of(run, mmdit=MMDiTConfig(**SIZES, num_blocks=1, position_grid=4, position_base=4))
    assert ids_of(run).line_id != other.line_id


def test_paths_workers_and_reports_are_no_part_of_the_id_and_length_and_data_are(run):
    same = {"selection": "s", "vae": "/vae", "encoder": "/encoder", "use_gpu": "no", "optim": {"log_every": 1}}
    assert ids_of(run, **same, num_batches=4, num_workers=2) == ids_of(run, num_batches=4)
    longer = ids_of(run, optim={"num_steps": 9999})
    assert longer.model_id != ids_of(run).model_id
    assert longer.line_id == ids_of(run).line_id
    assert ids_of(run, clips=("a",)).model_id != ids_of(run).model_id


def test_the_first_training_of_a_line_starts_from_initial_weights(run):
    assert ids_of(run, continue_from="newest") == ids_of(run)


def test_with_nothing_new_the_newest_training_is_the_answer(run):
    first = finish(run, ids_of(run))
    assert ids_of(run, continue_from="newest").model_id == first.model_id
    second = finish(run, ids_of(run, ("a", "b", "c"), continue_from="newest"))
    assert second.model_id != first.model_id
    assert ids_of(run, ("a", "b", "c"), continue_from="newest").model_id == second.model_id


@pytest.mark.parametrize(
    ("clips", "settings"),
    [(("a", "b", "c"), {}), (("a", "b"), {"optim": {"lr": 1e-5}}), (("a", "b"), {"num_batches": 2})],
    ids=["clips", "learning rate", "batches"],
)
def test_what_is_new_continues_the_newest_training(run, clips, settings):
    first = finish(run, ids_of(run))
    other = ids_of(run, clips, continue_from="newest", **settings)
    assert other.parent == Parent(
        model_id=first.model_id, step=1000, checkpoints=f"{run.root}/checkpoints/{first.model_id}"
    )
    assert other.line_id == first.line_id
    finish(run, other, **settings)
    third = ids_of(run, ("d",), continue_from="newest")
    assert third.parent
    assert (third.parent.model_id, third.parent.step) == (other.model_id, 2000)


def test_a_training_that_is_named_by_its_id_is_continued_with_the_same_data_too(run):
    first = finish(run, ids_of(run))
    other = ids_of(run, continue_from=first.model_id)
    assert other.parent
    assert other.parent.model_id == first.model_id
    assert other.model_id != first.model_id


def test_a_folder_of_checkpoints_is_continued_from_its_newest_one(run, tmp_path):
    about = {"kind": "dit", "model_id": "elsewhere", "settings": config_of().model_dump(mode="json")}
    about["trained_on"] = DATA.model_dump(mode="json")
    for step in (8, 12):
        folder = tmp_path / "copy" / f"step-{step:08}"
        folder.mkdir(parents=True)
        (folder / "whole.json").write_text(json.dumps({"about": about, "facts": {"step": step}}))
    other = ids_of(run, continue_from=str(tmp_path / "copy"))
    assert other.parent == Parent(model_id="elsewhere", step=12, checkpoints=str(tmp_path / "copy"))
    check_parent("dit", other.parent)
    (tmp_path / "copy" / "step-00000012" / "whole.json").unlink()
    with pytest.raises(StepError, match=r"its checkpoint of step 12 is not in .*copy any more\. Set train_dit"):
        check_parent("dit", other.parent)


def test_a_training_of_another_line_is_refused_with_what_differs(run):
    first = finish(run, ids_of(run))
    with pytest.raises(StepError, match=r"with another train_dit\.pyramid, train_dit\.optim\.seed: only a training"):
        ids_of(run, continue_from=first.model_id, pyramid={"num_stages": 2}, optim={"seed": 1})
    other_vae = DATA.model_copy(update={"vae": ModelFolder(uri="/vae2", hash="v2")})
    with pytest.raises(StepError, match="with another VAE: only"):
        ids_of(run, data=other_vae, continue_from=first.model_id)


def test_a_training_that_does_not_exist_is_refused(run, tmp_path):
    with pytest.raises(
        StepError, match=r"'.*nothing' is neither the model_id of a dit .* nor a folder with checkpoints"
    ):
        ids_of(run, continue_from=str(Path(tmp_path, "nothing")))
