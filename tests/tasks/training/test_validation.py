"""What the validation loss of a DiT is held against."""

from tasks.training.validation import shuffled


def test_every_clip_gets_the_caption_of_another_clip_that_differs_from_its_own():
    captions = ["a hill", "a hill", "a tree", "a bird"]
    others = shuffled(captions)
    assert others == [2, 2, 3, 0]
    assert all(captions[i] != captions[other] for i, other in enumerate(others))


def test_captions_that_are_all_the_same_cannot_be_shuffled():
    assert shuffled(["a hill"] * 3) == shuffled(["a hill"]) == []
