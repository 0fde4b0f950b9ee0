"""The checkpoint of a training that several workers share, on any file system."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from pyramid_model.train.loop import TrainState
from pyramid_model.train.saved_state import previous_of
from tasks.tables import storage


class SharedState(TrainState):
    """A `TrainState` with a checkpoint at a URI, which all workers load at the same step."""

    def save(self, path: str | Path) -> None:
        """Write everything to one file, atomically; the file before it stays as `previous_of`."""
        was_damaged = self.newest_is_damaged
        with tempfile.TemporaryDirectory(dir=_folder_beside(str(path))) as folder:
            local = os.path.join(folder, "state.pt")
            super().save(local)
            if storage.exists(str(path)) and not was_damaged:
                storage.move(str(path), previous_of(path))
            storage.publish(local, str(path))

    def _restore(self, path: str, name: str = "") -> bool:
        """As that of `TrainState`, for a URI."""
        if not storage.exists(path):
            return False
        with storage.reading(path) as local:
            return super()._restore(local, name or path)

    def load_alike(self, path: str) -> None:
        """Reload until all workers have the same step.

        A worker of a killed driver may write a newer checkpoint while the workers read.
        """
        while True:
            self.load(path)
            if not dist.is_initialized() or dist.get_world_size() == 1:
                return
            steps = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
            device = next(self.objective.parameters()).device
            steps = [step.to(device) for step in steps]
            dist.all_gather(steps, torch.tensor([self.step], device=device))
            if len({int(step) for step in steps}) == 1:
                return


def _folder_beside(uri: str) -> str | None:
    """Local folder of a file, so that a rename completes it; None if the file is not local."""
    if not storage.is_local(uri):
        return None
    folder = os.path.dirname(storage.filesystem(uri)[1])
    os.makedirs(folder, exist_ok=True)
    return folder
