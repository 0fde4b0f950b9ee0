"""CLIP features and the scores computed from them."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyramid_model.metrics.open_clip_model import OpenCLIP, consistency, text_match, zero_shot


def scene(seed: int, num_frames: int = 2, height: int = 180, width: int = 320) -> np.ndarray:
    """A blurred texture, (t h w 3) uint8, the same in every frame."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)] * num_frames)


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory, write_open_clip):
    return write_open_clip(tmp_path_factory.mktemp("open_clip") / "tiny")


@pytest.fixture(scope="module")
def clip_model(open_clip_folder):
    return OpenCLIP(open_clip_folder, with_text=True)


def test_features_have_unit_length_and_do_not_depend_on_the_batch(open_clip_folder, clip_model):
    clips = [scene(1, 3), scene(2, 1, 64, 64), scene(3, 2)]
    together = clip_model.embed_frames(clips)
    assert [tuple(features.shape) for features in together] == [(3, 8), (1, 8), (2, 8)]
    torch.testing.assert_close(torch.cat(together).norm(dim=-1), torch.ones(6))
    by_two = OpenCLIP(open_clip_folder, batch_size=2).embed_frames(clips)
    for features, expected in zip(by_two, together, strict=True):
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert (together[0][0] - together[1][0]).abs().max() > 1e-3


def test_features_are_those_of_open_clip_itself(open_clip_folder, clip_model):
    import open_clip
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{open_clip_folder}")
    frame = scene(4, 1)
    with torch.inference_mode():
        expected = model.eval().encode_image(preprocess(Image.fromarray(frame[0]))[None], normalize=True)
        words = model.encode_text(open_clip.tokenize(["a red ball"], context_length=16), normalize=True)
    torch.testing.assert_close(clip_model.embed_frames([frame])[0], expected)
    torch.testing.assert_close(clip_model.embed_texts(["a red ball"]), words)


def test_weights_of_another_model_are_refused(tmp_path, write_open_clip):
    small, large = write_open_clip(tmp_path / "small", dim=8), write_open_clip(tmp_path / "large", dim=12)
    (large / "open_clip_pytorch_model.bin").replace(small / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no CLIP model .*size mismatch"):
        OpenCLIP(small)
    with pytest.raises(ValueError, match="holds no CLIP model"):
        OpenCLIP(large)


def test_a_still_clip_is_consistent_and_a_jump_is_not():
    a, b = torch.eye(2)
    torch.testing.assert_close(consistency(torch.stack([a, a, b])), torch.tensor([1.0, 0.0]))
    assert consistency(a[None]).tolist() == [1]


def test_a_text_matches_the_frames_that_point_its_way():
    features = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1]]), dim=-1)
    assert text_match(features, torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert text_match(features, torch.tensor([0.0, 1.0])) == pytest.approx(0, abs=1e-6)


def test_zero_shot_chooses_the_nearer_class_and_shrugs_between_two():
    a, b = torch.eye(2)
    scores = zero_shot(torch.stack([a, b, F.normalize(a + b, dim=0)]), a[None], torch.stack([b, b]), 100.0)
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.0, 0.5]))
