"""Instructions for language models: to caption a clip, and to turn a user's request into a prompt.

The text encoder reads 128 tokens, about 90 English words, so the instructions ask for texts within this length.
"""

from pyramid_model.captioning.structured import FIELDS

SEEN = "You are given frames of one video clip, in the order in which they were filmed."
ONLY_VISIBLE = "Name only what can be seen: no sounds, no guesses about names, causes, or what came before or after."
BARE = "Begin with the subject itself, not with words about a video, clip or frame. Use plain English, present tense."

CAPTION_INSTRUCTIONS = {
    "short": (
        f"{SEEN} Describe the clip in one sentence of at most 25 words: who or what is there, what happens, and where. "
        f"{ONLY_VISIBLE} {BARE} Answer with the sentence alone."
    ),
    "dense": (
        f"{SEEN} Describe the clip in one paragraph of 60 to 80 words, in this order: the main subject and how it "
        "looks; what it does from the first frame to the last; the place and what is behind it; how the camera moves, "
        "or that it stands still; light and colours; visual style and mood. "
        f"{ONLY_VISIBLE} {BARE} Answer with the paragraph alone: no list, no heading."
    ),
    "structured": (
        f"{SEEN} Describe the clip as a JSON object with exactly these keys, each with a short phrase of plain English "
        "as its value:\n"
        + "\n".join(f'"{name}": {meaning}' for name, meaning in FIELDS.items())
        + f"\n{ONLY_VISIBLE} Answer with the JSON object alone."
    ),
    "rewritten": (
        "Below is a description of a video clip. Write it anew as one fluent paragraph of 40 to 80 words: the subject "
        "and how it looks, what it does, the place, the camera, the light, the style, as far as the description tells. "
        f"Keep every fact and add none. {BARE} Answer with the paragraph alone.\n\nDescription: {{text}}"
    ),
}

PROMPT_INSTRUCTIONS = {
    "normal": (
        "Below is what somebody asked a video generator for. Make a full description of that clip of it, one paragraph "
        "of 40 to 80 words: the subject and how it looks, what it does and how it moves, the place, the light, the "
        "colours, the style. Keep everything that was asked for, and invent only what fits it. Describe one unbroken "
        f"shot. {BARE} Answer with the paragraph alone.\n\nRequest: {{text}}"
    ),
    "director": (
        "Below is what somebody asked a video generator for. Write directions for the camera that films it, one "
        "paragraph of 50 to 85 words. Name the size of the first framing (wide, medium, close-up) and the angle; then "
        "say, step by step as time passes, what the subject does and how the camera answers: pan, tilt, dolly, "
        "tracking, crane, zoom, handheld or locked off; name lens, depth of field and lighting; end with the last "
        "framing. Keep everything that was asked for. Each step goes on from the one before, without a cut. Use plain "
        "English, present tense. Answer with the paragraph alone: no list, no shot numbers.\n\nRequest: {text}"
    ),
}


def instruction_for(kind: str, instruction: str = "") -> str:
    """Instruction for a kind of caption. `{text}` in it is the placeholder of the parent caption.

    Args:
        kind: of the caption.
        instruction: the user's; empty: the default one.

    Raises:
        KeyError: no model writes this kind.
    """
    return instruction or CAPTION_INSTRUCTIONS[kind]


def filled(instruction: str, text: str) -> str:
    """Insert the text into an instruction, in place of `{text}` or at the end."""
    return instruction.replace("{text}", text) if "{text}" in instruction else f"{instruction}\n\n{text}"


def asked_again(instruction: str, answer: str, problem: str) -> str:
    """Instruction for a second attempt after an answer that was not the requested JSON object."""
    return (
        f"{instruction}\n\nYou answered this before, and it cannot be used ({problem}):\n{answer}\n\n"
        "Answer again, with the JSON object alone."
    )
