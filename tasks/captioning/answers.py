"""Answers that were paid for, kept as files: a step that is killed before its rows are committed asks nothing twice.

One JSON file an answer, named by what was asked: `<root>/cache/<folder>/<two digits>/<key>.json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from pyramid_model.captioning.question import Answer, Answerer, NoAnswer, Question
from pyramid_model.config import Config
from tasks.tables import storage

CAPTIONS, REWRITES = "captions", "rewrites"


class KeptAnswer(Config):
    """An answer, and which row came of it (`captions` only: prompts may be asked for again at any time)."""

    answer: Answer
    row_id: str = ""
    attempt: int = 1


@dataclass(frozen=True)
class Keyed:
    """A question by its identity, and the row that it is asked for.

    make: gives the question itself, if it has to be asked; may raise NoAnswer where its frames cannot be read.
    """

    key: str
    make: Callable[[], Question]
    row_id: str = ""
    attempt: int = 1


@dataclass(frozen=True)
class Found:
    """What a question came to; `asked`: now, and not read from a file."""

    answer: Answer | NoAnswer
    asked: bool


class AnswerFiles:
    """The kept answers of one root."""

    def __init__(self, root: str, folder: str):
        self.folder = storage.join(root, "cache", folder)

    def uri(self, key: str) -> str:
        """Where the answer of a question is kept."""
        return storage.join(self.folder, key[:2], f"{key}.json")

    def read(self, key: str) -> Answer | None:
        """A kept answer; None where there is none, or its file is damaged."""
        try:
            return KeptAnswer.model_validate_json(storage.read_bytes(self.uri(key))).answer
        except (FileNotFoundError, ValidationError):
            return None

    def forget(self, key: str) -> None:
        """Let an answer that is of no use be asked for again."""
        fs, path = storage.filesystem(self.uri(key))
        if fs.exists(path):
            fs.rm_file(path)

    def ask(self, questions: Sequence[Keyed], answerer: Answerer) -> list[Found]:
        """Answers in order: kept ones from their files, the others from the model, each kept as soon as it is there.

        Keys must differ.
        """
        found: dict[str, Found] = {}
        new: list[Keyed] = []
        made: list[Question] = []
        for asked in questions:
            if kept := self.read(asked.key):
                found[asked.key] = Found(kept, asked=False)
                continue
            try:
                made.append(asked.make())
                new.append(asked)
            except NoAnswer as err:
                found[asked.key] = Found(err, asked=False)

        def keep(position: int, answer: Answer) -> None:
            asked = new[position]
            record = KeptAnswer(answer=answer, row_id=asked.row_id, attempt=asked.attempt)
            storage.write_bytes(self.uri(asked.key), record.model_dump_json().encode())

        answers = answerer.answer(made, keep) if made else []
        found |= {asked.key: Found(answer, asked=True) for asked, answer in zip(new, answers, strict=True)}
        return [found[asked.key] for asked in questions]


def spent_answers(root: str, committed: dict[str, int]) -> list[str]:
    """Files of answers whose caption is in the table. committed: caption id -> highest attempt."""
    fs, top = storage.filesystem(storage.join(root, "cache", CAPTIONS))
    spent = []
    for path in sorted(fs.find(top)) if fs.exists(top) else []:
        try:
            kept = KeptAnswer.model_validate_json(fs.cat_file(path))
        except ValidationError:
            spent.append(path)  # half-written, or of another version: nothing reads it
            continue
        if committed.get(kept.row_id, 0) >= kept.attempt:
            spent.append(path)
    return spent
