"""Facts about what an evaluation compares with."""

import torch

from pyramid_model.config import MiniFluxConfig, MMDiTConfig
from tasks.evaluating.evaluator import untrained_of

SIZES = {"latent_channels": 4, "num_heads": 1, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}


MINIFLUX = MiniFluxConfig(**SIZES, num_double_blocks=1, num_single_blocks=1, rope_axes=(2, 2, 4))


MMDIT = MMDiTConfig(**SIZES, num_blocks=1, position_grid=4, position_base=4)


def test_a_dit_from_elsewhere_is_compared_with_an_untrained_one_of_its_own_kind():
    for config in (MINIFLUX, MMDIT):
        untrained = untrained_of(None, config)
        assert untrained.config == config
        assert torch.count_nonzero(untrained.patch_out.weight) == 0
