"""Conversion between uint8 frames and the range of the VAE."""

import numpy as np
import torch

from pyramid_model.vae.pixels import to_uint8, to_unit_range


def test_every_level_survives_the_way_to_the_vae_and_back_up_to_truncation():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    values = to_unit_range(frames)
    assert values.shape == (3, 1, 16, 16)
    assert (values.min(), values.max()) == (-1, 1)
    difference = frames.astype(int) - to_uint8(values[None])[0]
    assert difference.min() >= 0
    assert difference.max() <= 1


def test_values_outside_the_range_are_clamped():
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 1, 2)).flatten().tolist() == [0, 255]
