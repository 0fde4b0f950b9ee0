"""Is an answer a caption? What models say around one is taken off; what is none is told by a short word."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyramid_model.captioning.question import Answer

NGRAM = 4  # words; shorter ones recur in honest prose
SURE = 0.8  # probability from which on another language is believed
MIN_JUDGED_WORDS = 6  # of fewer, no language can be told

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
    """What an answer is worth.

    text: the caption. language: two letters, empty where it cannot be told. fault: (short word, sentence), empty words
    for a good caption. facts: figures to keep beside it.
    """

    text: str
    language: str = ""
    fault: tuple[str, str] = ("", "")
    facts: Mapping[str, Any] = field(default_factory=dict)


def judge(answer: Answer, language: str = "en", max_repetition: float = 1.0) -> Judged:
    """Clean a text and say whether it can be used.

    Args:
        answer: as the model gave it.
        language: two letters; a text that is surely in another one is a fault. Empty: any will do.
        max_repetition: largest share of repeated n-grams, see `repetition`.
    """
    text, opening = without_opening(answer.text)
    cut = answer.finish == "length"
    whole = whole_sentences(text) if cut else text
    spoken = language_of(whole)
    repeated = repetition(whole)
    facts = {"num_words": len(whole.split()), "repetition": round(repeated, 4), "opening": opening, "cut": cut}
    fault = _fault(answer, text, whole)
    if not fault[0] and repeated > max_repetition:
        fault = "repetitive", f"{repeated:.0%} of the caption repeats itself, at most {max_repetition:.0%} may"
    if not fault[0] and language and spoken not in ("", language):
        fault = "language", f"the caption is in {spoken!r}, {language!r} was asked for: {whole[:80]!r}"
    return Judged(whole, spoken, fault, facts)


def _fault(answer: Answer, text: str, whole: str) -> tuple[str, str]:
    """Why an answer is no caption at all; empty words if it is one."""
    if answer.finish == "refused":
        return "refused", f"the server withheld the answer: {answer.text[:200]!r}"
    if is_refusal(answer.text):
        return "refused", f"the model would not answer: {answer.text[:200]!r}"
    if not text:
        return "empty", "the answer is empty"
    if not whole:
        return "cut", "no sentence was finished within max_new_tokens: raise it"
    return "", ""


def without_opening(text: str) -> tuple[str, str]:
    """A text without fences, quotation marks and words such as "The video shows"; and the words that were taken off."""
    rest = " ".join(re.sub(r"^```\w*\s*|\s*```$", "", text.strip()).split())
    taken = ""
    while True:
        rest = _unquoted(rest)
        found = next((match for opening in OPENINGS if (match := opening.match(rest))), None)
        if found is None:
            return (rest[:1].upper() + rest[1:], taken.strip()) if taken else (rest, "")
        taken, rest = taken + found[0], rest[found.end() :]


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] in "\"“'" and text[-1] in "\"”'" else text


def without_thoughts(text: str) -> str:
    """An answer without what a reasoning model thought aloud before it."""
    return re.sub(r"^\s*<think>.*?(?:</think>|$)", "", text, flags=re.DOTALL).strip()


def is_refusal(text: str) -> bool:
    """Whether a model says, in its first words, that it will not or cannot answer."""
    return bool(REFUSALS.match(text.strip()))


def whole_sentences(text: str) -> str:
    """A text up to the end of its last finished sentence; empty if there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def repetition(text: str, ngram: int = NGRAM) -> float:
    """Share of n-grams of words that have occurred before, 0 (none) to 1; punctuation and case do not count.

    Text without spaces between words is taken by characters.
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) <= len(text) // 20:
        words = list("".join(words))
    grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def language_of(text: str) -> str:
    """Two letters, where the language can be told with some certainty; else empty."""
    latin = sum(letter.isascii() for letter in text) > len(text) / 2
    if not text or (latin and len(text.split()) < MIN_JUDGED_WORDS):
        return ""
    found, probability = _identifier().classify(text)
    return found if probability >= SURE else ""


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
