"""LoRA adapters that generation adds to a DiT."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyramid_model.config import UsedLoRA
from tasks.models.folders import empty_dit
from tasks.tables import storage
from tasks.tables.stored_folders import local_folder

if TYPE_CHECKING:
    from pyramid_model.dit.transformer import DiT
    from pyramid_model.weights.lora import LoRA


def absolute(loras: Sequence[UsedLoRA]) -> tuple[UsedLoRA, ...]:
    """The adapters with absolute paths, for processes with another working directory."""
    return tuple(lora.model_copy(update={"folder": storage.absolute(lora.folder)}) for lora in loras)


def checked_hashes(loras: Sequence[UsedLoRA], dit: str) -> list[list[str | float]]:
    """Hash and weight of each adapter, after a check that it belongs to the DiT in a folder. Loads no weights of it.

    Raises:
        FileNotFoundError: a file of an adapter is missing.
        ValueError: an adapter is damaged, of a kind that is not supported, or of another model.
    """
    if not loras:
        return []
    from pyramid_model.weights.lora import Adapters, load_lora, lora_hash

    adapters, hashes = Adapters(empty_dit(dit)), []
    for lora in loras:
        with local_folder(lora.folder) as folder:
            adapters.check(load_lora(folder))
            hashes.append([lora_hash(folder), lora.weight])
    return hashes


def add_loras(dit: "DiT", loras: Sequence[UsedLoRA]) -> None:
    """Add adapters to the weights of a DiT. Raises as `checked_hashes`."""
    from pyramid_model.weights.lora import Adapters

    if loras:
        Adapters(dit).set([(_load(lora), lora.weight) for lora in loras])


def _load(lora: UsedLoRA) -> "LoRA":
    from pyramid_model.weights.lora import load_lora

    with local_folder(lora.folder) as folder:
        return load_lora(folder)
