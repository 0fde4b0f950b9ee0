"""Questions to language models and their answers, for models in this process and for endpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from pyramid_model.config import Config

if TYPE_CHECKING:
    import numpy as np


class Decoding(Config):
    """Settings of text generation; all of them can change the text."""

    max_new_tokens: int = Field(default=256, ge=1, description="longest answer, in tokens")
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="0: always the most probable token")
    seed: int = Field(default=0, ge=0, description="seed of sampling, used with a temperature above 0")


class FrameSampling(Config):
    """Frames of a clip for a model, each from the middle of an equal part of the clip."""

    num_frames: int = Field(default=8, ge=1, description="frames read from each clip; with `fps`, the largest number")
    fps: float | None = Field(
        default=None,
        gt=0,
        description="read this many frames for each second of the clip; null: num_frames of every clip",
    )
    longer_side: int = Field(
        default=448, ge=16, description="longer side of the frames in px; smaller clips are not scaled"
    )

    def count(self, num_frames: int, fps: float) -> int:
        """Number of frames that are taken from a clip of `num_frames` frames at `fps`."""
        count = max(1, round(num_frames / fps * self.fps)) if self.fps else self.num_frames
        return min(count, self.num_frames, num_frames)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in px of the frames of a clip of that size; even, for encoders that halve them."""
        scale = min(1.0, self.longer_side / max(height, width))
        return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


@dataclass(frozen=True)
class Question:
    """One message of a user.

    instruction: text of the message.
    frames: uint8 RGB (t h w 3), in order of time; None: a question without frames.
    fps: frame rate of `frames`.
    schema: JSON schema of the answer, for servers that can enforce one.
    seed: added to the seed of the decoding, so that a second attempt gives another text.
    """

    instruction: str
    frames: "np.ndarray | None" = None
    fps: float = 1.0
    schema: Mapping[str, Any] | None = None
    seed: int = 0


class Answer(Config):
    """Answer of a model. finish: stop, length (cut at max_new_tokens), or refused (by a filter of the server)."""

    text: str
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    finish: Literal["stop", "length", "refused"] = "stop"


class NoAnswer(Exception):
    """One question failed; others may succeed. `kind` is the error type for tables, the message is for people."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


Keep = Callable[[int, Answer], None]


class Answerer(Protocol):
    """A model that answers questions."""

    def answer(self, questions: Sequence[Question], keep: Keep) -> list[Answer | NoAnswer]:
        """One answer per question, in order; calls `keep(position, answer)` for each as soon as it is available."""
        ...
