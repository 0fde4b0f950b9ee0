"""Why a step stops, and whether the same step may succeed when it runs again."""

RESUME = "Committed blocks are kept: mend the cause and run the same command again."
# Package and name of base classes: nothing has to be imported to ask. Torch's own OutOfMemoryError is none of it.
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
    """A step stopped for a reason that is not in the data: no disk space, no progress, a bug, a lost machine.

    transient: a machine or a connection was lost, so that the same step may well succeed when it runs again.
    """

    def __init__(self, message: str, transient: bool = False):
        super().__init__(message)
        self.transient = transient


# Errors whose messages say what to do; anything else is a bug, shown with its traceback.
TOLD = (StepError, OSError, ValueError)


def machine_lost(err: BaseException | None) -> bool:
    """Whether a lost machine or connection is behind an error; bad data or settings would only fail again."""
    while err is not None:
        names = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(err).__mro__}
        if getattr(err, "transient", False) or names & MACHINE_LOST:
            return True
        err = err.__cause__ or (None if err.__suppress_context__ else err.__context__)
    return False
