"""How much of its time a worker's model is at work, and how much it waits for data or tables."""

import time


class Busy:
    """Stopwatch: `with busy:` around the model's work, `spent` for what came together since the last call."""

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._since: float | None = None  # time.monotonic() up to which the span has been told
        self._last = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self._since = self._since or self._started

    def __exit__(self, *_: object) -> None:
        self._last = time.monotonic()
        self._busy_s += self._last - self._started

    def spent(self, name: str) -> dict[str, float]:
        """Seconds at work, and from the first work to the last, waits included; since the last call."""
        span_s = self._last - self._since if self._since else 0.0
        found = {f"{name}_busy_s": self._busy_s, f"{name}_span_s": span_s}
        self._busy_s, self._since = 0.0, self._since and self._last
        return found
