"""Structured captions: their JSON schema, parsing of answers, and conversion to prose for the text encoder."""

import functools
import json
from typing import Any

FIELDS = {
    "subject": "who or what the clip is about, and how it looks",
    "action": "what the subject does, from the first frame to the last",
    "background": "the place, and what else is there",
    "style": "kind of picture, such as live action, animation, documentary",
    "shot_type": "framing and angle, such as close-up, wide shot, from above",
    "lighting": "where the light comes from, and its colour",
    "camera_motion": "how the camera moves, or that it stands still",
    "atmosphere": "the mood",
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string", "minLength": 1, "description": text} for name, text in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}


class StructureError(ValueError):
    """An answer is not an object of the schema; the message is suitable as feedback to the model."""


def read_structured(text: str) -> tuple[dict[str, str], bool]:
    """Parse the JSON object in an answer: (fields, whether its syntax had to be repaired).

    Repairs are, for example, the removal of a code fence or a missing comma or quote.

    Raises:
        StructureError: the text has no object, or the object does not follow the schema.
    """
    try:
        answer, repaired = json.loads(text), False
    except json.JSONDecodeError:
        import json_repair

        answer, repaired = json_repair.loads(text), True
    if not isinstance(answer, dict):
        raise StructureError("there is no JSON object in it")
    if problems := [_described(error) for error in _validator().iter_errors(answer)]:
        raise StructureError("; ".join(sorted(problems)))
    return {name: " ".join(answer[name].split()) for name in FIELDS}, repaired


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(SCHEMA)


def _described(error: Any) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message}" if where else error.message


def as_prose(fields: dict[str, str]) -> str:
    """One sentence per field, in the order of FIELDS, each with a full stop."""
    phrases = (fields[name].strip().rstrip(".") for name in FIELDS)
    return " ".join(f"{phrase[0].upper()}{phrase[1:]}." for phrase in phrases if phrase)
