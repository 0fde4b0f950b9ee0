"""A released directory, as the two repositories publish it: a causal VAE, DiTs by resolution, and text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pyramid_model.config import MINIFLUX_LATENT_NORM, SD3_LATENT_NORM, LatentNorm
from pyramid_model.dit.transformer import DiT
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.released_names import (
    CONFIG_FILE,
    DIT_PREFIX,
    MINIFLUX_CLASS,
    MMDIT_CLASS,
    TEXT_PARTS,
    VAE_FOLDER,
)
from pyramid_model.weights.tensor_files import read_json
from pyramid_model.weights.weights import Device, class_of, load_dit, load_vae

MINIFLUX, SD3 = "miniFLUX", "SD3"
LATENT_NORMS = {MINIFLUX: MINIFLUX_LATENT_NORM, SD3: SD3_LATENT_NORM}  # not stated in any file of the repositories
DIT_CLASSES = {MINIFLUX: MINIFLUX_CLASS, SD3: MMDIT_CLASS}
NUM_TEXT_PARTS = {MINIFLUX: 2, SD3: 3}  # CLIP and T5; two CLIPs and T5
PIPELINE_FILE = "model_index.json"  # in a directory that diffusers wrote


@dataclass(frozen=True)
class ReleasedDirectory:
    """Contents of a released directory.

    Attributes:
        folder: the directory.
        variant: `miniFLUX` or `SD3`.
        vae: folder of the VAE.
        dits: folder of each DiT, by its name without `diffusion_transformer_`.
        text: (encoder, tokenizer) folders, CLIP first and T5 last.
        missing: names of folders that do not exist.
    """

    folder: Path
    variant: str
    vae: Path
    dits: dict[str, Path]
    text: tuple[tuple[Path, Path], ...]
    missing: tuple[str, ...]

    @property
    def latent_norm(self) -> LatentNorm:
        """Shift and scale of this variant's latents; the DiTs of a directory were trained with its VAE's norm."""
        return LATENT_NORMS[self.variant]

    def dit(self, name: str) -> Path:
        """Folder of a DiT. name: `384p`, `768p`, `image`, or the folder's whole name.

        Raises:
            ValueError: no DiT has that name; the message lists the names.
        """
        short = name.removeprefix(DIT_PREFIX)
        if short not in self.dits:
            raise ValueError(f"{self.folder} has no DiT {name!r}: it has {', '.join(self.dits) or 'none'}")
        return self.dits[short]

    def load_vae(self, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> CausalVideoVAE:
        """Load the VAE, with the latent norm of its variant. Raises as `weights.load_vae`."""
        return load_vae(self.vae, device, dtype, latent_norm=self.latent_norm)

    def load_dit(self, name: str, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> DiT:
        """Load a DiT by its name, as in `dit`. Raises as `dit` and `weights.load_dit`."""
        return load_dit(self.dit(name), device, dtype)


def find_released(folder: str | Path) -> ReleasedDirectory:
    """Find the parts of a complete released directory.

    Raises:
        FileNotFoundError: the folder does not exist, or parts are missing; the message lists them.
        ValueError: the folder is of another kind; the message describes it.
    """
    directory = survey(folder)
    if directory.missing:
        raise FileNotFoundError(
            f"{directory.folder} is a {directory.variant} directory without {', '.join(directory.missing)}: download "
            f"the missing parts; present are {', '.join(_folders(directory.folder))}"
        )
    return directory


def survey(folder: str | Path) -> ReleasedDirectory:
    """As `find_released`, but parts may be missing. Reads config files only.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folder is of another kind, or contains DiTs of both variants.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give a released directory")
    dits = {path.name.removeprefix(DIT_PREFIX): path for path in sorted(folder.glob(f"{DIT_PREFIX}*")) if path.is_dir()}
    if not dits and not (folder / VAE_FOLDER).is_dir():
        raise ValueError(f"{folder} {_what_it_is(folder)}; expected a released directory: {_layout()}")
    variant = _variant(folder, dits)
    text = tuple((folder / encoder, folder / tokenizer) for encoder, tokenizer in TEXT_PARTS[: NUM_TEXT_PARTS[variant]])
    required = [folder / VAE_FOLDER, *(path for pair in text for path in pair)]
    missing = [path.name for path in required if not path.is_dir()] + ([] if dits else [f"{DIT_PREFIX}*"])
    return ReleasedDirectory(folder, variant, folder / VAE_FOLDER, dits, text, tuple(missing))


def _variant(folder: Path, dits: dict[str, Path]) -> str:
    """Variant by the class of the DiTs; if no DiT can be read, by the number of text encoders."""
    variant_by_class = {name: variant for variant, name in DIT_CLASSES.items()}
    classes = {path.name: _class_in(path) for path in dits.values()}
    variants = {variant_by_class[name] for name in classes.values() if name in variant_by_class}
    if len(variants) > 1:
        each = ", ".join(f"{folder_name} a {name}" for folder_name, name in classes.items())
        raise ValueError(
            f"{folder} mixes both variants: {each}; their latents differ, so move them to separate directories"
        )
    if variants:
        return variants.pop()
    return SD3 if (folder / TEXT_PARTS[-1][0]).is_dir() else MINIFLUX


def _class_in(folder: Path) -> str:
    """Class of a model folder; "" if its config is missing or damaged, which loading the model will report."""
    try:
        return class_of(read_json(folder / CONFIG_FILE))
    except (FileNotFoundError, ValueError):
        return ""


def _what_it_is(folder: Path) -> str:
    """Description of a folder that is not a released directory; continues a sentence that begins with its name."""
    if (folder / PIPELINE_FILE).is_file():
        return f"is a {class_of(read_json(folder / PIPELINE_FILE)) or 'diffusers'} directory"
    if (folder / CONFIG_FILE).is_file():
        name = class_of(read_json(folder / CONFIG_FILE))
        return f"is the folder of one model, a {name}" if name else "is the folder of one model"
    return f"holds {', '.join(_folders(folder)) or 'no folders'}"


def _folders(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _layout() -> str:
    return f"{VAE_FOLDER}, {DIT_PREFIX}* and {', '.join(name for pair in TEXT_PARTS[:2] for name in pair)}"
