"""Current scores: of several rows for a clip and scorer, the newest one counts, also if it failed."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.running.run import Run
from tasks.tables.appending import append_again
from tasks.tables.delta import Lineage, read_table
from tasks.tables.newest import ORDER, newest_by, newest_ok_by

COLUMNS = ("score_id", "clip_id", "scorer", "value", "status", *ORDER)
KEYS = ("clip_id", "scorer")


def score_arrays(root: str, clip_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Scorer -> values in the order of the clips, float64, NaN for a clip without one; only scorers with values."""
    rows = newest_ok_by(_scores_of(root, clip_ids), KEYS).filter(pc.field("value").is_valid())
    names = rows["scorer"].combine_chunks().dictionary_encode()
    places = pc.index_in(rows["clip_id"], value_set=pa.array(clip_ids, pa.string())).to_numpy()
    values, codes = rows["value"].to_numpy(), names.indices.to_numpy()
    arrays = {}
    for code, scorer in enumerate(names.dictionary.to_pylist()):
        arrays[scorer] = np.full(len(clip_ids), np.nan)
        arrays[scorer][places[codes == code]] = values[codes == code]
    return arrays


def make_newest(run: Run, score_ids: Sequence[str], clip_ids: Collection[str], rows_lineage: Lineage) -> int:
    """Append again each of these scores that is not the newest of its clip and scorer; returns how many.

    A run that goes back to earlier weights or settings calls this: nothing is computed, and its scores count again.
    """
    newest = set(newest_by(_scores_of(run.root, clip_ids), KEYS)["score_id"].to_pylist())
    replaced = [score_id for score_id in score_ids if score_id not in newest]
    return append_again(run.root, "scores", replaced, rows_lineage)


def _scores_of(root: str, clip_ids: Collection[str]) -> pa.Table:
    """COLUMNS of all scores of the clips, of any status."""
    of_clips = pc.field("clip_id").isin(pa.array(list(clip_ids), pa.string()))
    return read_table(root, "scores", COLUMNS, where=of_clips)
