"""Work that is done item by item on Ray: what a step declares, and what its worker takes and returns.

Nothing here imports Ray: a step declares its work whether or not anything is to be done.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyramid_model.config import Config

Item = dict[str, Any]  # JSON-able: one input of a step, with its id and its `attempt`
Row = dict[str, Any]  # of a table, without the columns of lineage


@dataclass(frozen=True)
class Produced:
    """What a worker made of one block of items.

    Args:
        rows: by table. The table that `PerItemWork.done_table` names has one row an item, with its status.
        seconds: where the time went, by name; added up over all blocks into the timings of the step's result.
    """

    rows: Mapping[str, Sequence[Row]]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Worker(Protocol):
    """Computes the rows of items, block after block, in one actor.

    The actor builds it once, as `worker(**worker_args)`: models are loaded there. An item that cannot be computed is a
    row with `status`, `error_type` and `error`; an exception stops the whole step. A block may come a second time,
    after its first actor died: the same items give rows of the same ids.
    """

    def __call__(self, items: list[Item], /) -> Produced:
        """Rows of these items."""
        ...


@dataclass(frozen=True)
class PerItemWork:
    """Work that a step has done by `tasks.running.pipeline.run_blocks`.

    Args:
        step: name of the step, for lineage and progress.
        version: VERSION of what the worker computes, for lineage.
        config: settings whose hash stands in the rows.
        worker: class of the worker.
        worker_args: what an actor builds it with.
        done_table: table whose row of an item says that the item is done, and how it ended. Its rows are committed
            after those of all other tables, so that an item is never done before everything of it is there.
        block_size: items a block, the unit of commit and of loss when a machine dies.
        max_block_bytes: most of the items' `size_bytes` in one block; a larger item is a block of its own.
        num_cpus: CPUs that an actor reserves.
        num_gpus: GPUs that an actor reserves.
        max_actors: most actors, where they share something scarcer than this cluster; None: as many as fit.
        patience_s: the step stops when no block has finished for so long; None: `ray.no_progress_timeout_s`.
    """

    step: str
    version: str
    config: Config
    worker: Callable[..., Worker]
    done_table: str
    worker_args: Mapping[str, Any] = field(default_factory=dict)
    block_size: int = 16
    max_block_bytes: float = math.inf
    num_cpus: float = 0.5
    num_gpus: float = 0.0
    max_actors: int | None = None
    patience_s: float | None = None
