"""Facts about the identity of a training and the samples of its steps."""

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from tasks.training.job import model_id, pick_samples, positions_alike
from tasks.training.train_dit import TrainDiTConfig


def test_samples_of_a_step_share_one_group_and_every_sample_comes_up():
    groups = ["a"] * 6 + ["b"] * 2
    seen = set()
    for step in range(40):
        picked = [pick_samples(positions_alike(groups), 2, 0, step, rank, 2) for rank in (0, 1)]
        assert len({groups[i] for ranks in picked for i in ranks}) == 1
        seen.update(i for ranks in picked for i in ranks)
    assert seen == set(range(8))


def test_samples_of_a_step_stay_what_they_were_when_models_were_trained_with_them():
    alike = positions_alike(["a", "b", "a", "c", "a", "b", "a"])
    assert alike == [[0, 2, 4, 6], [1, 5], [0, 2, 4, 6], [3], [0, 2, 4, 6], [1, 5], [0, 2, 4, 6]]
    picked = [pick_samples(alike, 2, 5, step, rank, 2) for step in range(4) for rank in (0, 1)]
    assert picked == [
        [6, 0],
        [4, 2],
        [5, 1],
        [1, 5],
        [2, 0],
        [4, 6],
        [4, 0],
        [2, 6],
    ]  # as of version 1 of both trainings


SIZES = {"latent_channels": 4, "num_heads": 1, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}


MINIFLUX = MiniFluxConfig(**SIZES, num_double_blocks=1, num_single_blocks=1, rope_axes=(2, 2, 4))


MMDIT = MMDiTConfig(**SIZES, num_blocks=1, position_grid=4, position_base=4)


def test_models_of_two_kinds_have_two_ids():
    config = TrainDiTConfig(model=MINIFLUX)
    ids = {model_id("dit", "1", c, []) for c in (config, TrainDiTConfig(model=MINIFLUX, mmdit=MMDIT))}
    assert len(ids) == 2


def test_where_data_lie_and_how_often_a_training_reports_are_no_part_of_its_id():
    config = TrainDiTConfig(model=MINIFLUX)
    changes = {"selection": "s", "vae": "/vae", "encoder": "/encoder", "use_gpu": "no", "optim": {"log_every": 1}}
    other = TrainDiTConfig.model_validate({"model": MINIFLUX, **changes})
    assert model_id("dit", "1", other, []) == model_id("dit", "1", config, [])
    longer = TrainDiTConfig.model_validate({"model": MINIFLUX, "optim": {"num_steps": 9999}})
    assert model_id("dit", "1", longer, []) != model_id("dit", "1", config, [])
