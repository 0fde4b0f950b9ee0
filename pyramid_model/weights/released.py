"""A whole released directory: a causal VAE, DiTs by resolution, text encoders, as the two repositories publish them."""

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
LATENT_NORMS = {MINIFLUX: MINIFLUX_LATENT_NORM, SD3: SD3_LATENT_NORM}  # of the repository, in none of its files
DIT_CLASSES = {MINIFLUX: MINIFLUX_CLASS, SD3: MMDIT_CLASS}
NUM_TEXT_PARTS = {MINIFLUX: 2, SD3: 3}  # CLIP and T5; two CLIPs and T5
PIPELINE_FILE = "model_index.json"  # of a directory that diffusers wrote


@dataclass(frozen=True)
class ReleasedDirectory:
    """What a released directory holds.

    Attributes:
        folder: the directory.
        variant: `miniFLUX` or `SD3`.
        vae: folder of the VAE.
        dits: folder of each DiT, by its name without `diffusion_transformer_`.
        text: (encoder, tokenizer) folders, CLIP first and T5 last.
        missing: folders that are not there.
    """

    folder: Path
    variant: str
    vae: Path
    dits: dict[str, Path]
    text: tuple[tuple[Path, Path], ...]
    missing: tuple[str, ...]

    @property
    def latent_norm(self) -> LatentNorm:
        """Shift and scale of this variant's latents. A DiT knows only those of the VAE beside it."""
        return LATENT_NORMS[self.variant]

    def dit(self, name: str) -> Path:
        """Folder of a DiT: `384p`, `768p`, `image`, or the folder's whole name.

        Raises:
            ValueError: there is none of that name; those that are there are named.
        """
        short = name.removeprefix(DIT_PREFIX)
        if short not in self.dits:
            raise ValueError(f"{self.folder} has no DiT {name!r}: it has {', '.join(self.dits) or 'none'}")
        return self.dits[short]

    def load_vae(self, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> CausalVideoVAE:
        """The VAE, with the latent norm of its variant. Raises as `weights.load_vae`."""
        return load_vae(self.vae, device, dtype, latent_norm=self.latent_norm)

    def load_dit(self, name: str, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> DiT:
        """The DiT of a name that `dit` takes. Raises as `dit` and `weights.load_dit`."""
        return load_dit(self.dit(name), device, dtype)


def find_released(folder: str | Path) -> ReleasedDirectory:
    """The parts of a released directory, all of which are there.

    Raises:
        FileNotFoundError: there is no such folder, or parts are missing; each is named.
        ValueError: it is another kind of folder; what was found is said.
    """
    found = survey(folder)
    if found.missing:
        raise FileNotFoundError(
            f"{found.folder} is a {found.variant} directory without {', '.join(found.missing)}: download what is "
            f"missing; there are {', '.join(_folders(found.folder))}"
        )
    return found


def survey(folder: str | Path) -> ReleasedDirectory:
    """As `find_released`, but parts may be missing; only config files are read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is another kind of folder, or DiTs of both variants are in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give a released directory")
    dits = {path.name.removeprefix(DIT_PREFIX): path for path in sorted(folder.glob(f"{DIT_PREFIX}*")) if path.is_dir()}
    if not dits and not (folder / VAE_FOLDER).is_dir():
        raise ValueError(f"{folder} {_what_it_is(folder)}; expected a released directory: {_layout()}")
    variant = _variant(folder, dits)
    text = tuple((folder / encoder, folder / words) for encoder, words in TEXT_PARTS[: NUM_TEXT_PARTS[variant]])
    wanted = [folder / VAE_FOLDER, *(path for pair in text for path in pair)]
    missing = [path.name for path in wanted if not path.is_dir()] + ([] if dits else [f"{DIT_PREFIX}*"])
    return ReleasedDirectory(folder, variant, folder / VAE_FOLDER, dits, text, tuple(missing))


def _variant(folder: Path, dits: dict[str, Path]) -> str:
    """By the class of the DiTs; where none can be read, by how many text encoders there are."""
    of_class = {name: variant for variant, name in DIT_CLASSES.items()}
    classes = {path.name: _class_in(path) for path in dits.values()}
    variants = {of_class[found] for found in classes.values() if found in of_class}
    if len(variants) > 1:
        each = ", ".join(f"{name} a {found}" for name, found in classes.items())
        raise ValueError(f"{folder} mixes both variants: {each}; each has latents of its own, keep them apart")
    if variants:
        return variants.pop()
    return SD3 if (folder / TEXT_PARTS[-1][0]).is_dir() else MINIFLUX


def _class_in(folder: Path) -> str:
    """Class of a model folder; "" if its config is missing or damaged, which loading the model will tell."""
    try:
        return class_of(read_json(folder / CONFIG_FILE))
    except (FileNotFoundError, ValueError):
        return ""


def _what_it_is(folder: Path) -> str:
    """What a folder holds instead, to follow its name."""
    if (folder / PIPELINE_FILE).is_file():
        return f"is a {class_of(read_json(folder / PIPELINE_FILE)) or 'diffusers'} directory"
    if (folder / CONFIG_FILE).is_file():
        found = class_of(read_json(folder / CONFIG_FILE))
        return f"is the folder of one model, a {found}" if found else "is the folder of one model"
    return f"holds {', '.join(_folders(folder)) or 'no folders'}"


def _folders(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _layout() -> str:
    return f"{VAE_FOLDER}, {DIT_PREFIX}* and {', '.join(name for pair in TEXT_PARTS[:2] for name in pair)}"
