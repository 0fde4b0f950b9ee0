"""The curve of a training, for people who look at it while it runs: in MLflow, and in the line of its progress."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.models.tracking import TrainingLog, run_url
from tasks.running.run import Run, report_progress
from tasks.training.board import LOG

LOG_AGAIN_S = 300.0  # pause after an outage of MLflow before the next try


class Curve:
    """The curve in MLflow while a training runs. An outage is a warning: `run_training` logs what is missing later.

    Args:
        run, kind, model_id: of the training.
        settings: of the step, as JSON.
        first_step: steps of the trainings before this one.
    """

    def __init__(self, run: Run, kind: str, model_id: str, settings: Mapping[str, Any], first_step: int):
        self.run, self.kind, self.model_id, self.settings = run, kind, model_id, settings
        self.first_step, self.num_steps = first_step, settings["optim"]["num_steps"]
        self.log: TrainingLog | None = None
        self.missing: list[Mapping[str, float]] = []
        self.again = 0.0  # time.monotonic()

    def report(self, step: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Log new rows of the curve, and report the progress of the step; no rows: the training starts."""
        self.add(rows)
        done = int(rows[-1]["step"]) - self.first_step if rows else 0
        detail = progress_detail(rows[-1], self.num_steps - done) if rows else ""
        link = run_url(self.run.root, self.log.run_id) if self.log else ""
        report_progress(step, done, self.num_steps, "steps", detail, link)

    def add(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log rows, with those that could not be logged before."""
        from mlflow.exceptions import MlflowException

        self.missing += rows
        if time.monotonic() < self.again:
            return
        try:
            self.log = self.log or TrainingLog(self.run, self.kind, self.model_id, self.settings)
            self.log.add(self.missing)
            self.missing = []
        except (MlflowException, OSError) as err:
            LOG.warning("MLflow does not take the curve; the training goes on, and it will be logged later: %s", err)
            self.again = time.monotonic() + LOG_AGAIN_S

    def stopped(self, err: BaseException) -> None:
        """Set the final status of a training that did not end: FAILED after an error, KILLED if it was stopped."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException, OSError):
            if self.log:
                self.log.end("FAILED" if isinstance(err, Exception) else "KILLED")


def progress_detail(row: Mapping[str, float], steps_left: int) -> str:
    """Figures of a row of the curve and the time that is left, such as "loss 0.31, 12,000 tokens/s, 3 min left"."""
    formats = {"loss": "loss {:.4g}", "tokens_per_s": "{:,.0f} tokens/s", "mfu": "MFU {:.0%}"}
    parts = [text.format(row[name]) for name, text in formats.items() if name in row]
    if "step_s" in row and steps_left:
        parts.append(f"{steps_left * row['step_s'] / 60:,.0f} min left")
    return ", ".join(parts)
