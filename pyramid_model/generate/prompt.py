"""Prompts before the text encoder: checks, suffix, negative prompt, and what is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyramid_model.generate.request import GenerationRequest

if TYPE_CHECKING:
    from pyramid_model.weights.checkpoint import Checkpoint

MAX_CHARACTERS = 10_000  # far beyond the 128 tokens that the encoder reads: probably pasted by mistake


@dataclass(frozen=True)
class PromptStyle:
    """Words that weights were released, or trained, to work with.

    suffix: added to every prompt.
    negative: what guidance steers away from.
    """

    suffix: str = ""
    negative: str = ""


# Weights trained here know their own captions, and the empty text as the absence of one.
TRAINED_STYLE = PromptStyle()
# Source: the published pipeline.
RELEASED_STYLE = PromptStyle(
    suffix=", hyper quality, Ultra HD, 8K",
    negative="cartoon style, worst quality, low quality, blurry, absolute black, absolute white, low res, extra limbs, "
    "extra digits, misplaced objects, mutated anatomy, monochrome, horror",
)


def style_of(checkpoint: Checkpoint) -> PromptStyle:
    """The words that the weights of a checkpoint work with."""
    return RELEASED_STYLE if checkpoint.record is None else TRAINED_STYLE


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse empty and absurdly long prompts.

    Raises:
        ValueError: there is no prompt, or one is empty or absurdly long.
    """
    if not prompts:
        raise ValueError("no prompts: give at least one")
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError("the prompt is empty: say what the clip should show")
        if len(prompt) > MAX_CHARACTERS:
            raise ValueError(
                f"the prompt that starts with {prompt[:40]!r} has {len(prompt)} characters: at most {MAX_CHARACTERS} "
                "are taken, and the text encoder reads only the first 100 words or so"
            )


def encoded_prompt(prompt: str, request: GenerationRequest, style: PromptStyle) -> str:
    """The text that is encoded for a prompt."""
    return prompt + (style.suffix if request.prompt_suffix is None else request.prompt_suffix)


def encoded_negative(request: GenerationRequest, style: PromptStyle) -> str:
    """The text that guidance steers away from."""
    return style.negative if request.negative_prompt is None else request.negative_prompt


def unread(text: str, tokenizer: Any, max_tokens: int) -> str:
    """The end of a text that a text encoder of so many tokens, the end token among them, never sees; empty if none."""
    spans = tokenizer(text, verbose=False, return_offsets_mapping=True).offset_mapping
    if len(spans) <= max_tokens:
        return ""
    return text[spans[max_tokens - 1][0] :]
