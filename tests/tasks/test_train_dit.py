"""Which DiT a recipe trains. Runs in 2 s."""

from types import SimpleNamespace

import torch

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from tasks.evaluator import untrained_of
from tasks.train_dit import TrainDiTConfig, untrained_dit
from tasks.training import model_id

SIZES = {"latent_channels": 4, "num_heads": 1, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}
MINIFLUX = MiniFluxConfig(**SIZES, num_double_blocks=1, num_single_blocks=1, rope_axes=(2, 2, 4))
MMDIT = MMDiTConfig(**SIZES, num_blocks=1, position_grid=4, position_base=4)


def test_the_section_mmdit_stands_in_place_of_model():
    config = TrainDiTConfig(model=MINIFLUX)
    other = TrainDiTConfig.model_validate(config.model_dump(mode="json") | {"mmdit": MMDIT.model_dump(mode="json")})
    assert (config.dit, other.dit) == (MINIFLUX, MMDIT)
    assert isinstance(untrained_dit(config), MiniFlux)
    assert isinstance(untrained_dit(other), MMDiT)


def test_a_model_keeps_its_id_now_that_there_is_another_kind():
    config = TrainDiTConfig(model=MINIFLUX)
    ids = {model_id("dit", "1", c, []) for c in (config, TrainDiTConfig(model=MINIFLUX, mmdit=MMDIT))}
    assert len(ids) == 2
    assert "4a270893404c31c7037a362dad7b88c7" in ids  # of the version that knew miniFLUX alone


def test_a_dit_from_elsewhere_is_compared_with_an_untrained_one_of_its_own_kind():
    subject = SimpleNamespace(dit=SimpleNamespace(training={}))
    for config in (MINIFLUX, MMDIT):
        untrained = untrained_of(subject, config)
        assert untrained.config == config
        assert torch.count_nonzero(untrained.patch_out.weight) == 0
