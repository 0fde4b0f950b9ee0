"""Names in released checkpoints: of tensors, of the keys of config.json, and of folders.

Only this file contains these names. Our own checkpoints use them too, so one loader reads both.
"""

from __future__ import annotations

import re
from typing import Any

from pyramid_model.config import PATCH, DiTConfig, LatentNorm, MiniFluxConfig, MMDiTConfig, VAEConfig, VAEStackConfig

# our name -> released name, applied in order
VAE_NAMES = (
    (r"^to_moments", "quant_conv.conv"),
    (r"^from_latents", "post_quant_conv.conv"),
    (r"^encoder\.blocks\.(\d+)\.space", r"encoder.down_blocks.\1.downsamplers.0.conv.conv"),
    (r"^encoder\.blocks\.(\d+)\.time", r"encoder.down_blocks.\1.temporal_downsamplers.0.conv.conv"),
    (r"^decoder\.blocks\.(\d+)\.space\.conv", r"decoder.up_blocks.\1.upsamplers.0.conv.conv"),
    (r"^decoder\.blocks\.(\d+)\.time\.conv", r"decoder.up_blocks.\1.temporal_upsamplers.0.conv.conv"),
    (r"^encoder\.blocks", "encoder.down_blocks"),
    (r"^decoder\.blocks", "decoder.up_blocks"),
    (r"\.mid\.resnet_in\.", ".mid_block.resnets.0."),
    (r"\.mid\.resnet_out\.", ".mid_block.resnets.1."),
    (r"\.mid\.attention\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attention\.to_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attention\.", ".mid_block.attentions.0."),
    (r"\.(conv1|conv2|conv_in|conv_out)\.", r".\1.conv."),
    (r"\.shortcut\.", ".conv_shortcut.conv."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
DOUBLE_BLOCK = r"^double_blocks\.(\d+)\."
DIT_NAMES = (
    (r"^text_in\.", "context_embedder."),
    (r"^timestep_in\.fc", "time_text_embed.timestep_embedder.linear_"),
    (r"^pooled_in\.fc", "time_text_embed.text_embedder.linear_"),
    (r"^modulation_out\.", "norm_out.linear."),
    (r"^patch_out\.", "proj_out."),
    (DOUBLE_BLOCK + r"image\.modulation\.", r"transformer_blocks.\1.norm1.linear."),
    (DOUBLE_BLOCK + r"text\.modulation\.", r"transformer_blocks.\1.norm1_context.linear."),
    (DOUBLE_BLOCK + r"image\.mlp\.fc1\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (DOUBLE_BLOCK + r"image\.mlp\.fc2\.", r"transformer_blocks.\1.ff.net.2."),
    (DOUBLE_BLOCK + r"text\.mlp\.fc1\.", r"transformer_blocks.\1.ff_context.net.0.proj."),
    (DOUBLE_BLOCK + r"text\.mlp\.fc2\.", r"transformer_blocks.\1.ff_context.net.2."),
    (DOUBLE_BLOCK + r"image\.to_out\.", r"transformer_blocks.\1.attn.to_out.0."),
    (DOUBLE_BLOCK + r"text\.to_out\.", r"transformer_blocks.\1.attn.to_add_out."),
    (DOUBLE_BLOCK + r"text\.to_([qkv])\.", r"transformer_blocks.\1.attn.add_\2_proj."),
    (DOUBLE_BLOCK + r"image\.", r"transformer_blocks.\1.attn."),
)
MINIFLUX_NAMES = (
    *DIT_NAMES,
    (r"^patch_in\.", "x_embedder."),
    (DOUBLE_BLOCK + r"text\.norm_([qk])\.", r"transformer_blocks.\1.attn.norm_added_\2."),
    (r"^single_blocks\.(\d+)\.modulation\.", r"single_transformer_blocks.\1.norm.linear."),
    (r"^single_blocks\.(\d+)\.mlp_in\.", r"single_transformer_blocks.\1.proj_mlp."),
    (r"^single_blocks\.(\d+)\.out\.", r"single_transformer_blocks.\1.proj_out."),
    (r"^single_blocks\.(\d+)\.", r"single_transformer_blocks.\1.attn."),
)
MMDIT_NAMES = (
    *DIT_NAMES,
    (r"^patch_in\.", "pos_embed.proj."),
    (r"^positions$", "pos_embed.pos_embed"),
    (DOUBLE_BLOCK + r"text\.norm_([qk])\.", r"transformer_blocks.\1.attn.norm_add_\2."),
)
PERCEPTUAL_NAMES = ((r"^weights\.(\d)\.", r"lin\1.model.1."),)  # names of torchvision's VGG16 are the same as ours
# the published VAE training divides the layers of VGG16 into five slices
VGG16_SLICES = (
    (r"^features\.([0-3])\.", r"net.slice1.\1."),
    (r"^features\.([4-8])\.", r"net.slice2.\1."),
    (r"^features\.(9|1[0-5])\.", r"net.slice3.\1."),
    (r"^features\.(1[6-9]|2[0-2])\.", r"net.slice4.\1."),
    (r"^features\.(2\d)\.", r"net.slice5.\1."),
)
DISCRIMINATOR_NAMES = ((r"^layers\.", "main."),)
Names = tuple[tuple[str, str], ...]

# our config field -> key of a released config.json
ENCODER_KEYS = {
    "channels": "encoder_block_out_channels",
    "layers": "encoder_layers_per_block",
    "norm_groups": "encoder_norm_num_groups",
    "resample_space": "encoder_spatial_down_sample",
    "resample_time": "encoder_temporal_down_sample",
}
DECODER_KEYS = {
    "channels": "decoder_block_out_channels",
    "layers": "decoder_layers_per_block",
    "norm_groups": "decoder_norm_num_groups",
    "resample_space": "decoder_spatial_up_sample",
    "resample_time": "decoder_temporal_up_sample",
}
DIT_KEYS = {
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "text_dim": "joint_attention_dim",
    "pooled_dim": "pooled_projection_dim",
}
MINIFLUX_KEYS = DIT_KEYS | {
    "num_double_blocks": "num_layers",
    "num_single_blocks": "num_single_layers",
    "rope_axes": "axes_dims_rope",
}
MMDIT_KEYS = DIT_KEYS | {
    "latent_channels": "in_channels",
    "num_blocks": "num_layers",
    "position_grid": "pos_embed_max_size",
}
ATTENTION_KEYS = {"causal": "use_temporal_causal", "history_time": "history_time"}  # history_time: ours only
OPTIONAL_KEYS = ("_sample", *ATTENTION_KEYS.values())

VAE_CLASS = "CausalVideoVAE"
MINIFLUX_CLASS = "PyramidFluxTransformer"
MMDIT_CLASS = "PyramidDiffusionMMDiT"

CONFIG_FILE = "config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
WEIGHTS_FILE = WEIGHTS_STEM + ".safetensors"
TEXT_STEM = "model"  # of the weights of a text encoder
VAE_FOLDER = "causal_video_vae"
DIT_PREFIX = "diffusion_transformer_"  # of the folders of a released directory: 384p, 768p, image
TEXT_PARTS = (("text_encoder", "tokenizer"), *((f"text_encoder_{n}", f"tokenizer_{n}") for n in (2, 3)))

# settings of all released models; other values are not supported
MINIFLUX_FIXED = {"interp_condition_pos": True}
MMDIT_FIXED = {
    "patch_size": PATCH,
    "qk_norm": "rms_norm",
    "pos_embed_type": "sincos",
    "add_temp_pos_embed": True,
    "temp_pos_embed_type": "rope",
    "interp_condition_pos": True,
}


def released_name(name: str, names: Names) -> str:
    """Stored name of a parameter of our model."""
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def vae_config_from_released(released: dict[str, Any]) -> VAEConfig:
    """Our config from a released config.json; keys without effect on the model are ignored.

    Raises:
        ValueError: a key is missing or a value is out of range.
    """
    norm = released.get("latent_norm")
    return VAEConfig(
        **_ours(released, {"latent_channels": "encoder_out_channels"}),
        encoder=VAEStackConfig(**_ours(released, ENCODER_KEYS)),
        decoder=VAEStackConfig(**_ours(released, DECODER_KEYS)),
        latent_norm=LatentNorm(**norm) if norm else None,
    )


def vae_config_to_released(config: VAEConfig) -> dict[str, Any]:
    """Inverse of `vae_config_from_released`; the key `latent_norm` does not exist in released files."""
    return {
        "_class_name": VAE_CLASS,
        "encoder_in_channels": 3,
        "encoder_out_channels": config.latent_channels,
        **{theirs: getattr(config.encoder, ours) for ours, theirs in ENCODER_KEYS.items()},
        "decoder_in_channels": config.latent_channels,
        "decoder_out_channels": 3,
        **{theirs: getattr(config.decoder, ours) for ours, theirs in DECODER_KEYS.items()},
        "downsample_scale": config.space_factor,
        "latent_norm": config.latent_norm.model_dump() if config.latent_norm else None,
    }


def miniflux_config_from_released(released: dict[str, Any]) -> MiniFluxConfig:
    """Our config from a released config.json; keys without effect on the model are ignored.

    Raises:
        ValueError: a key is missing, a value is out of range, or a setting is not supported.
    """
    _check_fixed(released, MINIFLUX_FIXED)
    (channels,) = _ours(released, {"in_channels": "in_channels"}).values()
    return MiniFluxConfig(**_ours(released, MINIFLUX_KEYS | ATTENTION_KEYS), latent_channels=channels // PATCH**2)


def miniflux_config_to_released(config: MiniFluxConfig) -> dict[str, Any]:
    """Inverse of `miniflux_config_from_released`."""
    return {
        "_class_name": MINIFLUX_CLASS,
        "patch_size": 1,
        "in_channels": config.latent_channels * PATCH**2,
        **{theirs: getattr(config, ours) for ours, theirs in MINIFLUX_KEYS.items()},
        **_attention_to_released(config),
        **MINIFLUX_FIXED,
    }


def mmdit_config_from_released(released: dict[str, Any]) -> MMDiTConfig:
    """Our config from a released config.json; keys without effect on the model are ignored.

    Raises:
        ValueError: a key is missing, a value is out of range, or a setting is not supported.
    """
    _check_fixed(released, MMDIT_FIXED)
    (sample_size,) = _ours(released, {"sample_size": "sample_size"}).values()
    config = MMDiTConfig(
        **_ours(released, MMDIT_KEYS | ATTENTION_KEYS),
        position_base=sample_size // PATCH,
    )
    _check_fixed(released, {"caption_projection_dim": config.dim})
    return config


def mmdit_config_to_released(config: MMDiTConfig) -> dict[str, Any]:
    """Inverse of `mmdit_config_from_released`."""
    return {
        "_class_name": MMDIT_CLASS,
        "sample_size": config.position_base * PATCH,
        **{theirs: getattr(config, ours) for ours, theirs in MMDIT_KEYS.items()},
        "caption_projection_dim": config.dim,
        **_attention_to_released(config),
        **MMDIT_FIXED,
    }


def _attention_to_released(config: DiTConfig) -> dict[str, Any]:
    values = config.model_dump()
    return {theirs: values[ours] for ours, theirs in ATTENTION_KEYS.items() if ours in values}


def _check_fixed(released: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Raise ValueError if a key has another value than the supported one; missing keys are accepted."""
    for key, supported in fixed.items():
        if released.get(key, supported) != supported:
            raise ValueError(f"{CONFIG_FILE}: {key} is {released[key]!r}; only {supported!r} is supported")


def _ours(released: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """Values of a released config by our field names. Keys in `OPTIONAL_KEYS` may be missing."""
    if missing := [key for key in keys.values() if key not in released and not key.endswith(OPTIONAL_KEYS)]:
        raise ValueError(f"{CONFIG_FILE} lacks {', '.join(missing)}: is it the config of this kind of model?")
    return {ours: released[theirs] for ours, theirs in keys.items() if theirs in released}


def t5_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a T5 encoder, from its config.json (transformers)."""
    d, inner, ff = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    shapes: dict[str, tuple[int, ...]] = {
        "shared.weight": (config["vocab_size"], d),
        "encoder.final_layer_norm.weight": (d,),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            config.get("relative_attention_num_buckets", 32),
            config["num_heads"],
        ),
    }
    for n in range(config["num_layers"]):
        attention, mlp = f"encoder.block.{n}.layer.0", f"encoder.block.{n}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, d) for name in "qkv"}
        shapes |= {f"{mlp}.DenseReluDense.{name}.weight": (ff, d) for name in (("wi_0", "wi_1") if gated else ("wi",))}
        shapes[f"{attention}.SelfAttention.o.weight"] = (d, inner)
        shapes[f"{mlp}.DenseReluDense.wo.weight"] = (d, ff)
        shapes |= {f"{layer}.layer_norm.weight": (d,) for layer in (attention, mlp)}
    return shapes


def clip_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a CLIP text encoder, from its config.json (transformers).

    Names are without the prefix `text_model.` that transformers before version 5 writes.
    """
    d, ff = config["hidden_size"], config["intermediate_size"]
    layer: dict[str, tuple[int, ...]] = {"mlp.fc1": (ff, d), "mlp.fc2": (d, ff)}
    layer |= {f"self_attn.{name}_proj": (d, d) for name in ("q", "k", "v", "out")} | {
        f"layer_norm{n}": (d,) for n in (1, 2)
    }
    modules = {
        f"encoder.layers.{n}.{name}": shape for n in range(config["num_hidden_layers"]) for name, shape in layer.items()
    }
    modules["final_layer_norm"] = (d,)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (config["vocab_size"], d),
        "embeddings.position_embedding.weight": (config.get("max_position_embeddings", 77), d),
    }
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    if clip_is_projected(config):
        shapes["text_projection.weight"] = (config["projection_dim"], d)
    return shapes


def clip_is_projected(config: dict[str, Any]) -> bool:
    """Whether a CLIP text encoder ends with a projection, from its config.json."""
    return "CLIPTextModelWithProjection" in config.get("architectures", ())


def text_tensor_name(stored: str) -> str:
    """Name of a stored tensor in `t5_shapes` and `clip_shapes`; "" for a tensor that is not needed."""
    name = stored.removeprefix("text_model.")
    return "" if name in ("embeddings.position_ids", "encoder.embed_tokens.weight") else name
