"""LoRA adapters of a DiT in the format of peft: `adapter_config.json` and `adapter_model.safetensors`.

An adapter adds scale * B A to the matrix of a linear layer (arXiv:2106.09685). Names in the file are those of the
released weights, as peft writes them for a model with these names: `base_model.model.<layer>.lora_A.weight`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyramid_model.config import LoRAConfig
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.dit.transformer import DiT
from pyramid_model.weights.released_names import MINIFLUX_NAMES, MMDIT_NAMES, released_name
from pyramid_model.weights.tensor_files import open_tensors, read_json

LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = ("use_dora", "alora_invocation_tokens", "alpha_pattern", "modules_to_save", "layer_replication")


@dataclass(frozen=True)
class LoRA:
    """An adapter in memory.

    pairs: (A, B) of each layer by its released name, (rank in) and (out rank). scale: alpha / rank.
    """

    pairs: dict[str, tuple[Tensor, Tensor]]
    scale: float
    source: str


def add_lora(dit: DiT, config: LoRAConfig) -> None:
    """Put a new adapter on the linear layers of a DiT's blocks that `config.targets` names, and freeze all else.

    The DiT computes the same as before, since B is zero.

    Raises:
        ValueError: no layer of a block has one of these names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name in linear_layers(dit) if name.rpartition(".")[2] in config.targets]
    if not layers:
        names = sorted({name.rpartition(".")[2] for name in linear_layers(dit)})
        raise ValueError(f"lora.targets {list(config.targets)} name no layer: use {', '.join(names)}")
    adapter = LoraConfig(r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=layers)  # pyright: ignore[reportArgumentType]
    inject_adapter_in_model(adapter, dit)
    for name, weight in dit.named_parameters():
        weight.requires_grad = ".lora_" in name


def save_lora(dit: DiT, config: LoRAConfig, folder: str | Path, base: str = "") -> None:
    """Write the adapter of a DiT that `add_lora` changed.

    Args:
        base: name or folder of the DiT that it belongs to; only a remark for people.
    """
    folder, names = Path(folder), _names(dit)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, layers = {}, []
    for name, layer in dit.named_modules():
        if hasattr(layer, "lora_A"):
            released = released_name(f"{name}.weight", names).removesuffix(".weight")
            layers.append(released)
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)["default"].weight
                tensors[f"{PREFIX}{released}.{part}.weight"] = weight.detach().contiguous().cpu()
    settings = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha or config.rank,
        "target_modules": layers,
        "base_model_name_or_path": base,
        "bias": "none",
    }
    save_file(tensors, folder / LORA_WEIGHTS)
    (folder / LORA_CONFIG).write_text(json.dumps(settings, indent=1) + "\n")


def load_lora(folder: str | Path) -> LoRA:
    """Read an adapter that peft or this package wrote.

    Raises:
        FileNotFoundError: one of its two files is missing.
        ValueError: a file is damaged, or the adapter is of a kind that is not supported.
    """
    folder = Path(folder)
    for file in (LORA_CONFIG, LORA_WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"there is no {file} in {folder}: give the folder of a LoRA adapter")
    config = read_json(folder / LORA_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is an adapter of the type {config.get('peft_type')!r}: only LORA can be used")
    if used := [name for name in UNSUPPORTED if config.get(name)]:
        raise ValueError(f"the adapter {folder} needs {', '.join(used)}, which is not supported: train it without")
    tensors = open_tensors([folder / LORA_WEIGHTS])
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if part not in ("lora_A", "lora_B") or value.ndim != 2:
            raise ValueError(f"{folder} has a tensor {name} {tuple(value.shape)}: expected lora_A and lora_B matrices")
        halves.setdefault(layer, {})[part] = value
    if lone := [layer for layer, parts in halves.items() if len(parts) < 2]:
        raise ValueError(f"the adapter {folder} has only one of lora_A and lora_B of {lone[0]}: copy it again")
    return LoRA({layer: (p["lora_A"], p["lora_B"]) for layer, p in halves.items()}, _scale(config, folder), str(folder))


def lora_hash(folder: str | Path) -> str:
    """Hash of an adapter's files, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for file in (LORA_CONFIG, LORA_WEIGHTS):
        digest.update((Path(folder) / file).read_bytes())
    return digest.hexdigest()


def _scale(config: dict[str, Any], folder: Path) -> float:
    """alpha / rank, or alpha / sqrt(rank) of a rank-stabilised adapter, by the adapter's own file."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(f"{folder / LORA_CONFIG} has r {rank!r} and lora_alpha {alpha!r}: both must be numbers")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


class Adapters:
    """The adapters that a DiT has at present. They are added to its weights, so it is as fast as without.

    The original weights of the changed layers are kept. Each `set` starts from them, so switching from A to B and back
    to A gives A's weights bit for bit, and an empty list gives the original ones.
    """

    def __init__(self, dit: DiT):
        self.layers = linear_layers(dit)
        self.released = {released_name(f"{n}.weight", _names(dit)).removesuffix(".weight"): n for n in self.layers}
        self.originals: dict[str, Tensor] = {}

    def check(self, lora: LoRA) -> None:
        """Check that an adapter belongs to this DiT.

        Raises:
            ValueError: it has a layer that the DiT lacks, or one of another size.
        """
        for released, (a, b) in lora.pairs.items():
            if released not in self.released:
                raise ValueError(f"the adapter {lora.source} is of another model: this DiT has no layer {released}")
            shape, expected = (b.shape[0], a.shape[1]), tuple(self.layers[self.released[released]].weight.shape)
            if shape != expected or a.shape[0] != b.shape[1]:
                raise ValueError(
                    f"the adapter {lora.source} is of another model: its layer {released} is {shape[0]}x{shape[1]} "
                    f"with ranks {a.shape[0]} and {b.shape[1]}, that of this DiT {expected[0]}x{expected[1]}"
                )

    @torch.no_grad()
    def set(self, adapters: Sequence[tuple[LoRA, float]]) -> None:
        """Replace the present adapters by these, each with its weight; all are checked before a weight changes."""
        for lora, _ in adapters:
            self.check(lora)
        for name, original in self.originals.items():
            self.layers[name].weight.copy_(original)
        changed = {self.released[released] for lora, _ in adapters for released in lora.pairs}
        self.originals = {name: self.layers[name].weight.detach().clone() for name in changed}
        for name, original in self.originals.items():
            self.layers[name].weight.copy_(original.float() + self._update(name, original, adapters))

    def _update(self, name: str, original: Tensor, adapters: Sequence[tuple[LoRA, float]]) -> Tensor:
        """What all adapters together add to the weight of a layer, float32."""
        update = torch.zeros_like(original, dtype=torch.float32)
        for lora, weight in adapters:
            for released, (a, b) in lora.pairs.items():
                if self.released[released] == name:
                    a, b = a.to(update), b.to(update)
                    update += weight * lora.scale * (b @ a)
        return update


def linear_layers(dit: DiT) -> dict[str, nn.Linear]:
    """Linear layers of the blocks by name."""
    return {name: m for name, m in dit.named_modules() if isinstance(m, nn.Linear) and "blocks." in name}


def _names(dit: DiT) -> tuple[tuple[str, str], ...]:
    return MMDIT_NAMES if isinstance(dit, MMDiT) else MINIFLUX_NAMES
