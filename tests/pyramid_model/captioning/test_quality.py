"""Checks of captions."""

import json

import pytest

from pyramid_model.captioning.quality import judge, repetition, without_opening, without_thoughts
from pyramid_model.captioning.question import Answer


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("The video shows a grey rabbit that wakes up.", "A grey rabbit that wakes up."),
        ("Here is a short description of the clip: In this video, a man rides a bike.", "A man rides a bike."),
        ('Sure! "This short clip depicts that dogs run."', "Dogs run."),
        ("```text\nA boat turns.\n```", "A boat turns."),
        ("<think>It may be\na boat.</think> A boat turns.", "A boat turns."),
        ("A dog shows its teeth.", "A dog shows its teeth."),
        ("Here is a red car on the road: it turns left.", "Here is a red car on the road: it turns left."),
    ],
)
def test_words_around_a_caption_are_taken_off_and_its_own_are_not(said, caption):
    assert without_opening(without_thoughts(said))[0] == caption


@pytest.mark.parametrize(
    ("said", "finish", "fault"),
    [
        ("A fat grey bunny wakes up in a dark burrow.", "stop", ""),
        ("I'm sorry, but I can't help with that.", "stop", "refused"),
        ("I cannot see any video.", "stop", "refused"),
        ("No frames were provided.", "stop", "refused"),
        ("blocked", "refused", "refused"),
        ("  ", "stop", "empty"),
        ("A dog runs. It jumps over the", "length", ""),
        ("A dog runs over the field and then", "length", "cut"),
        ("the dog runs and the dog runs and the dog runs and the dog runs.", "stop", "repetitive"),
        ("一只灰色的兔子在洞里醒来，伸了个懒腰，然后走了出去。", "stop", "language"),
        ("Ein grauer Hase erwacht in seinem dunklen Bau und streckt sich.", "stop", "language"),
        ("A red square slides.", "stop", ""),
    ],
)
def test_an_answer_that_is_no_caption_is_told_by_a_word(said, finish, fault):
    judged = judge(Answer(text=said, finish=finish), "en", 0.3)
    assert judged.fault[0] == fault
    assert bool(judged.fault[1]) == bool(fault)


def test_what_is_cut_off_keeps_its_whole_sentences():
    judged = judge(Answer(text="A dog runs. It jumps over the", finish="length"))
    assert (judged.text, judged.facts["cut"], judged.facts["num_words"]) == ("A dog runs.", True, 3)


def test_repetition_counts_words_or_characters():
    assert repetition("one two three four five six") == 0
    assert repetition("a b c d a b c d") == pytest.approx(0.2)
    assert repetition("滑动滑动滑动滑动滑动滑动滑动滑动滑动滑动滑动滑动") > 0.8
    assert repetition("too short") == 0


DOG = "A brown dog runs along a sandy beach while waves break behind it."
AROUND = {
    "a thought in tags": f"<think>I see a dog.\nIs it brown?</think>\n\n{DOG}",
    "a thought in other tags": f"<thinking>I see a dog.</thinking> {DOG}",
    "a thought without its first tag": f"Okay, the user wants a caption. I see a dog.\n</think>\n\n{DOG}",
    "two thoughts": f"<think>One.</think><think>Two.</think>{DOG}",
    "a thought in a channel": f"<|channel|>analysis<|message|>A dog.<|end|><|channel|>final<|message|>{DOG}",
    "a bold label": f"**Caption:** {DOG}",
    "a bold label, colon outside": f"**Video caption**: {DOG}",
    "all of it bold": f"**{DOG}**",
    "a label of two words": f"Final answer: {DOG}",
    "a heading": f"### Description\n\n{DOG}",
    "two headings": f"# Video\n## Caption\n{DOG}",
    "a point of a list": f"- {DOG}",
    "a quotation": f"> {DOG}",
    "a fence": f"```\n{DOG}\n```",
    "a fence after a sentence": f"Here is the caption:\n```text\n{DOG}\n```",
    "a token of the chat template": f"{DOG}<|im_end|>",
    "an end of turn": f"<start_of_turn>model\n{DOG}<end_of_turn>",
    "an end of sequence": f"{DOG}</s>",
    "a JSON object": json.dumps({"caption": DOG}),
    "a JSON object in a fence": f"```json\n{json.dumps({'description': DOG}, indent=1)}\n```",
    "a JSON object with other facts": json.dumps({"caption": DOG, "confidence": 0.9}),
    "a JSON array": json.dumps([{"text": DOG}]),
    "a closing": f"{DOG}\n\nLet me know if you would like a longer caption!",
    "an opening, a label and quotation marks": f'Sure! **Caption:** "{DOG}"',
}


@pytest.mark.parametrize("text", AROUND.values(), ids=AROUND)
def test_what_stands_around_a_caption_is_removed(text):
    judged = judge(Answer(text=without_thoughts(text), finish="stop"))
    assert (judged.text, judged.fault) == (DOG, ("", ""))


def test_reasoning_without_an_end_leaves_nothing():
    for text in ("<think>I see a dog", "<|channel|>analysis<|message|>I see a dog"):
        assert without_thoughts(text) == ""


CUT = {
    "zh": ("一只棕色的狗沿着沙滩奔跑，海浪拍打着岸边。", "阳光洒在水面"),
    "ja": ("茶色の犬が砂浜を走っている。", "波が後ろで砕け"),
    "hi": ("एक भूरा कुत्ता रेतीले समुद्र तट पर दौड़ता है।", " लहरें"),
    "en": ("A brown dog runs along the long sandy beach.", " The waves bre"),
    "de": ("Ein brauner Hund läuft am langen Strand entlang …", " Die Wellen"),
}


@pytest.mark.parametrize(("language", "texts"), CUT.items(), ids=CUT)
def test_an_answer_that_was_cut_keeps_its_finished_sentences_in_any_script(language, texts):
    whole, rest = texts
    judged = judge(Answer(text=whole + rest, finish="length"), language=language)
    assert (judged.text, judged.fault) == (whole, ("", ""))


@pytest.mark.parametrize(
    "text",
    [
        "A sign reads 3.5 km and the number 1.2 is painted on a wall",
        "A man * a woman stand by a river, 2 * 3 m wide.",
        "Text on a board says: hello.",
        "A screen shows {code} in [brackets] beside a keyboard.",
    ],
)
def test_marks_inside_a_caption_stay(text):
    assert judge(Answer(text=text, finish="stop")).text == text
