"""Random numbers of samples."""

import pytest
import torch

from pyramid_model.flow.noise import Noise


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_with_a_generator_for_each_sample_its_numbers_do_not_depend_on_the_batch():
    batch = Noise([generator(1), generator(2)])
    alone = Noise([generator(2)])
    for _ in range(2):
        assert torch.equal(batch.normal(2, 3, 4)[1:], alone.normal(1, 3, 4))
    assert torch.equal(batch.uniform(2, 5)[1:], alone.uniform(1, 5))


def test_noise_of_a_jump_sums_to_zero_in_every_block_at_the_largest_gamma():
    noise = Noise(generator(0)).block(1, 2, 1, 8, 8, gamma=1 / 3)
    sums = torch.nn.functional.avg_pool2d(noise[:, :, 0], 2)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-6, rtol=0)


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="2 generators for a batch of 3 samples: pass one for each sample"):
        Noise([generator(1), generator(2)]).normal(3, 1)
