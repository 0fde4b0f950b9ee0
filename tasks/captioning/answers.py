"""Files of model answers. A step that is killed before it commits its rows does not pay for the same answers again.

One JSON file per answer, named by a hash of the question: `<root>/cache/<folder>/<two digits>/<key>.json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from pyramid_model.captioning.question import Answer, Answerer, NoAnswer, Question
from pyramid_model.config import Config
from tasks.tables import storage

CAPTIONS, REWRITES = "captions", "rewrites"


class StoredAnswer(Config):
    """Content of a file: an answer and, in the folder `captions`, the id and attempt of the row made from it."""

    answer: Answer
    row_id: str = ""
    attempt: int = 1


@dataclass(frozen=True)
class KeyedQuestion:
    """A question, identified by a key.

    key: hash of everything that determines the answer.
    make: builds the question; called only if no file has the answer. Raises NoAnswer if the frames cannot be read.
    row_id, attempt: of the row that is made from the answer.
    """

    key: str
    make: Callable[[], Question]
    row_id: str = ""
    attempt: int = 1


@dataclass(frozen=True)
class Reply:
    """Answer to a question, or the reason for its absence. asked: by the model in this call, not from a file."""

    answer: Answer | NoAnswer
    asked: bool


class AnswerFiles:
    """The answer files in one folder of `<root>/cache`."""

    def __init__(self, root: str, folder: str):
        self.folder = storage.join(root, "cache", folder)

    def uri(self, key: str) -> str:
        """Path or URI of the file for a key."""
        return storage.join(self.folder, key[:2], f"{key}.json")

    def read(self, key: str) -> Answer | None:
        """The stored answer; None if the file is missing or damaged."""
        try:
            return StoredAnswer.model_validate_json(storage.read_bytes(self.uri(key))).answer
        except (FileNotFoundError, ValidationError):
            return None

    def forget(self, key: str) -> None:
        """Delete a stored answer, so that the model is asked again."""
        fs, path = storage.filesystem(self.uri(key))
        if fs.exists(path):
            fs.rm_file(path)

    def ask(self, questions: Sequence[KeyedQuestion], answerer: Answerer) -> list[Reply]:
        """One reply per question, in order: from its file, or from the model. New answers are stored as they arrive.

        No two questions may have the same key.
        """
        replies: dict[str, Reply] = {}
        unanswered: list[KeyedQuestion] = []
        prompts: list[Question] = []
        for question in questions:
            if answer := self.read(question.key):
                replies[question.key] = Reply(answer, asked=False)
                continue
            try:
                prompts.append(question.make())
                unanswered.append(question)
            except NoAnswer as err:
                replies[question.key] = Reply(err, asked=False)

        def store(position: int, answer: Answer) -> None:
            question = unanswered[position]
            content = StoredAnswer(answer=answer, row_id=question.row_id, attempt=question.attempt)
            storage.write_bytes(self.uri(question.key), content.model_dump_json().encode())

        answers = answerer.answer(prompts, store) if prompts else []
        for question, answer in zip(unanswered, answers, strict=True):
            replies[question.key] = Reply(answer, asked=True)
        return [replies[question.key] for question in questions]


def spent_answers(root: str, committed: dict[str, int]) -> list[str]:
    """Answer files that are no longer needed, since their caption is in the table.

    committed: caption id -> highest attempt in the table.
    """
    fs, top = storage.filesystem(storage.join(root, "cache", CAPTIONS))
    spent = []
    for path in sorted(fs.find(top)) if fs.exists(top) else []:
        try:
            stored = StoredAnswer.model_validate_json(fs.cat_file(path))
        except ValidationError:
            spent.append(path)  # incomplete, or written by another version: no code can read it
            continue
        if committed.get(stored.row_id, 0) >= stored.attempt:
            spent.append(path)
    return spent
