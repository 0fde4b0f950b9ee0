"""Facts about models on disk. Runs in about 4 s."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.config import LatentNorm, MiniFluxConfig, VAEConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights import WEIGHTS_FILE, load_dit, load_vae, save_dit, save_vae, weights_hash


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_saved_vae_comes_back_with_its_latent_norm(tiny_vae, tmp_path):
    norm = LatentNorm(first_shift=0.1, first_scale=2.0, rest_shift=(0.1, 0.2, 0.3, 0.4), rest_scale=1.0)
    vae = CausalVideoVAE(VAEConfig(**{**tiny_vae.config.model_dump(), "latent_norm": norm}))
    save_vae(vae, tmp_path / "vae")
    loaded = load_vae(tmp_path / "vae")
    assert loaded.config == vae.config
    assert same_weights(loaded, vae)
    assert not loaded.training


def test_a_saved_dit_comes_back(tiny_dit, tmp_path):
    save_dit(tiny_dit, tmp_path)
    loaded = load_dit(tmp_path)
    assert loaded.config == tiny_dit.config
    assert same_weights(loaded, tiny_dit)


def test_the_default_configs_are_the_released_sizes():
    with torch.device("meta"):
        vae, dit = CausalVideoVAE(VAEConfig()), MiniFlux(MiniFluxConfig())
    assert (len(vae.state_dict()), sum(p.numel() for p in vae.parameters())) == (260, 335_402_067)
    assert (len(dit.state_dict()), sum(p.numel() for p in dit.parameters())) == (496, 1_972_059_200)


def test_one_error_names_all_that_is_missing_left_over_or_misshapen(tiny_dit, tmp_path):
    save_dit(tiny_dit, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors["extra.weight"] = tensors.pop("x_embedder.weight")
    tensors["proj_out.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="does not hold this MiniFlux") as error:
        load_dit(tmp_path)
    for part in ("missing: x_embedder.weight", "unexpected: extra.weight", "shape of proj_out.bias: (3,)"):
        assert part in str(error.value)


def test_a_folder_without_safetensors_is_refused(tiny_vae, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_vae(tmp_path)
    save_vae(tiny_vae, tmp_path)
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="other formats are not read"):
        load_vae(tmp_path)


def test_a_config_of_another_model_is_refused_by_the_keys_it_lacks(tiny_vae, tmp_path):
    save_vae(tiny_vae, tmp_path)
    with pytest.raises(ValueError, match="lacks in_channels"):
        load_dit(tmp_path)


def test_the_hash_follows_weights_and_config(tiny_dit, tmp_path):
    save_dit(tiny_dit, tmp_path)
    before = weights_hash(tmp_path)
    assert len(before) == 32
    save_dit(tiny_dit, tmp_path)
    assert weights_hash(tmp_path) == before
    with torch.no_grad():
        tiny_dit.patch_out.bias[0] += 1
    save_dit(tiny_dit, tmp_path)
    assert weights_hash(tmp_path) != before
