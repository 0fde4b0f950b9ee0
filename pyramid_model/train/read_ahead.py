"""The batch of the next step is read while the model works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """A function of the step, called one step ahead in a thread.

    Args:
        function: depends on the step alone.
        num_steps: it is not called for later steps.
    """

    def __init__(self, function: Callable[[int], T], num_steps: int):
        self.function, self.num_steps = function, num_steps
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._ahead: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """What the function gives for a step, or its exception."""
        found = self._ahead.pop(step, None) or self._thread.submit(self.function, step)
        self._ahead = {step + 1: self._thread.submit(self.function, step + 1)} if step + 1 < self.num_steps else {}
        return found.result()
