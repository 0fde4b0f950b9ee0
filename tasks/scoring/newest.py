"""Current scores: of several rows for a clip and scorer, the newest one counts, also if it failed."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import random
import time
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables.appending import append_again
from tasks.tables.delta import read_table, table_version
from tasks.tables.newest import ORDER, newest_by, newest_ok_by
from tasks.tables.rows import Lineage

COLUMNS = ("score_id", "clip_id", "scorer", "value", "status", *ORDER)
KEYS = ("clip_id", "scorer")
TRIES = 10


def score_arrays(root: str, clip_ids: Sequence[str], version: int | None = None) -> dict[str, np.ndarray]:
    """Scorer -> values in the order of the clips, float64, NaN for a clip without one; only scorers with values.

    version: of the table; None: the newest.
    """
    # The newest row of a clip and scorer is the newest attempt of its id, so attempts need not be chosen before.
    columns = ["clip_id", "scorer", "value", "status", *ORDER]
    of_clips = pc.field("clip_id").isin(pa.array(clip_ids, pa.string()))
    rows = newest_ok_by(read_table(root, "scores", columns, version, of_clips, newest=False), KEYS)
    rows = rows.select(["clip_id", "scorer", "value"]).filter(pc.field("value").is_valid())
    names = rows["scorer"].combine_chunks().dictionary_encode()
    places = pc.index_in(rows["clip_id"], value_set=pa.array(clip_ids, pa.string())).to_numpy()
    values, codes = rows["value"].to_numpy(), names.indices.to_numpy()
    arrays = {}
    for code, scorer in enumerate(names.dictionary.to_pylist()):
        arrays[scorer] = np.full(len(clip_ids), np.nan)
        arrays[scorer][places[codes == code]] = values[codes == code]
    return arrays


def make_newest(
    run: Run, score_ids: Sequence[str], clip_ids: Collection[str], rows_lineage: Lineage
) -> tuple[int, int]:
    """Append again each of these scores that is not the newest of its clip and scorer.

    A run that goes back to earlier weights or settings calls this: nothing is computed, and its scores count again.
    Another run with other weights may replace them at any time, so the steps that follow read the returned version.

    Returns:
        (number of rows appended, version of the table at which all of these scores are the newest).

    Raises:
        StepError: another run replaced scores at each try.
    """
    num_rows = 0
    for attempt in range(TRIES):
        # Two runs that take the same time for a turn would replace each other's scores at every turn.
        time.sleep(random.uniform(0, 0.1 * attempt))
        version = table_version(run.root, "scores")
        replaced = _replaced(score_ids, _scores_of(run.root, clip_ids, version)) if score_ids else []
        if not replaced:
            return num_rows, version
        num_rows += append_again(run.root, "scores", replaced, rows_lineage)
    raise StepError("another run on this root replaces the scores of this one again and again: let one run at a time")


def replaced_scores(root: str, scorer: str, score_ids: Sequence[str]) -> list[str]:
    """The ids of scores by one scorer that are not the newest of their clips, although they have a row."""
    rows = read_table(root, "scores", COLUMNS, where=pc.field("scorer") == scorer)
    committed = pa.array(score_ids, pa.string())
    committed = committed.filter(pc.is_in(committed, value_set=rows["score_id"].combine_chunks()))
    return _replaced(committed, rows)


def _replaced(score_ids: Sequence[str] | pa.Array, rows: pa.Table) -> list[str]:
    """The ids that are not the newest of their clip and scorer. rows: COLUMNS of all scores of the clips."""
    newest = newest_by(rows, KEYS)["score_id"].combine_chunks()
    ids = pa.array(score_ids, pa.string())
    return ids.filter(pc.invert(pc.is_in(ids, value_set=newest))).to_pylist()


def _scores_of(root: str, clip_ids: Collection[str], version: int) -> pa.Table:
    """COLUMNS of all scores of the clips, of any status, at a version of the table."""
    of_clips = pc.field("clip_id").isin(pa.array(list(clip_ids), pa.string()))
    return read_table(root, "scores", COLUMNS, version, of_clips)
