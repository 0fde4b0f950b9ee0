"""Checks of captions: introductory phrases are removed; answers that are not captions get an error type."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyramid_model.captioning.question import Answer

NGRAM = 4  # words; shorter n-grams recur in normal prose
SURE = 0.8  # least probability at which a language counts as recognised
MIN_JUDGED_WORDS = 6  # a text of fewer words gets no language

_THING = r"(?:video(?: clip)?|clip|footage|sequence|scene|image|picture|frames?)"
_SHOWS = (
    r"(?:shows?|showing|depicts?|depicting|features?|featuring|captures?|capturing|displays?|presents?|portrays?|"
    r"illustrates?|contains?|consists? of|begins? with|starts? with|opens? (?:with|on)|is (?:of|about))"
)
OPENINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:sure|certainly|of course|okay)\s*[,.!:-]+\s*",
        r"here(?:'s| is| are)\b[^.:]{0,60}\b(?:caption|description|sentence|paragraph|summary)\b[^.:]{0,40}:\s*",
        r"(?:caption|description|answer|summary)\s*:\s*",
        rf"(?:in|throughout|across) (?:the|this|these)(?: \w+)? {_THING}\s*,\s*(?:we (?:can )?see (?:that )?)?",
        rf"(?:the|this|these)(?: \w+)? {_THING} {_SHOWS}\s+(?:that )?",
        rf"(?:a|an)(?: \w+)? {_THING} {_SHOWS}\s+(?:that )?",
        r"we (?:can )?see (?:that )?",
    )
)
REFUSALS = re.compile(
    r"(?:i'?m|i am) (?:sorry|unable|not able|afraid)|(?:i|we) (?:can(?:no|'|’)?t|cannot|could not|won'?t) |"
    r"as an ai\b|unfortunately,? i\b|sorry,|"
    r"no (?:video|frames?|images?) (?:was|were|is|are) (?:provided|given|attached)|"
    r"please (?:provide|upload|share)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)]?(?=\s|$)")


@dataclass(frozen=True)
class Judged:
    """Result of the checks of one answer.

    text: the caption.
    language: two letters; empty if it is not recognised.
    fault: (error type, message), both empty for a good caption.
    facts: figures to store with the caption.
    """

    text: str
    language: str = ""
    fault: tuple[str, str] = ("", "")
    facts: Mapping[str, Any] = field(default_factory=dict)


def judge(answer: Answer, language: str = "en", max_repetition: float = 1.0) -> Judged:
    """Clean the text of an answer and check it.

    Args:
        answer: as the model returned it.
        language: two letters; a text that is recognised as another language is a fault. Empty: any language.
        max_repetition: largest share of repeated n-grams, see `repetition`.
    """
    text, opening = without_opening(answer.text)
    cut = answer.finish == "length"
    caption = whole_sentences(text) if cut else text
    caption_language = language_of(caption)
    repeated = repetition(caption)
    facts = {"num_words": len(caption.split()), "repetition": round(repeated, 4), "opening": opening, "cut": cut}
    fault = _fault(answer, text, caption)
    if not fault[0] and repeated > max_repetition:
        fault = "repetitive", f"{repeated:.0%} of the caption repeats itself, at most {max_repetition:.0%} may"
    if not fault[0] and language and caption_language not in ("", language):
        fault = "language", f"the caption is in {caption_language!r}, not in {language!r}: {caption[:80]!r}"
    return Judged(caption, caption_language, fault, facts)


def _fault(answer: Answer, text: str, caption: str) -> tuple[str, str]:
    """(error type, message) of an answer that is not a caption; both empty if it is one."""
    if answer.finish == "refused":
        return "refused", f"the server withheld the answer: {answer.text[:200]!r}"
    if is_refusal(answer.text):
        return "refused", f"the model would not answer: {answer.text[:200]!r}"
    if not text:
        return "empty", "the answer is empty"
    if not caption:
        return "cut", "no sentence was finished within max_new_tokens: raise it"
    return "", ""


def without_opening(text: str) -> tuple[str, str]:
    """Remove code fences, quotation marks and openings such as "The video shows": (text, removed openings)."""
    rest = " ".join(re.sub(r"^```\w*\s*|\s*```$", "", text.strip()).split())
    removed = ""
    while True:
        rest = _unquoted(rest)
        match = next((match for opening in OPENINGS if (match := opening.match(rest))), None)
        if match is None:
            return (rest[:1].upper() + rest[1:], removed.strip()) if removed else (rest, "")
        removed, rest = removed + match[0], rest[match.end() :]


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] in "\"“'" and text[-1] in "\"”'" else text


def without_thoughts(text: str) -> str:
    """Remove the reasoning that a reasoning model puts before its answer, in `<think>` tags."""
    return re.sub(r"^\s*<think>.*?(?:</think>|$)", "", text, flags=re.DOTALL).strip()


def is_refusal(text: str) -> bool:
    """Whether the first words of an answer are a refusal."""
    return bool(REFUSALS.match(text.strip()))


def whole_sentences(text: str) -> str:
    """The text up to the end of its last complete sentence; empty if there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def repetition(text: str, ngram: int = NGRAM) -> float:
    """Share of n-grams of words that are repetitions of earlier ones, 0..1; punctuation and case are ignored.

    A text without spaces between words is split into characters.
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) <= len(text) // 20:
        words = list("".join(words))
    grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def language_of(text: str) -> str:
    """Language of a text as two letters; empty if it is not recognised with a probability of at least `SURE`."""
    latin = sum(letter.isascii() for letter in text) > len(text) / 2
    if not text or (latin and len(text.split()) < MIN_JUDGED_WORDS):
        return ""
    language, probability = _identifier().classify(text)
    return language if probability >= SURE else ""


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
