"""Tiny clips and latents for the tests of training."""

import numpy as np
import pytest
import torch


@pytest.fixture
def clips():
    """Two clips of 12 frames, 32x48 px, of smooth colours that drift."""
    y, x, t = np.meshgrid(np.arange(32), np.arange(48), np.arange(12), indexing="ij")
    planes = [127 + 90 * np.sin((a * x + b * y + 3 * t) / 15) for a, b in ((1, 0), (0, 1), (1, 1))]
    clip = np.stack(planes, axis=-1).astype(np.uint8).transpose(2, 0, 1, 3)
    return [clip, 255 - clip]


@pytest.fixture
def latents():
    """Five normalised latents (4 3 8 8) and the features of their texts."""
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(2 + i % 3, 6, generator=generator), torch.randn(5, generator=generator)) for i in range(5)]
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(5)], rows
