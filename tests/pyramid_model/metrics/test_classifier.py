"""Image classifiers of transformers as scorers."""

import cv2
import numpy as np
import pytest

from pyramid_model.metrics.classifier import ImageClassifier


def scene(seed: int, num_frames: int = 2, height: int = 180, width: int = 320) -> np.ndarray:
    """A blurred texture, (t h w 3) uint8, the same in every frame."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)] * num_frames)


def test_a_classifier_gives_the_probability_of_its_label_whatever_the_batch(tmp_path, write_classifier):
    folder = write_classifier(tmp_path / "vit")
    clips = [scene(1, 2), scene(2, 1, 64, 64)]
    marked, clean = (ImageClassifier(folder, label, batch_size=2)(clips) for label in ("watermark", "clean"))
    numbered = ImageClassifier(folder, "1", batch_size=1)(clips)
    for scores, other, same in zip(marked, clean, numbered, strict=True):
        np.testing.assert_allclose(scores + other, 1, atol=1e-5)
        np.testing.assert_allclose(scores, same, atol=1e-5)
    assert abs(marked[0][0] - marked[1][0]) > 1e-4


def test_labels_and_weights_that_are_not_there_are_named(tmp_path, write_classifier):
    folder = write_classifier(tmp_path / "vit")
    with pytest.raises(ValueError, match="has no label 'nude': it has 'clean', 'watermark'"):
        ImageClassifier(folder, "nude")
    with pytest.raises(ValueError, match=r"has no readable config\.json"):
        ImageClassifier(tmp_path / "none", "nude")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"weights of 2 layers are missing, classifier\.bias"):
        ImageClassifier(folder, "clean")
