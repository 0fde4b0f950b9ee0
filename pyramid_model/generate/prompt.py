"""Prompts before the text encoder: checks, suffix, negative prompt, and truncation."""

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
    """Suffix and negative prompt that suit the weights of a DiT.

    suffix: added to every prompt.
    negative: what guidance steers away from.
    """

    suffix: str = ""
    negative: str = ""


# Models trained here need no suffix; their negative prompt is the empty text.
TRAINED_STYLE = PromptStyle()
# Source: the published pipeline.
RELEASED_STYLE = PromptStyle(
    suffix=", hyper quality, Ultra HD, 8K",
    negative="cartoon style, worst quality, low quality, blurry, absolute black, absolute white, low res, extra limbs, "
    "extra digits, misplaced objects, mutated anatomy, monochrome, horror",
)


def style_of(checkpoint: Checkpoint) -> PromptStyle:
    """Suffix and negative prompt for the weights of a checkpoint."""
    return RELEASED_STYLE if checkpoint.record is None else TRAINED_STYLE


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ValueError if a prompt is empty or has more than MAX_CHARACTERS characters.

    Raises:
        ValueError: there is no prompt, or a prompt is empty or too long.
    """
    if not prompts:
        raise ValueError("no prompts: give at least one")
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError("the prompt is empty: say what the clip should show")
        if len(prompt) > MAX_CHARACTERS:
            raise ValueError(
                f"the prompt that starts with {prompt[:40]!r} has {len(prompt)} characters: at most {MAX_CHARACTERS} "
                "are allowed, and the text encoder reads only the first 100 words or so"
            )


def encoded_prompt(prompt: str, request: GenerationRequest, style: PromptStyle) -> str:
    """A prompt with its suffix, as the text encoder gets it."""
    return prompt + (style.suffix if request.prompt_suffix is None else request.prompt_suffix)


def encoded_negative(request: GenerationRequest, style: PromptStyle) -> str:
    """The text that guidance steers away from."""
    return style.negative if request.negative_prompt is None else request.negative_prompt


def cut_off_text(text: str, tokenizer: Any, max_tokens: int) -> str:
    """The part of a text after its first `max_tokens` tokens (end token included), which the text encoder drops."""
    spans = tokenizer(text, verbose=False, return_offsets_mapping=True).offset_mapping
    if len(spans) <= max_tokens:
        return ""
    return text[spans[max_tokens - 1][0] :]
