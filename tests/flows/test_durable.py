"""What every flow does with its steps. Runs in about 5 s."""

import pickle

import pytest
from prefect.states import Failed

from flows.durable import _failed_machine
from tasks.pipeline import StepError


def caused(err: Exception, cause: Exception) -> Exception:
    err.__cause__ = cause
    return err


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError(), True),
        (StepError("a node died", transient=True), True),
        (caused(StepError("stopped"), TimeoutError()), True),
        (pickle.loads(pickle.dumps(StepError("from another process", transient=True))), True),
        (StepError("no disk space"), False),
        (caused(StepError("stopped"), ValueError("crf")), False),
        (ValueError("crf"), False),
    ],
    ids=repr,
)
def test_only_what_a_lost_machine_caused_is_tried_again(error, again):
    assert _failed_machine(None, None, Failed(data=error)) is again
