"""Facts about models on disk. Runs in about 4 s."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.config import LatentNorm, VAEConfig
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.released_names import (
    CONFIG_FILE,
    WEIGHTS_FILE,
)
from pyramid_model.weights.weights import load_dit, load_vae, save_dit, save_vae, weights_hash


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


def test_a_saved_dit_comes_back_as_the_kind_it_was(dit, tmp_path):
    save_dit(dit, tmp_path)
    loaded = load_dit(tmp_path)
    assert type(loaded) is type(dit)
    assert loaded.config == dit.config
    assert same_weights(loaded, dit)
    assert not loaded.training


def test_one_error_names_all_that_is_missing_left_over_or_misshapen(dit, tmp_path):
    save_dit(dit, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors["extra.weight"] = tensors.pop("context_embedder.weight")
    tensors["proj_out.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=f"does not hold this {type(dit).__name__}") as error:
        load_dit(tmp_path)
    for part in ("missing: context_embedder.weight", "unexpected: extra.weight", "shape of proj_out.bias: (3,)"):
        assert part in str(error.value)


def test_a_folder_without_config_or_weights_is_refused(tiny_vae, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_vae(tmp_path)
    save_vae(tiny_vae, tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model\.safetensors or .*\.bin"):
        load_vae(tmp_path)


def test_a_model_of_another_kind_is_refused_by_its_class(tiny_vae, tiny_dit, tmp_path):
    save_vae(tiny_vae, tmp_path / "vae")
    with pytest.raises(ValueError, match="vae holds a CausalVideoVAE; expected here: PyramidFluxTransformer or"):
        load_dit(tmp_path / "vae")
    save_dit(tiny_dit, tmp_path / "dit")
    config = tmp_path / "dit" / CONFIG_FILE
    config.write_text(json.dumps({"architectures": ["T5EncoderModel"], "model_type": "t5"}))
    with pytest.raises(ValueError, match="dit holds a T5EncoderModel; expected here: CausalVideoVAE"):
        load_vae(tmp_path / "dit")
    config.write_text("{}")
    with pytest.raises(ValueError, match="holds a model of no class; expected here: PyramidFluxTransformer or"):
        load_dit(tmp_path / "dit")
    config.write_text(json.dumps({"_class_name": "PyramidFluxTransformer", "num_layers": 2}))
    with pytest.raises(ValueError, match="lacks in_channels"):
        load_dit(tmp_path / "dit")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_in_the_dtype_that_is_asked_for_and_positions_in_float32(tiny_mmdit, tmp_path, dtype):
    positions = tiny_mmdit.positions.clone()
    save_dit(tiny_mmdit, tmp_path)
    loaded = load_dit(tmp_path, dtype=dtype)
    wanted = {name: value.to(dtype) for name, value in tiny_mmdit.named_parameters()}
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.named_parameters())
    assert {value.dtype for value in loaded.parameters()} == {dtype}
    assert all(value.requires_grad for value in loaded.parameters())
    assert torch.equal(loaded.positions, positions)
    assert loaded.positions.dtype == torch.float32


def test_a_vae_saved_in_bfloat16_comes_back_bit_for_bit(tiny_vae, tmp_path):
    save_vae(tiny_vae.bfloat16(), tmp_path)
    assert same_weights(load_vae(tmp_path, dtype=torch.bfloat16), tiny_vae)
    assert same_weights(load_vae(tmp_path), tiny_vae.float())


def test_a_loaded_model_does_not_depend_on_its_file_any_more(tiny_dit, tmp_path):
    save_dit(tiny_dit, tmp_path)
    loaded = load_dit(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert same_weights(loaded, tiny_dit)


@pytest.mark.parametrize("file", ["trained.safetensors", "trained.pth"])
def test_a_fine_tuned_dit_is_read_with_the_config_of_its_folder(dit, tmp_path, file):
    save_dit(dit, tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    tensors = {f"dit.{name}": 2 * value for name, value in stored.items()}
    tensors |= {"vae.encoder.conv_in.conv.weight": torch.ones(1), "text_encoder.shared.weight": torch.ones(1)}
    save_file(tensors, tmp_path / file) if file.endswith("safetensors") else torch.save(tensors, tmp_path / file)
    loaded = load_dit(tmp_path, weights=tmp_path / file)
    assert all(torch.equal(a, 2 * b) for a, b in zip(loaded.parameters(), dit.parameters(), strict=True))
    assert same_weights(load_dit(tmp_path), dit)


def test_a_fine_tuned_vae_is_read_out_of_a_checkpoint_of_its_training(tiny_vae, tmp_path):
    save_vae(tiny_vae, tmp_path)
    tensors = {f"vae.{name}": 2 * value for name, value in load_file(tmp_path / WEIGHTS_FILE).items()}
    checkpoint = {
        "model": tensors | {"loss.discriminator.main.0.weight": torch.ones(1)},
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-4),
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    loaded = load_vae(tmp_path, weights=tmp_path / "checkpoint.pth")
    assert all(torch.equal(a, 2 * b) for a, b in zip(loaded.parameters(), tiny_vae.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_vae(tmp_path, weights=tmp_path / "nowhere.pth")


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
