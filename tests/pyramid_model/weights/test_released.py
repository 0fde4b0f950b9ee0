"""Facts about whole released directories and what is reported of them. Runs in 15 s, half of it imports."""

import json
import shutil

import pytest
import torch

from pyramid_model.config import MINIFLUX_LATENT_NORM, SD3_LATENT_NORM, MiniFluxConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.text import load_text_encoder
from pyramid_model.weights.released import find_released
from pyramid_model.weights.weights import load_dit, load_vae, save_dit, save_vae


@pytest.fixture
def copied(released, tmp_path):
    """`copied(variant)`: a released directory that may be changed."""
    return lambda variant: shutil.copytree(released(variant), tmp_path / variant)


@pytest.mark.parametrize(
    ("variant", "norm", "kind", "names"),
    [
        ("miniflux", MINIFLUX_LATENT_NORM, MiniFlux, ["384p", "768p", "image"]),
        ("sd3", SD3_LATENT_NORM, MMDiT, ["384p", "768p"]),
    ],
)
def test_a_released_directory_loads_whole_with_the_latent_norm_of_its_variant(
    released, tmp_path, variant, norm, kind, names
):
    directory = find_released(released(variant))
    vae, text = directory.load_vae(dtype=torch.bfloat16), load_text_encoder(directory.folder)
    assert list(directory.dits) == names
    assert vae.config.latent_norm == norm
    assert load_vae(directory.vae).config.latent_norm is None  # nothing in its files says so
    save_vae(vae, tmp_path)
    assert load_vae(tmp_path).config.latent_norm == norm
    for name in names:
        dit = directory.load_dit(name)
        assert type(dit) is kind
        assert (dit.config.text_dim, dit.config.pooled_dim) == (text.dim, text.pooled_dim)
        assert dit.config.latent_channels == vae.config.latent_channels
    assert directory.dit("diffusion_transformer_384p") == directory.dit("384p")


def test_a_dit_that_is_not_there_is_answered_by_those_that_are(released):
    with pytest.raises(ValueError, match="no DiT '1080p': it has 384p, 768p"):
        find_released(released("sd3")).load_dit("1080p")


def test_missing_parts_are_named(copied):
    folder = copied("sd3")
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "causal_video_vae")
    with pytest.raises(FileNotFoundError, match="SD3 directory without causal_video_vae, text_encoder_3: download"):
        find_released(folder)


def test_without_a_dit_the_text_encoders_tell_the_variant(copied):
    for variant, name in (("sd3", "SD3"), ("miniflux", "miniFLUX")):
        folder = copied(variant)
        for path in folder.glob("diffusion_transformer_*"):
            shutil.rmtree(path)
        with pytest.raises(FileNotFoundError, match=rf"is a {name} directory without diffusion_transformer_\*"):
            find_released(folder)


def test_dits_of_both_variants_in_one_directory_are_refused(copied):
    folder = copied("sd3")
    shutil.rmtree(folder / "diffusion_transformer_768p")
    dit = MiniFlux(MiniFluxConfig(latent_channels=4, num_heads=1, head_dim=8, rope_axes=(2, 2, 4)))
    save_dit(dit, folder / "diffusion_transformer_768p")
    with pytest.raises(ValueError, match="mixes both variants: diffusion_transformer_384p a PyramidDiffusionMMDiT"):
        find_released(folder)


def test_directories_of_other_models_are_refused_by_what_they_are(tmp_path, released):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(ValueError, match=r"is a StableDiffusion3Pipeline directory; expected .*causal_video_vae"):
        find_released(tmp_path)
    with pytest.raises(ValueError, match="is the folder of one model, a CausalVideoVAE; expected a released directory"):
        find_released(released("sd3") / "causal_video_vae")
    (tmp_path / "other" / "unet").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds unet; expected a released directory"):
        find_released(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_released(tmp_path / "nowhere")
    hint = "it is a whole directory; give one of its models: causal_video_vae, diffusion_transformer_384p"
    with pytest.raises(FileNotFoundError, match=hint):
        load_dit(released("sd3"))
    with pytest.raises(ValueError, match="text_encoder_2 holds a T5EncoderModel; expected here: CausalVideoVAE"):
        load_vae(released("miniflux") / "text_encoder_2")
