"""Models on disk: `config.json` and `diffusion_pytorch_model.safetensors`, under the released names.

The only file that knows those names. Our own checkpoints use them too, so one loader serves both.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyramid_model.config import LatentNorm, MiniFluxConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.vae.autoencoder import CausalVideoVAE

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
MINIFLUX_NAMES = (
    (r"^patch_in\.", "x_embedder."),
    (r"^text_in\.", "context_embedder."),
    (r"^timestep_in\.fc", "time_text_embed.timestep_embedder.linear_"),
    (r"^pooled_in\.fc", "time_text_embed.text_embedder.linear_"),
    (r"^modulation_out\.", "norm_out.linear."),
    (r"^patch_out\.", "proj_out."),
    (r"^double_blocks\.(\d+)\.image\.modulation\.", r"transformer_blocks.\1.norm1.linear."),
    (r"^double_blocks\.(\d+)\.text\.modulation\.", r"transformer_blocks.\1.norm1_context.linear."),
    (r"^double_blocks\.(\d+)\.image\.mlp\.fc1\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"^double_blocks\.(\d+)\.image\.mlp\.fc2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"^double_blocks\.(\d+)\.text\.mlp\.fc1\.", r"transformer_blocks.\1.ff_context.net.0.proj."),
    (r"^double_blocks\.(\d+)\.text\.mlp\.fc2\.", r"transformer_blocks.\1.ff_context.net.2."),
    (r"^double_blocks\.(\d+)\.image\.to_out\.", r"transformer_blocks.\1.attn.to_out.0."),
    (r"^double_blocks\.(\d+)\.text\.to_out\.", r"transformer_blocks.\1.attn.to_add_out."),
    (r"^double_blocks\.(\d+)\.text\.to_([qkv])\.", r"transformer_blocks.\1.attn.add_\2_proj."),
    (r"^double_blocks\.(\d+)\.text\.norm_([qk])\.", r"transformer_blocks.\1.attn.norm_added_\2."),
    (r"^double_blocks\.(\d+)\.image\.", r"transformer_blocks.\1.attn."),
    (r"^single_blocks\.(\d+)\.modulation\.", r"single_transformer_blocks.\1.norm.linear."),
    (r"^single_blocks\.(\d+)\.mlp_in\.", r"single_transformer_blocks.\1.proj_mlp."),
    (r"^single_blocks\.(\d+)\.out\.", r"single_transformer_blocks.\1.proj_out."),
    (r"^single_blocks\.(\d+)\.", r"single_transformer_blocks.\1.attn."),
)
Names = tuple[tuple[str, str], ...]


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


def save_dit(dit: MiniFlux, folder: str | Path) -> None:
    """Write a DiT and its config to a folder, which is made if need be."""
    _save(dit, MINIFLUX_NAMES, miniflux_config_to_released(dit.config), Path(folder))


def load_dit(folder: str | Path, device: str | torch.device = "cpu") -> MiniFlux:
    """Read a miniFLUX DiT, released or ours, in evaluation mode.

    Raises:
        FileNotFoundError: no config.json or no safetensors file in the folder.
        ValueError: the config or the weights do not fit the model.
    """
    folder = Path(folder)
    dit = MiniFlux(miniflux_config_from_released(_read_config(folder)))
    _load(dit, MINIFLUX_NAMES, folder)
    return dit.to(device).eval()


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
    """Our config from the keys of a released config.json; keys that change nothing are passed over."""

    def stack(half: str, resample: str) -> VAEStackConfig:
        fields = {
            "channels": f"{half}_block_out_channels",
            "layers": f"{half}_layers_per_block",
            "norm_groups": f"{half}_norm_num_groups",
            "resample_space": f"{half}_spatial_{resample}_sample",
            "resample_time": f"{half}_temporal_{resample}_sample",
        }
        return VAEStackConfig(**{ours: released[theirs] for ours, theirs in fields.items() if theirs in released})

    norm = released.get("latent_norm")
    return VAEConfig(
        latent_channels=released["encoder_out_channels"],
        encoder=stack("encoder", "down"),
        decoder=stack("decoder", "up"),
        latent_norm=LatentNorm(**norm) if norm else None,
    )


def vae_config_to_released(config: VAEConfig) -> dict[str, Any]:
    """Inverse of `vae_config_from_released`; `latent_norm` is ours alone."""
    released: dict[str, Any] = {
        "_class_name": "CausalVideoVAE",
        "encoder_in_channels": 3,
        "encoder_out_channels": config.latent_channels,
        "decoder_in_channels": config.latent_channels,
        "decoder_out_channels": 3,
        "downsample_scale": config.space_factor,
        "latent_norm": config.latent_norm.model_dump() if config.latent_norm else None,
    }
    for half, resample, stack in (("encoder", "down", config.encoder), ("decoder", "up", config.decoder)):
        released |= {
            f"{half}_block_out_channels": stack.channels,
            f"{half}_layers_per_block": stack.layers,
            f"{half}_norm_num_groups": stack.norm_groups,
            f"{half}_spatial_{resample}_sample": stack.resample_space,
            f"{half}_temporal_{resample}_sample": stack.resample_time,
        }
    return released


def miniflux_config_from_released(released: dict[str, Any]) -> MiniFluxConfig:
    """Our config from the keys of a released config.json; keys that change nothing are passed over."""
    if not released.get("interp_condition_pos", True):
        raise ValueError("interp_condition_pos false: only models with interpolated history positions are supported")
    return MiniFluxConfig(
        latent_channels=released["in_channels"] // 4,
        num_double_blocks=released["num_layers"],
        num_single_blocks=released["num_single_layers"],
        num_heads=released["num_attention_heads"],
        head_dim=released["attention_head_dim"],
        text_dim=released["joint_attention_dim"],
        pooled_dim=released["pooled_projection_dim"],
        rope_axes=tuple(released["axes_dims_rope"]),
        causal=released.get("use_temporal_causal", True),
    )


def miniflux_config_to_released(config: MiniFluxConfig) -> dict[str, Any]:
    """Inverse of `miniflux_config_from_released`."""
    return {
        "_class_name": "PyramidFluxTransformer",
        "patch_size": 1,
        "in_channels": config.latent_channels * 4,
        "num_layers": config.num_double_blocks,
        "num_single_layers": config.num_single_blocks,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "joint_attention_dim": config.text_dim,
        "pooled_projection_dim": config.pooled_dim,
        "axes_dims_rope": config.rope_axes,
        "use_temporal_causal": config.causal,
        "interp_condition_pos": True,
    }


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


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"no {CONFIG_FILE} in {folder}: it must be the folder of one model")
    return json.loads(path.read_text())
