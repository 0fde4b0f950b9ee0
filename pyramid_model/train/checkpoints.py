"""Checkpoints of a training, written by all ranks in the background, at a path or in an object store.

A checkpoint is a folder `step-00000012`: the tensors in torch's distributed format (DCP), each rank with its shards,
and `whole.json`, which is written last, with size and checksum of each file. A local folder is written under another
name and renamed when it is whole. Object stores have no rename: a folder without `whole.json` does not count there.

A checkpoint that is damaged or comes from elsewhere cannot run code: sizes and checksums of all files are compared
before any is read, and `checkpoint_reader` creates tensors and plain values only.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Protocol

import fsspec
import fsspec.implementations.local
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from pyramid_model.train.checkpoint_names import WHOLE, checkpoint_name, step_of
from pyramid_model.train.checkpoint_reader import LIST, PlainPlanner, PlainReader
from pyramid_model.train.ranks import num_ranks, rank

LOG = logging.getLogger("pyramid.training")
PARTIAL = ".partial-"
BLOCK = 2**24  # bytes read at a time for a checksum
# One process needs no process group.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)


class DamagedCheckpoint(ValueError):
    """A checkpoint cannot be used; the message names the folder, the reason and the remedy."""

    def __init__(self, uri: str, reason: str):
        super().__init__(
            f"checkpoint {uri} cannot be used: {reason}. Remove it, and the training continues from the checkpoint "
            "before it, if there is one, or starts again"
        )


class Saved(Protocol):
    """A state that can be saved: `TrainState`."""

    step: int

    def tensors(self) -> dict[str, Any]:
        """All tensors, nested by role and name; loading fills them in place."""
        ...

    def facts(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        ...

    def restore(self, tensors: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Take over what was loaded."""
        ...


