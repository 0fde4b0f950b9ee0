"""Saving, loading and hashing of models. The names in their files are defined in `released_names`."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.lib.format import read_array
from safetensors.torch import save_file
from torch import Tensor, nn

from pyramid_model.config import LatentNorm, VAEConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.dit.transformer import DiT
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.loss import PerceptualDistance
from pyramid_model.weights.released_names import (
    CONFIG_FILE,
    DIT_PREFIX,
    MINIFLUX_CLASS,
    MINIFLUX_NAMES,
    MMDIT_CLASS,
    MMDIT_NAMES,
    PERCEPTUAL_NAMES,
    VAE_CLASS,
    VAE_FOLDER,
    VAE_NAMES,
    WEIGHTS_FILE,
    WEIGHTS_STEM,
    Names,
    miniflux_config_from_released,
    miniflux_config_to_released,
    mmdit_config_from_released,
    mmdit_config_to_released,
    released_name,
    vae_config_from_released,
    vae_config_to_released,
)
from pyramid_model.weights.tensor_files import open_tensors, read_json, weight_files

Device = str | torch.device
Shapes = dict[str, tuple[int, ...]]
MODEL_CLASSES = (VAE_CLASS, MINIFLUX_CLASS, MMDIT_CLASS)


def save_vae(vae: CausalVideoVAE, folder: str | Path) -> None:
    """Write a VAE and its config to a folder, which is created if it does not exist."""
    _save(vae, VAE_NAMES, vae_config_to_released(vae.config), Path(folder))


def load_vae(
    folder: str | Path,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: str | Path | None = None,
    latent_norm: LatentNorm | None = None,
) -> CausalVideoVAE:
    """Load a VAE, released or ours, in evaluation mode. Needs memory for one copy of the model in its dtype.

    Args:
        folder: contains config.json, and the weights in any form that `tensor_files.weight_files` supports.
        device: device of the weights, which are moved tensor by tensor.
        dtype: of the weights.
        weights: file with other weights for the same config: a checkpoint of the published VAE training, whose entry
            `model` contains the weights as `vae.*` and those of the loss.
        latent_norm: for a VAE without one in its config, such as the released VAEs (see `released.find_released`).

    Raises:
        FileNotFoundError: no config.json or no weights in the folder.
        ValueError: the config or the weights do not fit the model, or a file is damaged.
    """
    vae, names = empty_model(read_config(folder, (VAE_CLASS,)))
    assert isinstance(vae, CausalVideoVAE)
    if weights is None:
        tensors = open_tensors(weight_files(Path(folder), WEIGHTS_STEM))
    else:
        trained = open_tensors([Path(weights)], entry="model")
        tensors = {name.removeprefix("vae."): value for name, value in trained.items() if not name.startswith("loss.")}
    load_released(vae, names, tensors, str(weights or folder), device, dtype)
    if vae.config.latent_norm is None and latent_norm is not None:
        vae.config = VAEConfig.model_validate(dict(vae.config) | {"latent_norm": latent_norm})
    return vae.eval()


def save_dit(dit: DiT, folder: str | Path) -> None:
    """Write a DiT of either kind and its config to a folder, which is created if it does not exist.

    Raises:
        TypeError: the model is neither a `MiniFlux` nor an `MMDiT`.
    """
    if isinstance(dit, MMDiT):
        _save(dit, MMDIT_NAMES, mmdit_config_to_released(dit.config), Path(folder))
    elif isinstance(dit, MiniFlux):
        _save(dit, MINIFLUX_NAMES, miniflux_config_to_released(dit.config), Path(folder))
    else:
        raise TypeError(f"{type(dit).__name__} has no released names: only MiniFlux and MMDiT can be saved")


def load_dit(
    folder: str | Path,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: str | Path | None = None,
) -> DiT:
    """Load a DiT, released or ours, in evaluation mode: an `MMDiT` or a `MiniFlux`, according to its config.json.

    Needs memory for one copy of the model in its dtype. The position table of an MMDiT stays float32 in every dtype.

    Args:
        folder: contains config.json, and the weights in any form that `tensor_files.weight_files` supports.
        device: device of the weights, which are moved tensor by tensor.
        dtype: of the weights.
        weights: file with other weights for the same config, as the published fine-tuning writes it: names may begin
            with `dit.`; names that begin with `vae` or `text_encoder` are ignored.

    Raises:
        FileNotFoundError: no config.json or no weights in the folder.
        ValueError: the config or the weights do not fit the model, or a file is damaged.
    """
    dit, names = empty_model(read_config(folder, (MINIFLUX_CLASS, MMDIT_CLASS)))
    assert isinstance(dit, DiT)
    if weights is None:
        tensors = open_tensors(weight_files(Path(folder), WEIGHTS_STEM))
    else:
        trained = open_tensors([Path(weights)])
        others = ("vae", "text_encoder")
        tensors = {name.removeprefix("dit."): value for name, value in trained.items() if not name.startswith(others)}
    load_released(dit, names, tensors, str(weights or folder), device, dtype)
    return dit.eval()


def load_perceptual(
    files: Sequence[str | Path], network: Literal["vgg16", "alexnet"] = "vgg16", device: Device = "cpu"
) -> PerceptualDistance:
    """Load LPIPS from the files in which it is published.

    Args:
        files: torchvision's weights of the network, and `vgg.pth` or `alex.pth` of the LPIPS authors, each as
            safetensors or as a file of torch.save, which is read without running code; or one .npz file with the
            kernels of AlexNet and LPIPS in the layout of Flax.
        network: whose features are compared.
        device: of the network.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: the files do not contain these weights.
    """
    perceptual, paths = PerceptualDistance(network), [Path(file) for file in files]
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= _flax_lpips(path) if path.suffix == ".npz" else open_tensors([path])
    tensors = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    load_released(perceptual, PERCEPTUAL_NAMES, tensors, " with ".join(map(str, paths)))
    return perceptual.to(device).eval()


def _flax_lpips(path: Path) -> dict[str, Tensor]:
    """Tensors of an .npz file by the names of torchvision and LPIPS."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = {
                name.removesuffix(".npy"): torch.from_numpy(read_array(archive.open(name), allow_pickle=False)).float()
                for name in archive.namelist()
            }
    except (zipfile.BadZipFile, ValueError) as err:
        raise ValueError(f"{path} is not an .npz file of arrays: {err}") from err
    tensors = {}
    for name, value in stored.items():
        if match := re.fullmatch(r"AlexNet_0/Conv_(\d)/(kernel|bias)", name):
            layer = f"features.{(0, 3, 6, 8, 10)[int(match[1])]}"
            kernel = match[2] == "kernel"
            tensors[f"{layer}.{'weight' if kernel else 'bias'}"] = value.permute(3, 2, 0, 1) if kernel else value
        elif match := re.fullmatch(r"NetLinLayer_(\d)/Conv_0/kernel", name):
            tensors[f"lin{match[1]}.model.1.weight"] = value.permute(3, 2, 0, 1)
        else:
            tensors[name] = value  # unexpected: `load_released` names it
    return tensors


