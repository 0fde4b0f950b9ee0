"""Reading of torch's distributed checkpoints (DCP) without running code that is in their files.

DCP stores its list of tensors with pickle, and values that are no tensors with `torch.save`, and reads both without
limits. Here both may contain the classes of a checkpoint and plain values only.
"""

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

LIST = ".metadata"  # DCP's name of the list of tensors
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
}


class ListUnpickler(pickle.Unpickler):
    """Unpickler of the list of tensors; it creates only the classes that such a list contains."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of a name.

        Raises:
            UnpicklingError: no list of tensors has this name.
        """
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{LIST} names {module[:100]}.{name[:100]}, which no list of tensors contains")
        return super().find_class(module, name)


class PlainReader(FsspecReader):
    """DCP's reader of a folder; it reads the list of tensors without running code from it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of tensors of a checkpoint.

        Raises:
            UnpicklingError: the file is no list of tensors, or names a file outside of its folder.
        """
        with self.fs.create_stream(self.fs.concat_path(self.path, LIST), "rb") as file:
            metadata = ListUnpickler(file).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise pickle.UnpicklingError(f"{LIST} is no list of tensors")
        names = {str(info.relative_path) for info in metadata.storage_data.values()}
        if outside := [name for name in names if "/" in name or name in ("", "..")]:
            raise pickle.UnpicklingError(f"{LIST} names the file {outside[0][:100]!r}, which is not in its folder")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class PlainPlanner(DefaultLoadPlanner):
    """DCP's load planner; it reads values other than tensors without running code from their file."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value other than a tensor, such as a learning rate, into the state."""
        path = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, path, torch.load(value, weights_only=True))
