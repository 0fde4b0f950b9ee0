"""Files of named tensors: finding them in a folder, checking that they are complete, reading headers and tensors.

Supports safetensors files and files of torch.save, in one piece or in shards. No code in a file is ever run.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".bin")  # of the weights in a model folder
MAX_HEADER_BYTES = 100_000_000  # limit of the safetensors format
LFS_MARK, LFS_NOTE_BYTES = b"version https://git-lfs", 1024  # start and largest size of a git-lfs pointer file
AGAIN = "download it again"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}


@dataclass(frozen=True)
class Header:
    """Properties of one tensor in a file, known without reading the tensor; dtype: torch's name, such as `bfloat16`."""

    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


def weight_files(folder: Path, stem: str, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Weight files of a model folder, in order: one file, or the shards in an index.

    Args:
        folder: the model's folder.
        stem: file name without its suffix, such as `diffusion_pytorch_model`.
        suffixes: in order of preference.

    Raises:
        FileNotFoundError: there are no weights, or a shard is missing.
        ValueError: the index is damaged.
    """
    for suffix in suffixes:
        whole, index = folder / (stem + suffix), folder / f"{stem}{suffix}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _shards(index)
    names = " or ".join(stem + suffix for suffix in suffixes)
    raise FileNotFoundError(f"no {names} in {folder}, in one piece or with an index of shards: download the weights")


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{index} has no `weight_map` from tensors to files: {AGAIN}")
    names = sorted(set(table.values()))
    if foreign := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names files outside its folder: {', '.join(foreign)}")
    files = [index.parent / name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{index} names {', '.join(missing)}: missing, download {len(missing)} more")
    absent = sorted(set(table) - set(read_headers(files)))
    if absent:
        raise ValueError(f"{index} lists tensors that are in no shard, such as {absent[0]}: {AGAIN}, all shards")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it contains something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    check_whole(path)
    content = path.read_bytes()
    try:
        table = json.loads(content)
    except ValueError as err:  # not JSON, or not text
        raise ValueError(f"{path} ({len(content):,} bytes) is not valid JSON: {err}; {AGAIN}") from err
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds a JSON {type(table).__name__}, not an object with keys: {AGAIN}")
    return table


def read_headers(files: Sequence[Path]) -> dict[str, Header]:
    """Read shapes and dtypes of all tensors in some files, without reading the tensors.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is cut off, damaged, empty, or a git-lfs pointer.
    """
    headers: dict[str, Header] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file: give the path of the weights, nothing is downloaded")
        check_whole(file)
        headers |= _safetensors_headers(file) if file.suffix == SAFETENSORS else _torch_headers(file)
    return headers


def open_tensors(files: Sequence[Path], entry: str = "") -> dict[str, Tensor]:
    """Open all tensors in some files, on the CPU. Files are memory-mapped: a tensor needs no memory until it is used.

    Args:
        files: as in `read_headers`.
        entry: key of the table of tensors in a file of torch.save; ignored if the file has no such key.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, contains something else, or cannot be read without running code.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == SAFETENSORS:
            read_headers([file])
            try:
                with safe_open(file, framework="pt") as opened:
                    tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
            except SafetensorError as err:
                raise ValueError(f"{file} is damaged: {err}; {AGAIN}") from err
        else:
            tensors |= _torch_tensors(file, "cpu", entry)
    return tensors


def check_whole(path: Path) -> None:
    """Check that a file has content other than a git-lfs pointer.

    Raises:
        ValueError: the file is empty, or only a git-lfs pointer.
    """
    with path.open("rb") as file:
        start = file.read(LFS_NOTE_BYTES)
    if not start:
        raise ValueError(f"{path} is empty (0 bytes): {AGAIN}")
    if start.startswith(LFS_MARK):
        sizes = [line.split()[1] for line in start.decode(errors="replace").splitlines() if line.startswith("size ")]
        size = f"of {int(sizes[0]):,} bytes " if sizes and sizes[0].isdigit() else ""
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is only a git-lfs pointer to a file {size}that was not downloaded: "
            "run `git lfs pull` in its repository, or download the file itself"
        )


def _safetensors_headers(path: Path) -> dict[str, Header]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"{path} ({size:,} bytes) is not a safetensors file: it has no header; {AGAIN}")
        if 8 + length > size:
            raise ValueError(
                f"{path} is cut off inside its header: it has {size:,} bytes, the header alone {8 + length:,}; {AGAIN}"
            )
        header = file.read(length)
    try:
        table = {name: facts for name, facts in json.loads(header).items() if name != "__metadata__"}
        headers = {
            name: Header(
                shape=tuple(facts["shape"]),
                dtype=DTYPES.get(facts["dtype"]) or facts["dtype"].lower(),
                size_bytes=facts["data_offsets"][1] - facts["data_offsets"][0],
            )
            for name, facts in table.items()
        }
        end = 8 + length + max((facts["data_offsets"][1] for facts in table.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as err:
        raise ValueError(f"{path} ({size:,} bytes) is damaged: its header cannot be read ({err}); {AGAIN}") from err
    if size != end:
        damage = "cut off" if size < end else "damaged"
        raise ValueError(f"{path} is {damage}: it has {size:,} bytes, {end:,} according to its header; {AGAIN}")
    return headers


def _torch_headers(path: Path) -> dict[str, Header]:
    return {
        name: Header(tuple(value.shape), str(value.dtype).removeprefix("torch."), value.numel() * value.element_size())
        for name, value in _torch_tensors(path, "meta", "").items()
    }


def _torch_tensors(path: Path, device: str, entry: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the path of the weights, nothing is downloaded")
    check_whole(path)
    try:
        # Checkpoints of the published VAE training contain the command line as a Namespace, which is data, not code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as err:
        size = f"{path} ({path.stat().st_size:,} bytes)"
        if code := _code_in(path):
            raise ValueError(
                f"{size} cannot be read without running code: besides tensors it contains {', '.join(code)}. "
                "Use the weights in safetensors form, or save only the tensors"
            ) from err
        raise ValueError(
            f"{size} holds no weights that can be read without running code: it is cut off, or no file of torch.save; "
            f"{AGAIN}"
        ) from err
    if entry and isinstance(stored, dict) and isinstance(stored.get(entry), dict):
        stored = stored[entry]
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} does not contain a table of named tensors: save the state dict of the model")
    return stored


def _code_in(path: Path) -> list[str]:
    """Names that a file of torch.save would call when loaded, besides tensors; empty if they cannot be determined."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        return []
