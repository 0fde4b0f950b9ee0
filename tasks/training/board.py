"""Reports of the workers of a training to its driver: rows of the curve, log messages, and a final error."""

import logging
from typing import Any

LOG = logging.getLogger("pyramid.training")


class Board:
    """Ray actor between workers and driver."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.messages: list[tuple[int, str]] = []  # (level of logging, text)
        self.fatal = ""

    def post(self, row: dict[str, float]) -> None:
        """Add a row of the curve."""
        self.rows.append(row)

    def tell(self, level: int, message: str) -> None:
        """Add a message for the log of the driver."""
        self.messages.append((level, message))

    def fail(self, reason: str) -> None:
        """Record the first reason why new workers would fail in the same way."""
        self.fatal = self.fatal or reason

    def failed(self) -> str:
        """The reason; empty if there is none."""
        return self.fatal

    def take(self) -> tuple[list[dict[str, float]], list[tuple[int, str]], str]:
        """Rows and messages since the last call, and the reason."""
        rows, self.rows = self.rows, []
        messages, self.messages = self.messages, []
        return rows, messages, self.fatal


class ToBoard(logging.Handler):
    """Sends what the first worker logs about the training to the board, and so to people who look at the driver."""

    def __init__(self, board: Any):
        super().__init__(logging.INFO)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self.board.tell.remote(record.levelno, record.getMessage())
