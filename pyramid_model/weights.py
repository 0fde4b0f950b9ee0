"""Models on disk: `config.json` and `diffusion_pytorch_model.safetensors`, under the released names.

The only file that knows those names. Our own checkpoints use them too, so one loader serves both.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyramid_model.config import LatentNorm, MiniFluxConfig, MMDiTConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.dit.packing import PATCH
from pyramid_model.dit.transformer import DiT
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.loss import PerceptualDistance

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"

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
PERCEPTUAL_NAMES = ((r"^weights\.(\d)\.", r"lin\1.model.1."),)  # beside torchvision's VGG16, whose names are ours
# the published VAE training files the layers of VGG16 under five slices
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

ATTENTION_KEYS = {"causal": "use_temporal_causal", "history_time": "history_time"}  # the latter is ours alone
OPTIONAL_KEYS = ("_sample", *ATTENTION_KEYS.values())

MINIFLUX_CLASS = "PyramidFluxTransformer"
MMDIT_CLASS = "PyramidDiffusionMMDiT"

# what every released model has, and the only thing that is supported
MINIFLUX_FIXED = {"interp_condition_pos": True}
MMDIT_FIXED = {
    "patch_size": PATCH,
    "qk_norm": "rms_norm",
    "pos_embed_type": "sincos",
    "add_temp_pos_embed": True,
    "temp_pos_embed_type": "rope",
    "interp_condition_pos": True,
}


def save_vae(vae: CausalVideoVAE, folder: str | Path) -> None:
    """Write a VAE and its config to a folder, which is made if need be."""
    _save(vae, VAE_NAMES, vae_config_to_released(vae.config), Path(folder))


def load_vae(folder: str | Path, device: str | torch.device = "cpu") -> CausalVideoVAE:
    """Read a VAE, released or ours, in evaluation mode.

    Raises:
        FileNotFoundError: no config.json or no safetensors file in the folder.
        ValueError: the config or the weights do not fit the model.
    """
    folder = Path(folder)
    vae = CausalVideoVAE(vae_config_from_released(_read_config(folder)))
    _load(vae, VAE_NAMES, folder)
    return vae.to(device).eval()


def save_dit(dit: DiT, folder: str | Path) -> None:
    """Write a DiT of either kind and its config to a folder, which is made if need be."""
    if isinstance(dit, MMDiT):
        _save(dit, MMDIT_NAMES, mmdit_config_to_released(dit.config), Path(folder))
    elif isinstance(dit, MiniFlux):
        _save(dit, MINIFLUX_NAMES, miniflux_config_to_released(dit.config), Path(folder))
    else:
        raise TypeError(f"{type(dit).__name__} has no released names: only MiniFlux and MMDiT can be saved")


def load_dit(folder: str | Path, device: str | torch.device = "cpu") -> DiT:
    """Read a DiT, released or ours, in evaluation mode: an `MMDiT` if its config.json says so, else a `MiniFlux`.

    Raises:
        FileNotFoundError: no config.json or no safetensors file in the folder.
        ValueError: the config or the weights do not fit the model.
    """
    folder = Path(folder)
    released = _read_config(folder)
    if released.get("_class_name") == MMDIT_CLASS:
        dit, names = MMDiT(mmdit_config_from_released(released)), MMDIT_NAMES
    else:
        dit, names = MiniFlux(miniflux_config_from_released(released)), MINIFLUX_NAMES
    _load(dit, names, folder)
    return dit.to(device).eval()


def load_perceptual(vgg16: str | Path, lpips: str | Path, device: str | torch.device = "cpu") -> PerceptualDistance:
    """LPIPS from the two files it is published in: torchvision's VGG16, and `vgg.pth` of the LPIPS authors.

    Either may be a safetensors file or one of torch.save, which is read without running code.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: they do not hold the weights.
    """
    perceptual = PerceptualDistance()
    tensors = {name: value for name, value in _read_tensors(Path(vgg16)).items() if not name.startswith("classifier.")}
    load_released(perceptual, PERCEPTUAL_NAMES, tensors | _read_tensors(Path(lpips)), f"{vgg16} with {lpips}")
    return perceptual.to(device).eval()


def weights_hash(folder: str | Path) -> str:
    """32 hex digits that change with any byte of the weights or of the config."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with open(Path(folder) / name, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def released_name(name: str, names: Names) -> str:
    """The name under which a parameter of ours is stored."""
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def to_released(model: nn.Module, names: Names) -> dict[str, Tensor]:
    """All parameters of a model under their stored names."""
    return {released_name(name, names): value.detach().contiguous() for name, value in model.state_dict().items()}


