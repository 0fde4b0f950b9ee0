"""One DiT of a released directory, described from configs and headers of its files."""

import shutil

import pytest

from pyramid_model.config import MINIFLUX_LATENT_NORM, MiniFluxConfig, PyramidConfig
from pyramid_model.weights.checkpoint import read_checkpoint


def test_a_released_dit_has_the_norm_and_the_length_of_its_variant(released):
    checkpoint = read_checkpoint(released("miniflux"), "768p")
    assert (checkpoint.name, checkpoint.norm, checkpoint.most_latent_frames) == ("768p", MINIFLUX_LATENT_NORM, 31)
    assert isinstance(checkpoint.dit, MiniFluxConfig)
    assert (checkpoint.record, checkpoint.pyramid, checkpoint.autoregressive) == (None, PyramidConfig(), True)


def test_of_several_dits_one_must_be_chosen(released):
    with pytest.raises(ValueError, match=r"several DiTs: choose one of 384p, 768p, image \(--variant\)"):
        read_checkpoint(released("miniflux"))


def test_a_damaged_part_is_refused_before_weights_are_read(released, tmp_path):
    folder = shutil.copytree(released("miniflux"), tmp_path / "copy")
    with next((folder / "causal_video_vae").glob("*.safetensors")).open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match=r"cannot be used: .*causal_video_vae.*`pyramid weights inspect"):
        read_checkpoint(folder, "768p")
