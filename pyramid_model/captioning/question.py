"""What a language model is asked and what it answers: the same for a model in this process and for an endpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from pyramid_model.config import Config

if TYPE_CHECKING:
    import numpy as np


class Decoding(Config):
    """How words are drawn; everything here changes what is written."""

    max_new_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0: always the likeliest token")
    seed: int = Field(0, ge=0, description="of the draws, with a temperature above 0")


class FrameSampling(Config):
    """Frames that are shown to a model, each from the middle of an equal part of the clip."""

    num_frames: int = Field(8, ge=1, description="so many; with `fps`, at most so many")
    fps: float | None = Field(None, gt=0, description="frames a second in place of a fixed number; null: the number")
    longer_side: int = Field(448, ge=16, description="px of these frames; smaller clips stay as they are")

    def count(self, num_frames: int, fps: float) -> int:
        """How many frames are taken of a clip of so many frames at `fps`."""
        asked = max(1, round(num_frames / fps * self.fps)) if self.fps else self.num_frames
        return min(asked, self.num_frames, num_frames)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the frames of a clip of that size; even, for encoders that halve them."""
        scale = min(1.0, self.longer_side / max(height, width))
        return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


@dataclass(frozen=True)
class Question:
    """One turn of a user.

    instruction: the words. frames: uint8 RGB (t h w 3), in the order of time; None asks about words alone. fps: frames
    a second of `frames`. schema: JSON schema that the answer should follow, for servers that can hold a model to one.
    seed: added to the one of the decoding, so that a second try draws other words.
    """

    instruction: str
    frames: "np.ndarray | None" = None
    fps: float = 1.0
    schema: Mapping[str, Any] | None = None
    seed: int = 0


class Answer(Config):
    """What came back. finish: stop, length (cut at max_new_tokens), or refused (by a filter of the server)."""

    text: str
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    finish: Literal["stop", "length", "refused"] = "stop"


class NoAnswer(Exception):
    """One question that got no answer, while others may: `kind` is short and countable, the text is for people."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


Keep = Callable[[int, Answer], None]


class Answerer(Protocol):
    """A model that answers."""

    def answer(self, questions: Sequence[Question], keep: Keep) -> list[Answer | NoAnswer]:
        """One answer a question, in order; `keep(position, answer)` is called for each as soon as it is there."""
        ...