def load_released(model: nn.Module, names: Names, tensors: dict[str, Tensor], source: str) -> None:
    """Copy stored tensors into a model.

    Raises:
        ValueError: tensors are missing, left over or of another shape; each is named.
    """
    stored_names = {released_name(name, names): name for name in model.state_dict()}
    own = model.state_dict()
    problems = [f"missing: {stored}" for stored in stored_names if stored not in tensors]
    problems += [f"unexpected: {stored}" for stored in tensors if stored not in stored_names]
    problems += [
        f"shape of {stored}: {tuple(tensors[stored].shape)} in the file, {tuple(own[name].shape)} by the config"
        for stored, name in stored_names.items()
        if stored in tensors and tensors[stored].shape != own[name].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"{source} does not hold this {type(model).__name__}; check its {CONFIG_FILE}:\n  {shown}")
    model.load_state_dict({name: tensors[stored] for stored, name in stored_names.items()})


def vae_config_from_released(released: dict[str, Any]) -> VAEConfig:
    """Our config from the keys of a released config.json; keys that change nothing are passed over.

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
    """Inverse of `vae_config_from_released`; `latent_norm` is ours alone."""
    return {
        "_class_name": "CausalVideoVAE",
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
    """Our config from the keys of a released config.json; keys that change nothing are passed over.

    Raises:
        ValueError: a key is missing, a value is out of range, or the model is of a kind that was not released.
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
        **{theirs: getattr(config, ours) for ours, theirs in ATTENTION_KEYS.items()},
        **MINIFLUX_FIXED,
    }


def mmdit_config_from_released(released: dict[str, Any]) -> MMDiTConfig:
    """Our config from the keys of a released config.json; keys that change nothing are passed over.

    Raises:
        ValueError: a key is missing, a value is out of range, or the model is of a kind that was not released.
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
        **{theirs: getattr(config, ours) for ours, theirs in ATTENTION_KEYS.items()},
        **MMDIT_FIXED,
    }


def _check_fixed(released: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Refuse a config that has another value for a key than the one that is supported; absent keys are fine."""
    for key, supported in fixed.items():
        if released.get(key, supported) != supported:
            raise ValueError(f"{CONFIG_FILE}: {key} is {released[key]!r}; only {supported!r} is supported")


def _ours(released: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """Values of a released config under our field names; some may be left to the default."""
    if missing := [key for key in keys.values() if key not in released and not key.endswith(OPTIONAL_KEYS)]:
        raise ValueError(f"{CONFIG_FILE} lacks {', '.join(missing)}: is it the config of this kind of model?")
    return {ours: released[theirs] for ours, theirs in keys.items() if theirs in released}


def _save(model: nn.Module, names: Names, config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_released(model, names), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _load(model: nn.Module, names: Names, folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise FileNotFoundError(f"no {WEIGHTS_FILE} in {folder}: other formats are not read, as they can run code")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    load_released(model, names, tensors, str(path))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of one that torch.save wrote."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the weights by their path, nothing is downloaded")
    try:
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as err:
        raise ValueError(f"{path} holds no weights that can be read without running code: {err}") from err
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} does not hold a table of named tensors")
    return stored


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"no {CONFIG_FILE} in {folder}: it must be the folder of one model")
    return json.loads(path.read_text())
