"""Hashes of the files of a model."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

HASHED = (".safetensors", ".json", ".model", ".txt")  # weights, configs and every kind of tokenizer file


def files_hash(folder: Path, files: Iterable[Path]) -> str:
    """Hash of several files, 32 hex digits: blake2b over names (relative to the folder), sizes and bytes, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while chunk := file.read(4 * 2**20):
                digest.update(chunk)
    return digest.hexdigest()


def text_encoder_hash(folder: str | Path) -> str:
    """Hash of the encoders' weights, tokenizers and configs, 32 hex digits of blake2b. Loads no model.

    Raises:
        ValueError: the folder has no weights.
    """
    from pyramid_model.text import released_text_parts  # imports torch, which other hashes do not need

    folder = Path(folder)
    parts = [folder / name for part in released_text_parts(folder) for name in part] or [folder]
    files = sorted(path for part in parts for path in part.iterdir() if path.suffix in HASHED)
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{folder} has no .safetensors file: it is not a text encoder")
    return files_hash(folder, files)
