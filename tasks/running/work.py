"""Per-item work on Ray: the declaration of a step, and the interface of its worker.

This module does not import Ray: a step declares its work even if no item is pending.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pyramid_model.config import Config
from tasks.tables.rows import Row

# One input of a step, with its id: a TypedDict of JSON values. `Pending.items` adds its `attempt`.
Item = TypeVar("Item", bound=Mapping[str, object])
Item_contra = TypeVar("Item_contra", bound=Mapping[str, object], contravariant=True)


@dataclass(frozen=True)
class Produced:
    """Output of a worker for one block of items.

    Args:
        rows: rows by table. The table `PerItemWork.done_table` has one row for each item, with its status.
        seconds: timings by name; their sums over all blocks are in the timings of the step's result.
    """

    rows: Mapping[str, Sequence[Row]]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Worker(Protocol[Item_contra]):
    """Computes the rows of items, one block after another, in one actor.

    The actor builds it once; the constructor loads models. An item that cannot be computed becomes a row with `status`,
    `error_type` and `error`; an exception stops the whole step. A block may be computed twice, if its first actor died:
    the same items must give rows with the same ids.
    """

    def __call__(self, items: Sequence[Item_contra], /) -> Produced:
        """Rows of these items."""
        ...


@dataclass(frozen=True)
class PerItemWork(Generic[Item]):
    """Work of a step, computed by `tasks.running.pipeline.run_blocks`.

    Args:
        step: name of the step, for lineage and progress.
        version: VERSION of what the worker computes, for lineage.
        config: settings whose hash is written into the rows.
        worker: builds the worker in an actor: its class, or a `functools.partial` of it with the arguments.
        done_table: table in which the row of an item has its status and means that it is done. Its rows are committed
            after those of all other tables, so that all rows of a done item are committed.
        block_size: items in a block: the unit of commit, and the most work lost when a machine dies.
        max_block_bytes: most bytes in a block, by `size_bytes` of the items; a larger item is a block of its own.
        num_cpus: CPUs that an actor reserves.
        num_gpus: GPUs that an actor reserves.
        max_actors: most actors, where a resource outside the cluster limits them; None: as many as fit.
        since: versions of tables at which the step looked which rows they have; an actor then looks only at the
            commits of others after these versions. In a table that is not named it looks at all rows.
        patience_s: the step stops when no block has finished for this time, s; None: `ray.no_progress_timeout_s`.
    """

    step: str
    version: str
    config: Config
    worker: Callable[[], Worker[Item]]
    done_table: str
    block_size: int = 16
    max_block_bytes: float = math.inf
    num_cpus: float = 0.5
    num_gpus: float = 0.0
    max_actors: int | None = None
    since: Mapping[str, int] = field(default_factory=dict)
    patience_s: float | None = None
