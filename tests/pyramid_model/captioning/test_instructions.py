"""Instructions for language models."""

import pytest

from pyramid_model.captioning.instructions import asked_again, filled, instruction_for


def test_the_text_takes_its_place_or_the_end():
    assert filled("Rewrite: {text}. Now.", "a dog") == "Rewrite: a dog. Now."
    assert filled("Rewrite.", "a dog") == "Rewrite.\n\na dog"


def test_the_users_instruction_comes_before_ours_and_people_get_none():
    assert instruction_for("short", "Say it in a word.") == "Say it in a word."
    assert "25 words" in instruction_for("short")
    with pytest.raises(KeyError):
        instruction_for("human")


def test_a_second_question_shows_the_answer_and_what_is_wrong_with_it():
    question = asked_again("Describe.", "{oops", "there is no JSON object in it")
    assert all(part in question for part in ("Describe.", "{oops", "there is no JSON object in it"))
