"""Prompts that a language model makes fuller before clips are generated from them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyramid_model.captioning.instructions import PROMPT_INSTRUCTIONS, filled
from pyramid_model.captioning.quality import judge, without_thoughts
from pyramid_model.captioning.question import Answer, NoAnswer, Question
from tasks.captioning.answers import REWRITES, AnswerFiles, Keyed
from tasks.captioning.endpoint import DECIDING, Endpoint, EndpointConfig, check_endpoint
from tasks.running.errors import StepError
from tasks.tables.delta import content_id

VERSION = "1"
LOGGER = logging.getLogger("pyramid.generate")

Mode = Literal["normal", "director"]


@dataclass(frozen=True)
class Rewrite:
    """A prompt, what was made of it (empty: nothing, it stays as it is), and then why."""

    prompt: str
    text: str = ""
    reason: str = ""


def rewrite_prompts(root: str, prompts: Sequence[str], mode: Mode, config: EndpointConfig) -> list[Rewrite]:
    """Each prompt with its fuller form; the same ones for the same prompts, since answers are kept under the root.

    Where the endpoint fails, or gives nothing of use, a prompt stays as it is and the log says why.

    Args:
        root: where answers are kept.
        prompts: no two alike.
        mode: normal: a full description; director: what the camera does, step by step.
        config: who rewrites.

    Raises:
        ValueError: the variable that holds the key is not set.
    """
    files = AnswerFiles(root, REWRITES)
    keyed = [_keyed(prompt, mode, config) for prompt in prompts]
    config.api_key()
    try:
        if any(files.read(one.key) is None for one in keyed):
            check_endpoint(config)
        answers = [found.answer for found in files.ask(keyed, Endpoint(config))]
    except StepError as err:
        answers = [files.read(one.key) or NoAnswer("endpoint", str(err)) for one in keyed]
    rewrites = []
    for prompt, one, answer in zip(prompts, keyed, answers, strict=True):
        rewrites.append(_rewrite(prompt, answer))
        if rewrites[-1].reason:
            files.forget(one.key)
            LOGGER.warning("the prompt %r stays as it is: %s", prompt, rewrites[-1].reason)
    return rewrites


def _keyed(prompt: str, mode: Mode, config: EndpointConfig) -> Keyed:
    instruction = filled(PROMPT_INSTRUCTIONS[mode], prompt)
    decoding = config.model_dump(mode="json", include=DECIDING)
    key = content_id("rewrite", VERSION, [config.model, config.revision], decoding, instruction)
    return Keyed(key, lambda: Question(instruction))


def _rewrite(prompt: str, answer: Answer | NoAnswer) -> Rewrite:
    if isinstance(answer, NoAnswer):
        return Rewrite(prompt, reason=str(answer))
    judged = judge(answer.model_copy(update={"text": without_thoughts(answer.text)}), language="")
    kind, why = judged.fault
    return Rewrite(prompt, reason=why) if kind else Rewrite(prompt, judged.text)
