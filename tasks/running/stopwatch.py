"""Times of the model of a worker: how long it computes, and how long it waits for data or tables."""

import time


class Stopwatch:
    """Put `with stopwatch:` around the work of the model; `spent` returns the times since its last call."""

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._since: float | None = None  # time.monotonic() at which the next span starts
        self._last = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self._since = self._since or self._started

    def __exit__(self, *_: object) -> None:
        self._last = time.monotonic()
        self._busy_s += self._last - self._started

    def spent(self, name: str) -> dict[str, float]:
        """Seconds of work (`NAME_busy_s`) and of work and waits (`NAME_span_s`) since the last call."""
        span_s = self._last - self._since if self._since else 0.0
        seconds = {f"{name}_busy_s": self._busy_s, f"{name}_span_s": span_s}
        self._busy_s, self._since = 0.0, self._since and self._last
        return seconds