def weights_hash(folder: str | Path) -> str:
    """Hash of all bytes of a model's weights and config, 32 hex digits."""
    folder, digest = Path(folder), hashlib.blake2b(digest_size=16)
    for path in (folder / CONFIG_FILE, *weight_files(folder, WEIGHTS_STEM)):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def read_config(folder: str | Path, classes: Sequence[str] = MODEL_CLASSES) -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        FileNotFoundError: the file does not exist; for a whole released directory the message lists its models.
        ValueError: the file is damaged, or its model is not one of `classes`.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one that contains {CONFIG_FILE} and the weights")
    if not path.is_file():
        parts = sorted(
            part.parent.name
            for part in path.parent.glob(f"*/{CONFIG_FILE}")
            if part.parent.name == VAE_FOLDER or part.parent.name.startswith(DIT_PREFIX)
        )
        hint = f": it is a whole directory; give one of its models: {', '.join(parts)}" if parts else ""
        raise FileNotFoundError(f"no {CONFIG_FILE} in {folder}{hint or ': it must be the folder of one model'}")
    config = read_json(path)
    name = class_of(config)
    if name not in classes:
        raise ValueError(f"{folder} holds a {name or 'model of no class'}; expected here: {' or '.join(classes)}")
    return config


def class_of(config: dict[str, Any]) -> str:
    """Name of the model's class in a config.json of diffusers or transformers; "" if there is none."""
    return str(config.get("_class_name") or (config.get("architectures") or [config.get("model_type", "")])[0])


def empty_model(released: dict[str, Any]) -> tuple[CausalVideoVAE | DiT, Names]:
    """Build the model of a config on the meta device, which needs no memory: (model, names of its stored tensors).

    Args:
        released: content of a config.json, as `read_config` returns it.

    Raises:
        ValueError: a key is missing, a value is out of range, or the config is of an unsupported kind.
    """
    with torch.device("meta"):
        if class_of(released) == VAE_CLASS:
            return CausalVideoVAE(vae_config_from_released(released)), VAE_NAMES
        if class_of(released) == MMDIT_CLASS:
            return MMDiT(mmdit_config_from_released(released)), MMDIT_NAMES
        return MiniFlux(miniflux_config_from_released(released)), MINIFLUX_NAMES


def to_released(model: nn.Module, names: Names) -> dict[str, Tensor]:
    """Parameters and buffers of a model by their stored names."""
    return {released_name(name, names): value.detach().contiguous() for name, value in model.state_dict().items()}


def load_released(
    model: nn.Module,
    names: Names,
    tensors: dict[str, Tensor],
    source: str,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Load copies of stored tensors into a model, which may be on the meta device.

    Args:
        model: its parameters are replaced.
        names: maps names of the model's tensors to stored names.
        tensors: by stored name.
        source: file or folder, for error messages.
        device: of the copies.
        dtype: of the parameters; buffers keep their dtype.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape; the message lists them.
    """
    if problems := misfits(expected_shapes(model, names), {name: tuple(t.shape) for name, t in tensors.items()}):
        lines = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"{source} does not hold this {type(model).__name__}; check its {CONFIG_FILE}:\n  {lines}")
    buffers = dict(model.named_buffers())
    copies = {
        name: tensors[released_name(name, names)].to(
            device,
            buffers[name].dtype if name in buffers else dtype,
            copy=True,  # independent of the memory-mapped file, which may be overwritten
            memory_format=torch.contiguous_format,
        )
        for name in model.state_dict()
    }
    model.load_state_dict(copies, assign=True)


def expected_shapes(model: nn.Module, names: Names) -> dict[str, tuple[int, ...]]:
    """Stored name -> shape of every tensor that a file must contain."""
    return {released_name(name, names): tuple(value.shape) for name, value in model.state_dict().items()}


def misfits(expected: Shapes, stored: Shapes) -> list[str]:
    """One line for every tensor that is missing, unexpected or of another shape."""
    return [
        *(f"missing: {name}" for name in expected if name not in stored),
        *(f"unexpected: {name}" for name in stored if name not in expected),
        *(
            f"shape of {name}: {stored[name]} in the file, {shape} by the config"
            for name, shape in expected.items()
            if stored.get(name, shape) != shape
        ),
    ]


def _save(model: nn.Module, names: Names, config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_released(model, names), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
