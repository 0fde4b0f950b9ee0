"""Which ids of new rows a table may already have, without a search of the table at every commit."""

import json
import threading

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from tasks.tables import storage
from tasks.tables.log import entry_name, log_folder
from tasks.tables.parquet_files import read_parquet
from tasks.tables.schemas import ID_COLUMNS
from tasks.tables.text_hashes import text_hashes


class CommittedIds:
    """64-bit hashes of the ids that were committed to a table: 8 bytes a row, brought up to date from its log.

    The actors of a step need only the ids that others commit while the step runs: the step knows which ids had rows
    before, and its own blocks have no ids in common. They hold next to nothing, whatever the size of the table.

    Args:
        table: name of the table.
        since: version after which commits are read; None: every row of the table.
        writer: files whose names begin with it are not read; empty: all files are read.
    """

    def __init__(self, table: str, since: int | None = None, writer: str = ""):
        self.table, self.version, self.writer = table, since, writer
        self._sorted: list[np.ndarray] = []  # each at most half as long as the one before
        self._lock = threading.Lock()

    def may_contain(self, delta: DeltaTable, ids: pa.ChunkedArray) -> np.ndarray:
        """Whether each id may have been committed up to the version of the open table: False is certain."""
        with self._lock:
            for name in self._new_files(delta):
                self._add(text_hashes(read_parquet(storage.join(delta.table_uri, name), [ID_COLUMNS[self.table]])[0]))
            self.version = max(delta.version(), -1 if self.version is None else self.version)
            hashes = text_hashes(ids)
            possible = np.zeros(len(hashes), bool)
            for part in self._sorted:
                places = np.minimum(np.searchsorted(part, hashes), len(part) - 1)
                possible |= part[places] == hashes
            return possible

    def _new_files(self, delta: DeltaTable) -> list[str]:
        """Names of the files that were added since the last call."""
        if self.version is not None:
            try:
                return self._added(delta)
            except FileNotFoundError:  # the entries were removed, after a day: every file is read
                pass
        return [name for name in pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist() if self._reads(name)]

    def _added(self, delta: DeltaTable) -> list[str]:
        folder, names = log_folder(delta.table_uri), []
        for version in range((self.version or 0) + 1, delta.version() + 1):
            for line in storage.read_bytes(storage.join(folder, entry_name(version))).splitlines():
                added = json.loads(line).get("add")
                # Rows of merged files were in other files before.
                if added and added["dataChange"] and self._reads(added["path"]):
                    names.append(added["path"])
        fs, path = storage.filesystem(delta.table_uri)
        if missing := [name for name in names if not fs.exists(f"{path}/{name}")]:  # merged and then vacuumed
            raise FileNotFoundError(missing[0])
        return names

    def _reads(self, name: str) -> bool:
        return not self.writer or not name.startswith(self.writer)

    def _add(self, hashes: np.ndarray) -> None:
        if len(hashes):
            self._sorted.append(np.sort(hashes))
        while len(self._sorted) > 1 and 2 * len(self._sorted[-1]) > len(self._sorted[-2]):
            self._sorted.append(np.sort(np.concatenate([self._sorted.pop(), self._sorted.pop()]), kind="stable"))


_OF_PROCESS: dict[tuple[str, str], CommittedIds] = {}  # by table and its id, for calls without ids of their own


def of_process(delta: DeltaTable, table: str) -> CommittedIds:
    """The ids of a whole table, held once in this process."""
    return _OF_PROCESS.setdefault((delta.table_uri, str(delta.metadata().id)), CommittedIds(table))
