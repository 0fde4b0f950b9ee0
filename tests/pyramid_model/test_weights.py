"""Facts about models on disk. Runs in about 4 s."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.config import LatentNorm, MiniFluxConfig, MMDiTConfig, VAEConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.released_names import CONFIG_FILE, MINIFLUX_NAMES, MMDIT_NAMES, VAE_NAMES, WEIGHTS_FILE
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights import load_dit, load_vae, save_dit, save_vae, to_released, weights_hash

RELEASED_KEYS = Path(__file__).parents[3] / "shared" / "parity" / "state_dict_keys"


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


def test_the_default_configs_are_the_released_sizes():
    with torch.device("meta"):
        models = CausalVideoVAE(VAEConfig()), MiniFlux(MiniFluxConfig()), MMDiT(MMDiTConfig())
    sizes = [(len(model.state_dict()), sum(p.numel() for p in model.parameters())) for model in models]
    assert sizes == [(260, 335_402_067), (496, 1_972_059_200), (779, 2_028_334_144)]


@pytest.mark.skipif(not RELEASED_KEYS.exists(), reason=f"{RELEASED_KEYS} is not there")
@pytest.mark.parametrize(
    ("table", "model", "sizes", "names"),
    [
        ("causal_video_vae", CausalVideoVAE, VAEConfig, VAE_NAMES),
        ("miniflux", MiniFlux, MiniFluxConfig, MINIFLUX_NAMES),
        ("mmdit_sd3", MMDiT, MMDiTConfig, MMDIT_NAMES),
    ],
)
def test_names_and_shapes_of_the_default_sizes_are_the_released_ones(table, model, sizes, names):
    with torch.device("meta"):
        stored = to_released(model(sizes()), names)
    released = json.loads((RELEASED_KEYS / f"{table}.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == released


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed_type": "rope"}, "pos_embed_type is 'rope'; only 'sincos' is supported"),
        ({"caption_projection_dim": 20}, "caption_projection_dim is 20; only 16 is supported"),
        ({"num_layers": 0}, "num_blocks"),
    ],
)
def test_an_mmdit_that_was_not_released_like_this_is_refused(tiny_mmdit, tmp_path, change, message):
    save_dit(tiny_mmdit, tmp_path)
    config = tmp_path / CONFIG_FILE
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_dit(tmp_path)


def test_a_folder_without_config_or_weights_is_refused(tiny_vae, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_vae(tmp_path)
    save_vae(tiny_vae, tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no diffusion_pytorch_model\.safetensors or .*\.bin"
    ):
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
    with pytest.raises(ValueError, match="lacks in_channels"):
        load_dit(tmp_path / "dit")


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
