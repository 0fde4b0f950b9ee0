"""Live progress in the terminal: one line for each step; the running step has a spinner and a count."""

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from tasks.running.run import PROGRESS, STEPS, StepResult
from tasks.training.board import LOG as TRAINING

NAME_WIDTH = 14
PLAIN_EVERY_S = 30.0


class Progress(logging.Handler):
    """Log handler that shows the progress of steps; without a terminal it prints plain lines."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console = console
        self.live = Live(console=console, transient=True, refresh_per_second=8) if console.is_terminal else None
        self.step, self.started, self.counts, self.printed = "", time.monotonic(), "", time.monotonic()

    def __enter__(self) -> "Progress":
        for logger in (PROGRESS, STEPS, TRAINING):
            logger.setLevel(logging.INFO)
            logger.addHandler(self)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, err: BaseException | None, trace: TracebackType | None) -> None:
        for logger in (PROGRESS, STEPS, TRAINING):
            logger.removeHandler(self)
        if self.live:
            self.live.stop()
        if err is not None and self.step:
            self._print(self._line("✗", "red", self.step, "stopped", time.monotonic() - self.started))

    def activity(self, text: str) -> None:
        """Show a line for work that is not a step."""
        self._draw(text)

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a log record: a step started, progressed, or finished, or a training has a message."""
        fields = vars(record)  # with those that `@step` and `report_progress` add
        event = fields.get("event")
        if event == "started":
            self.step, self.started, self.counts = fields["step"], time.monotonic(), ""
            self._draw(self.step)
        elif event == "finished":
            self.finished(fields["result"])
            self.step = ""
            self._draw("…")
        elif "total" in fields:
            self.counts = f"{fields['done']}/{fields['total']}  {fields['detail']}"
            self._draw(self.step or fields["step"])
            self._plain(record.getMessage())
        elif record.name == TRAINING.name:
            self._print(Text(f"  {record.getMessage()}", "yellow" if record.levelno > logging.INFO else "dim"))

    def finished(self, result: StepResult) -> None:
        """Print the final line of a step: inputs, outputs and time."""
        bad = result.num_failed + result.num_skipped
        mark, colour = ("!", "yellow") if bad else ("✓", "green") if result.num_new else ("·", "dim")
        self._print(self._line(mark, colour, result.step, describe(result), result.wall_s))

    def _draw(self, name: str) -> None:
        if self.live:
            text = Text.assemble((f"{name:<{NAME_WIDTH}}", "bold"), " ", (self.counts if self.step else "", "cyan"))
            self.live.update(Spinner("dots", text=text))

    def _plain(self, message: str) -> None:
        """Without a terminal, print a progress line at most every 30 s."""
        if self.live is None and time.monotonic() - self.printed > PLAIN_EVERY_S:
            self.printed = time.monotonic()
            self._print(Text(f"  {message}"))

    def _print(self, line: Text) -> None:
        self.console.print(line, soft_wrap=True)

    def _line(self, mark: str, colour: str, name: str, text: str, seconds: float) -> Text:
        return Text.assemble(
            (f"{mark} ", colour), (f"{name:<{NAME_WIDTH}}", "bold"), (f"{seconds:7.1f} s  ", "dim"), text
        )


def describe(result: StepResult) -> str:
    """`8 in: 7 ok, 1 failed (1 truncated) → 24 clips`."""
    if not result.num_new:
        return f"{result.num_in} in: {result.note or 'nothing new'}"
    counts = {"done before": result.num_done, "ok": result.num_ok, "failed": result.num_failed}
    counts["skipped"] = result.num_skipped
    text = f"{result.num_in} in: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if result.errors:
        text += " (" + ", ".join(f"{count} {kind}" for kind, count in result.errors.items()) + ")"
    rows = ", ".join(f"{count} {table}" for table, count in result.rows.items() if count)
    return text + (f" → {rows}" if rows else "") + (f"; {result.note}" if result.note else "")