class Checkpoints:
    """The checkpoints of one training. All ranks create it and make the same calls.

    Args:
        uri: folder of the training's checkpoints, which all ranks can reach.
        keep_last: number of the newest checkpoints that are kept; the best one is kept too.
        about: the training, as JSON, which every checkpoint states.
    """

    def __init__(self, uri: str, keep_last: int = 2, about: Mapping[str, Any] | None = None):
        self.uri, self.keep_last, self.about = uri.rstrip("/"), keep_last, dict(about or {})
        self.fs, self.path = fsspec.core.url_to_fs(self.uri)
        self.is_local = isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)
        self.first = rank() == 0
        # Its own group: a checkpoint in the background must not mix its collectives with those of the next steps.
        self.group: Any = dist.new_group(backend="gloo") if num_ranks() > 1 else None
        self._writing: Future | None = None
        self._damaged: set[int] = set()

    def save(self, state: Saved, best: int | None = None) -> float:
        """Copy the state and write it in the background; waits for the checkpoint before it.

        Args:
            state: of a step.
            best: the step whose checkpoint is kept beside the last ones.

        Returns:
            Seconds for which the training stood still.

        Raises:
            OSError: the checkpoint before it could not be written, for example to a full disk.
        """
        started = time.perf_counter()
        self.wait()
        step, facts = state.step, state.facts()
        folder = self._folder(step, partial=self.is_local)
        if self.first:
            self._remove(self._folder(step))
            self._remove(folder)
        if self.group:
            dist.barrier(self.group)
        # Synchronous file calls: they raise at once if the disk is full.
        writer = FsspecWriter(self._url(folder), sync_files=False, overwrite=True)
        content = state.tensors()
        writing = async_save(content, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
        assert isinstance(writing, Future)
        whole: Future = Future()
        self._writing = whole
        writing.add_done_callback(lambda done: self._finish(done, whole, step, facts, best))
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait until the last checkpoint is whole.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except (Exception, CheckpointException) as err:  # the latter is no Exception
                raise OSError(
                    f"a checkpoint could not be written to {self.uri}: {_cause(err)}. Free space or memory there, and "
                    "start the training again: it continues from the last whole checkpoint"
                ) from err

    def exist(self) -> bool:
        """Whether there is a whole checkpoint."""
        return self._agreed(bool(self._steps()))

    def load(self, state: Saved, step: int | None = None) -> bool:
        """Restore the newest whole checkpoint, or that of `step`. A damaged one is reported, and the next older used.

        Returns whether there is a checkpoint.

        Raises:
            DamagedCheckpoint: there are checkpoints, and none can be used.
        """
        self.wait()
        steps = self._agreed(sorted(self._steps(), reverse=True) if step is None else [step])
        damage: DamagedCheckpoint | None = None
        for candidate in steps:
            try:
                self._restore(state, candidate)
                return True
            except DamagedCheckpoint as err:
                LOG.warning("%s", err)
                self._damaged.add(candidate)
                damage = damage or err
        if damage:
            raise damage
        return False

    def load_best(self, state: Saved) -> int:
        """Restore the checkpoint with the best validation if this training wrote it; returns the step of the state.

        Raises:
            DamagedCheckpoint: it cannot be used.
        """
        facts = state.facts()
        if facts["best"] and facts["first_step"] <= facts["best"][0] < state.step:
            self.load(state, step=facts["best"][0])
        return state.step

    def retire(self, best: int | None, keep_last: int) -> None:
        """Remove all but the newest checkpoints and the best, on the first rank; damaged ones are not the newest."""
        sound = sorted(set(self._steps()) - self._damaged)
        for step in set(self._steps()) - {*sound[-keep_last:], best}:
            self._remove(self._folder(step))

    def _restore(self, state: Saved, step: int) -> None:
        folder = self._folder(step)
        facts, reason = self._agreed(self._verified(folder) if self.first else None)
        if reason:
            raise DamagedCheckpoint(self._url(folder), reason)
        tensors = state.tensors()
        reader, planner = PlainReader(self._url(folder)), PlainPlanner()
        try:
            load(tensors, storage_reader=reader, planner=planner, process_group=self.group, no_dist=self.group is None)
            state.restore(tensors, facts)
        except (Exception, CheckpointException) as err:  # of other names or shapes
            raise DamagedCheckpoint(self._url(folder), f"it is of another training ({_cause(err)[:200]})") from err

    def _verified(self, folder: str) -> tuple[dict[str, Any] | None, str]:
        """(facts, "") of a checkpoint whose files are those that were written; otherwise (None, reason)."""
        try:
            whole = json.loads(self.fs.cat_file(f"{folder}/{WHOLE}"))
            names = {path.rsplit("/", 1)[-1] for path in self.fs.ls(folder, detail=False)} - {WHOLE}
            for name in sorted({LIST, *whole["files"]} - names):
                return None, f"its file {name[:100]} is missing"
            for name in sorted(names - whole["files"].keys()):
                return None, f"its file {name[:100]} is not in the list of {WHOLE}"
            for name, (size, checksum) in whole["files"].items():
                actual = self._checksum(f"{folder}/{name}")
                if actual != [size, checksum]:
                    change = "its checksum differs" if actual[0] == size else f"it has {actual[0]:,} of {size:,} bytes"
                    return None, f"its file {name} has changed: {change}"
            return whole["facts"], ""
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as err:
            return None, f"{WHOLE} cannot be read ({type(err).__name__})"

    def _finish(self, done: Future, whole: Future, step: int, facts: dict[str, Any], best: int | None) -> None:
        """Make the checkpoint appear, and remove old ones. Runs in the thread that wrote it."""
        try:
            done.result()
            if self.first:
                self._publish(step, facts)
                self.retire(best, self.keep_last)
            whole.set_result(None)
        except BaseException as err:
            whole.set_exception(err)

    def _publish(self, step: int, facts: dict[str, Any]) -> None:
        folder = self._folder(step, partial=self.is_local)
        files = {path.rsplit("/", 1)[-1]: self._checksum(path) for path in self.fs.ls(folder, detail=False)}
        content = json.dumps({"about": self.about, "facts": facts, "files": files})
        self.fs.pipe_file(f"{folder}/{WHOLE}", content.encode())
        if self.is_local:
            self.fs.mv(folder, self._folder(step), recursive=True)
        self._damaged.discard(step)

    def _steps(self) -> list[int]:
        """Steps of all checkpoints that are whole."""
        self.fs.invalidate_cache()
        if not self.first or not self.fs.exists(self.path):
            return []
        names = [path.rstrip("/").rsplit("/", 1)[-1] for path in self.fs.ls(self.path, detail=False)]
        steps = map(step_of, names)
        return [step for step in steps if step is not None and self.fs.exists(f"{self._folder(step)}/{WHOLE}")]

    def _agreed(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def _checksum(self, path: str) -> list[int]:
        """[size in bytes, CRC-32] of a file."""
        size = checksum = 0
        with self.fs.open(path, "rb") as file:
            while block := file.read(BLOCK):
                size, checksum = size + len(block), zlib.crc32(block, checksum)
        return [size, checksum]

    def _folder(self, step: int, partial: bool = False) -> str:
        return f"{self.path}/{PARTIAL if partial else ''}{checkpoint_name(step)}"

    def _url(self, folder: str) -> str:
        return self.fs.unstrip_protocol(folder) if not self.is_local else folder

    def _remove(self, folder: str) -> None:
        if self.fs.exists(folder):
            self.fs.rm(folder, recursive=True)


def _cause(err: BaseException) -> str:
    """The reason of an error. DCP keeps that of each rank in `failures`; torch.save hides that of a full disk."""
    failures = getattr(err, "failures", None)
    first = next(iter(failures.values()))[0] if failures else err
    hidden = first.__cause__ or first.__context__
    reason = hidden if isinstance(hidden, OSError) else first
    return f"{type(reason).__name__}: {reason}"
