"""A lost machine is told from a bug, also when another error was raised because of it."""

import pytest

from tasks.running.errors import StepError, machine_lost


def raised(err: Exception, cause: Exception | None = None, hide: bool = False) -> Exception:
    try:
        try:
            raise cause or ValueError("first")
        except Exception as first:
            if hide:
                raise err from None
            raise err from (first if cause else None)
    except Exception as last:
        return last


@pytest.mark.parametrize(
    "err", [ConnectionResetError("reset"), TimeoutError("late"), StepError("gone", transient=True)]
)
def test_errors_of_connections_and_transient_ones_are_lost_machines(err):
    assert machine_lost(err)
    assert machine_lost(raised(RuntimeError("stopped"), cause=err))


@pytest.mark.parametrize("err", [None, ValueError("wrong"), StepError("full disk"), MemoryError(), OSError(28, "full")])
def test_bugs_and_bad_settings_are_not(err):
    assert not machine_lost(err)


def test_a_cause_that_was_hidden_does_not_count():
    assert not machine_lost(raised(RuntimeError("stopped"), cause=ConnectionError("lost"), hide=True))
