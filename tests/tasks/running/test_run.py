"""Sums of results, and which records of progress are logged."""

import logging
import math

from tasks.running.run import PROGRESS, Sparse, StepResult, added, merged


def test_results_of_one_step_add_up():
    first = StepResult(
        step="captions", num_in=3, num_ok=2, num_failed=1, rows={"captions": 3}, versions={"captions": 4}
    )
    second = StepResult(step="captions", num_in=2, num_done=2, versions={"captions": 5}, errors={"empty": 1})
    total = merged([first, second])
    assert (total.num_in, total.num_done, total.num_new, total.note) == (5, 2, 3, "")
    assert (total.rows, total.versions, total.errors) == ({"captions": 3}, {"captions": 5}, {"empty": 1})
    assert merged([second]).note == "nothing new"
    assert merged([second], "all known").note == "all known"


def test_numbers_are_added_by_name():
    assert added([{"a": 1, "b": 2}, {"b": 3}, {}]) == {"a": 1, "b": 5}


def progress(done: int, step: str = "clips") -> logging.LogRecord:
    record = logging.LogRecord(PROGRESS.name, logging.INFO, "", 0, "", (), None)
    record.__dict__.update(step=step, done=done, total=9)
    return record


def test_progress_passes_first_and_at_the_end_and_other_records_always():
    sparse = Sparse(every_s=math.inf)
    assert [bool(sparse.filter(progress(done))) for done in (1, 2, 3, 9)] == [True, False, False, True]
    assert sparse.filter(progress(1, step="scores"))
    assert sparse.filter(logging.LogRecord("other", logging.INFO, "", 0, "", (), None))
