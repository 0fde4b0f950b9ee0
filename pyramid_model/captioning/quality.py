"""Checks of captions: introductory phrases are removed; answers that are not captions get an error type."""

import functools
import json
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
        r"(?:(?:final|detailed|dense|short|brief|video|image|scene|revised|rewritten)\s+){0,3}"
        r"(?:caption|description|answer|summary|prompt|output|response|text)\s*(?:\([^)]{0,40}\)\s*)?[:：]\s*",
        r"(?:描述|字幕|标题|答案|视频描述|説明|キャプション|설명|캡션)\s*[:：]\s*",
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
# Full stops of Latin, Greek and Cyrillic scripts end a sentence before a space; those of other scripts always do.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)]?(?=\s|$)|[。！？｡؟۔।॥។։][\"'”’」』）»]?")
CLOSINGS = re.compile(
    r"\s*(?:let me know|(?:please )?feel free|i hope (?:this|that)|is there anything else|would you like)\b[^\n]*$",
    re.IGNORECASE,
)
_CHAT_TOKENS = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:start|end)_of_turn>(?:model\b|assistant\b)?|\[/?INST\]|<(?:eos|bos|pad|unk)>"
    r"|<(?:begin|end)_of_(?:text|box)>|<｜[^｜<>\n]{1,40}｜>"
)
_FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)(?:```|$)", re.DOTALL)
_HEADING = re.compile(r"\A\s*#{1,6}\s+[^\n]{1,80}\n+(?=\S)")
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_MARKS = re.compile(r"^[ \t]*(?:>[ \t]+|[-*•][ \t]+|-{3,}[ \t]*$|#{1,6}[ \t]+)", re.MULTILINE)
_KEYS = ("caption", "description", "text", "prompt", "answer", "output", "response", "summary")
_THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|reflection)"


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
    """Remove what stands around a caption: (text, removed openings).

    These are tokens of chat templates, code fences, JSON, headings and marks of Markdown, quotation marks, openings
    such as "The video shows" and closings such as "Let me know …".
    """
    rest = " ".join(CLOSINGS.sub("", _plain_text(_CHAT_TOKENS.sub("", text))).split())
    removed = ""
    while True:
        rest = _unquoted(rest)
        match = next((match for opening in OPENINGS if (match := opening.match(rest))), None)
        if match is None:
            return (rest[:1].upper() + rest[1:], removed.strip()) if removed else (rest, "")
        removed, rest = removed + match[0], rest[match.end() :]


def _plain_text(text: str) -> str:
    """The text without code fences, JSON and Markdown around it."""
    if (fenced := _FENCE.search(text)) and fenced[1].strip():
        text = fenced[1]
    text = _of_json(text.strip())
    while heading := _HEADING.match(text):
        text = text[heading.end() :]
    return _MARKS.sub("", _EMPHASIS.sub(r"\2", text)).strip()


def _of_json(text: str) -> str:
    """The caption in a JSON object or array with one text; any other text unchanged."""
    if text[:1] not in ("{", "["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(value, dict | list):
        if isinstance(value, dict):
            named = [value[key] for key in _KEYS if key in value]
            values = named[:1] or list(value.values())
        else:
            values = value
        if len(values) != 1:
            return text
        value = values[0]
    return value if isinstance(value, str) else text


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] in "\"“'" and text[-1] in "\"”'" else text


def without_thoughts(text: str) -> str:
    """Remove the reasoning that a reasoning model puts before its answer.

    It stands in tags such as `<think>`, of which servers may have removed the first one, or in the channel `analysis`
    before the channel `final`. Reasoning without an end leaves nothing.
    """
    if "<|channel|>" in text:
        _, final, answer = text.rpartition("<|channel|>final<|message|>")
        return re.split(r"<\|(?:end|return)\|>", answer)[0].strip() if final else ""
    text = re.sub(rf"<{_THOUGHT}>.*?(?:</{_THOUGHT}>|$)", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"◁think▷.*?(?:◁/think▷|$)", "", text, flags=re.DOTALL)
    return re.split(rf"</{_THOUGHT}>|◁/think▷", text, flags=re.IGNORECASE)[-1].strip()


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
