"""The checkpoint of a training that several workers share, on any file system."""

from pathlib import Path

import torch
import torch.distributed as dist

from pyramid_model.train.loop import TrainState
from tasks.tables import storage


class SharedState(TrainState):
    """A `TrainState` with a checkpoint at a URI, which all workers load at the same step."""

    def save(self, path: str | Path) -> None:
        """Write everything to one file, atomically."""
        with storage.writing(str(path)) as local:
            super().save(local)

    def load(self, path: str | Path) -> bool:
        """Continue from a file if it exists; returns whether it existed."""
        if not storage.exists(str(path)):
            return False
        with storage.reading(str(path)) as local:
            return super().load(local)

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
