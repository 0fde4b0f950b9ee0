"""Heads that predict how much people like a picture."""

import pytest
import torch
import torch.nn.functional as F

from pyramid_model.metrics.aesthetic import load_head

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
        with pytest.raises(ValueError, match=r"is not an aesthetic head: expected `weight` and `bias`"):
            load_head(tmp_path / f"{name}.pth", 512)


@pytest.mark.parametrize(
    ("name", "dim"), [("sa_0_4_vit_b_32_linear.pth", 512), ("sac+logos+ava1-l14-linearMSE.pth", 768)]
)
def test_released_heads_give_marks_about_the_middle_of_their_scale(shared_assets, name, dim):
    features = F.normalize(torch.randn(64, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    marks = load_head(shared_assets / "weights" / name, dim)(features)
    assert marks.shape == (64, 1)
    assert 1 < marks.mean() < 10
