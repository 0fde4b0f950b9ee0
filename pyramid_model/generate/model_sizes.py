"""Sizes of a pipeline's models for the planning of memory, from loaded models or from their files alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pyramid_model.config import DiTConfig, PyramidConfig, VAEConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.generate.offload import largest_layer_bytes, weight_bytes
from pyramid_model.text import TextEncoder
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.checkpoint import Checkpoint
from pyramid_model.weights.released_names import CONFIG_FILE, clip_shapes, t5_shapes
from pyramid_model.weights.tensor_files import read_json
from pyramid_model.weights.weights import empty_model, read_config


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a pipeline's models, from which its memory is planned.

    dit, vae: their configs. dtype: in which they compute. text_dim: width of the text encoder.
    text_bytes, dit_bytes, vae_bytes: all weights. text_layer_bytes, dit_layer_bytes: the largest layer.
    """

    dit: DiTConfig
    vae: VAEConfig
    pyramid: PyramidConfig
    dtype: torch.dtype
    text_dim: int
    text_bytes: int
    dit_bytes: int
    vae_bytes: int
    text_layer_bytes: int
    dit_layer_bytes: int


def sizes_of_models(dit: DiT, vae: CausalVideoVAE, encoder: TextEncoder | None, pyramid: PyramidConfig) -> ModelSizes:
    """Sizes of models in memory. encoder: None if prompts are already encoded."""
    texts = encoder.models if encoder else []
    return ModelSizes(
        dit=dit.config,
        vae=vae.config,
        pyramid=pyramid,
        dtype=next(dit.parameters()).dtype,
        text_dim=dit.config.text_dim,
        text_bytes=sum(map(weight_bytes, texts)),
        dit_bytes=weight_bytes(dit),
        vae_bytes=weight_bytes(vae),
        text_layer_bytes=max(map(largest_layer_bytes, texts), default=0),
        dit_layer_bytes=largest_layer_bytes(dit),
    )


def sizes_of_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype) -> ModelSizes:
    """Sizes that the models of a checkpoint would have in a precision; none of them is loaded."""
    dit, vae = _empty(checkpoint.dit_folder, dtype), _empty(checkpoint.parts.vae, dtype)
    texts = [_text_layers(encoder) for encoder, _ in checkpoint.parts.text]
    return ModelSizes(
        dit=checkpoint.dit,
        vae=checkpoint.vae,
        pyramid=checkpoint.pyramid,
        dtype=dtype,
        text_dim=checkpoint.dit.text_dim,
        text_bytes=sum(layers.total() for layers in texts) * dtype.itemsize,
        dit_bytes=weight_bytes(dit),
        vae_bytes=weight_bytes(vae),
        text_layer_bytes=max(max(layers.values()) for layers in texts) * dtype.itemsize,
        dit_layer_bytes=largest_layer_bytes(dit),
    )


def _empty(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder on the meta device, with parameters in the dtypes of a model loaded in this precision."""
    model, _ = empty_model(read_config(folder))
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def _text_layers(encoder: Path) -> Counter[str]:
    """Number of parameters in each layer of a text encoder, from its config."""
    config = read_json(encoder / CONFIG_FILE)
    shapes = t5_shapes(config) if "d_model" in config else clip_shapes(config)
    layers: Counter[str] = Counter()
    for name, shape in shapes.items():
        layers[name.rpartition(".")[0]] += math.prod(shape)
    return layers
