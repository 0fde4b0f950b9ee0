"""Rewriting of prompts: a language model adds detail before clips are generated."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyramid_model.captioning.instructions import PROMPT_INSTRUCTIONS, filled
from pyramid_model.captioning.quality import judge, without_thoughts
from pyramid_model.captioning.question import Answer, NoAnswer, Question
from pyramid_model.config import identity
from tasks.captioning.answers import REWRITES, AnswerFiles, KeyedQuestion
from tasks.captioning.endpoint import Endpoint, EndpointConfig, check_endpoint
from tasks.running.errors import StepError
from tasks.tables.content_ids import content_id

VERSION = "1"
LOGGER = logging.getLogger("pyramid.generate")

Mode = Literal["normal", "director"]


@dataclass(frozen=True)
class Rewrite:
    """A prompt, its longer form, and if `text` is empty, the reason why the prompt is used unchanged."""

    prompt: str
    text: str = ""
    reason: str = ""


def rewrite_prompts(root: str, prompts: Sequence[str], mode: Mode, config: EndpointConfig) -> list[Rewrite]:
    """Rewrite each prompt. Answers are stored under the root, so the same prompts always get the same texts.

    If the endpoint fails or its answer cannot be used, the prompt is used unchanged, and the log gives the reason.

    Args:
        root: folder or URI in which the answers are stored.
        prompts: all different.
        mode: normal: a full description; director: camera movements, step by step.
        config: the model that rewrites.

    Raises:
        ValueError: the variable that holds the key is not set.
    """
    files = AnswerFiles(root, REWRITES)
    questions = [_question(prompt, mode, config) for prompt in prompts]
    config.api_key()  # raises if the variable is not set
    try:
        if any(files.read(question.key) is None for question in questions):
            check_endpoint(config)
        answers = [reply.answer for reply in files.ask(questions, Endpoint(config))]
    except StepError as err:
        answers = [files.read(question.key) or NoAnswer("endpoint", str(err)) for question in questions]
    rewrites = []
    for prompt, question, answer in zip(prompts, questions, answers, strict=True):
        rewrites.append(_rewrite(prompt, answer))
        if rewrites[-1].reason:
            files.forget(question.key)
            LOGGER.warning("the prompt %r is used unchanged: %s", prompt, rewrites[-1].reason)
    return rewrites


def _question(prompt: str, mode: Mode, config: EndpointConfig) -> KeyedQuestion:
    instruction = filled(PROMPT_INSTRUCTIONS[mode], prompt)
    key = content_id("rewrite", VERSION, identity(config), instruction)
    return KeyedQuestion(key, lambda: Question(instruction))


def _rewrite(prompt: str, answer: Answer | NoAnswer) -> Rewrite:
    if isinstance(answer, NoAnswer):
        return Rewrite(prompt, reason=str(answer))
    judged = judge(answer.model_copy(update={"text": without_thoughts(answer.text)}), language="")
    error_type, reason = judged.fault
    return Rewrite(prompt, reason=reason) if error_type else Rewrite(prompt, judged.text)
