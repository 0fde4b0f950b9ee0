"""Prefetch of the next step's batch in a thread, while the model computes the current step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Calls `function(step)` in a thread, one step before its result is needed.

    Args:
        function: its result must depend only on the step.
        num_steps: the function is not called for this step and later ones.
    """

    def __init__(self, function: Callable[[int], T], num_steps: int):
        self.function, self.num_steps = function, num_steps
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._ahead: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """Result of the function for a step; raises its exception."""
        future = self._ahead.pop(step, None) or self._thread.submit(self.function, step)
        self._ahead = {step + 1: self._thread.submit(self.function, step + 1)} if step + 1 < self.num_steps else {}
        return future.result()
