"""Names, shapes and settings of released checkpoints."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, VAEConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.released_names import (
    CONFIG_FILE,
    MINIFLUX_NAMES,
    MMDIT_NAMES,
    VAE_NAMES,
    clip_shapes,
    t5_shapes,
    text_tensor_name,
)
from pyramid_model.weights.weights import expected_shapes, load_dit, save_dit

RELEASED_KEYS = Path(__file__).parents[1] / "released_keys"  # of the published checkpoints, compacted


def released_keys(table):
    """Names and shapes of a released checkpoint; `{0..7}` in a name stands for that many blocks."""
    keys = {}
    for name, shape in json.loads((RELEASED_KEYS / f"{table}.json").read_text()).items():
        if blocks := re.search(r"\{(\d+)\.\.(\d+)\}", name):
            first, last = map(int, blocks.groups())
            keys |= {name.replace(blocks[0], str(block)): tuple(shape) for block in range(first, last + 1)}
        else:
            keys[name] = tuple(shape)
    return keys


@pytest.mark.parametrize(
    ("table", "model", "sizes", "names", "num_tensors", "num_parameters"),
    [
        ("causal_video_vae", CausalVideoVAE, VAEConfig, VAE_NAMES, 260, 335_402_067),
        ("miniflux", MiniFlux, MiniFluxConfig, MINIFLUX_NAMES, 496, 1_972_059_200),
        ("mmdit_sd3", MMDiT, MMDiTConfig, MMDIT_NAMES, 779, 2_028_334_144),
    ],
)
def test_names_and_shapes_of_the_default_sizes_are_the_released_ones(
    table, model, sizes, names, num_tensors, num_parameters
):
    with torch.device("meta"):
        empty = model(sizes())
    keys = released_keys(table)
    assert len(keys) == num_tensors
    assert expected_shapes(empty, names) == keys
    assert sum(weight.numel() for weight in empty.parameters()) == num_parameters


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


@pytest.mark.parametrize("gated", [True, False])
def test_the_tensors_that_a_t5_must_have_are_those_of_transformers(gated):
    config = T5Config(
        vocab_size=40,
        d_model=8,
        d_kv=6,
        d_ff=16,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )
    with torch.device("meta"):
        stored = T5EncoderModel(config).state_dict()
    shapes = {text_tensor_name(name): tuple(value.shape) for name, value in stored.items() if text_tensor_name(name)}
    assert t5_shapes(config.to_dict()) == shapes


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
@pytest.mark.parametrize("prefix", ["", "text_model."])  # of transformers 5 and of those before it
def test_the_tensors_that_a_clip_must_have_are_those_of_transformers(kind, prefix):
    config = CLIPTextConfig(
        vocab_size=60000, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.device("meta"):
        stored = kind(config).state_dict()
    own = {name.removeprefix("text_model."): tuple(value.shape) for name, value in stored.items()}
    shapes = {
        text_tensor_name(name if name.startswith("text_projection") else prefix + name): s for name, s in own.items()
    }
    assert clip_shapes(config.to_dict() | {"architectures": [kind.__name__]}) == shapes
