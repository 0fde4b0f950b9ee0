"""The error of a step that stops, and whether an error comes from a lost machine or connection."""

RESUME = "Committed blocks are kept: fix the cause and run the same command again."
# Package and name of exception classes, so that no package is imported. OutOfMemoryError of torch is not among them.
MACHINE_LOST = {
    "builtins.ConnectionError",
    "builtins.TimeoutError",
    "requests.ConnectionError",
    "requests.Timeout",
    "ray.ActorDiedError",
    "ray.ActorUnavailableError",
    "ray.NodeDiedError",
    "ray.OutOfMemoryError",
    "ray.PreemptionError",
    "ray.WorkerCrashedError",
    "ray.WorkerGroupStartupTimeoutError",
    "ray.WorkerHealthCheckFailedError",
    "ray.WorkerHealthCheckTimeoutError",
}


class StepError(RuntimeError):
    """A step stopped for a reason other than its data: no disk space, no progress, a bug, a lost machine.

    transient: a machine or a connection was lost, so the same step may succeed when it runs again.
    """

    def __init__(self, message: str, transient: bool = False):
        super().__init__(message)
        self.transient = transient


# Errors whose messages say what to do; any other error is a bug and is shown with its traceback.
EXPECTED_ERRORS = (StepError, OSError, ValueError)


def machine_lost(err: BaseException | None) -> bool:
    """Whether an error or one of its causes is a lost machine or connection, so that a retry may succeed."""
    while err is not None:
        names = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(err).__mro__}
        if getattr(err, "transient", False) or names & MACHINE_LOST:
            return True
        err = err.__cause__ or (None if err.__suppress_context__ else err.__context__)
    return False
