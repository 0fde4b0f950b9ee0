"""Checks of captions."""

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
