"""Scores of stored embeddings: what an id depends on, and values that can be computed by hand."""

import pytest
import torch

from tasks.scoring.embedding_scores import EmbeddingScorer, EmbeddingScoresConfig, frame_details, wanted_scores


def ids(head_hash: str = "", captions: dict | None = None, **settings) -> dict[str, str]:
    config = EmbeddingScoresConfig.model_validate(settings)
    items = wanted_scores(config, {"clip": "embedding"}, head_hash, captions or {})
    return {item["scorer"]: item["score_id"] for item in items}


def test_the_id_of_a_score_follows_only_what_it_is_computed_from():
    settings = {"aesthetic_head": "head.pt", "text_match": True}
    before = ids("first", {"clip": "a hill"}, **settings)
    other_head, other_text = ids("second", {"clip": "a hill"}, **settings), ids("first", {"clip": "a lake"}, **settings)
    assert {name for name in before if other_head[name] != before[name]} == {"aesthetic"}
    assert {name for name in before if other_text[name] != before[name]} == {"text_match"}


def test_other_prompts_are_another_zero_shot_score():
    people, cats = ({"prompts": [text], "against": ["a photo"]} for text in ("people", "cats"))
    assert ids(zero_shot={"x": people})["x"] != ids(zero_shot={"x": cats})["x"]


def test_consistency_is_the_similarity_of_neighbouring_frames():
    scorer = EmbeddingScorer("/root", "", "", EmbeddingScoresConfig())
    frames = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    value, details = scorer.score("consistency", frames, None)
    assert value == pytest.approx(0.5)
    assert details == pytest.approx({"mean": 0.5, "min": 0.0, "max": 1.0, "num_frames": 3})


def test_details_hold_the_least_the_mean_and_the_most_of_the_frames():
    assert frame_details([1.0, 3.0], 2) == {"mean": 2.0, "min": 1.0, "max": 3.0, "num_frames": 2}
