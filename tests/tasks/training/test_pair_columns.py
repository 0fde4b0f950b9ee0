"""Pairs are kept in columns and look like a sequence."""

import pickle

import pyarrow as pa
import pytest

from tasks.training.pair_columns import Pair, Pairs


def pair(number: int, *chosen: str) -> Pair:
    """A pair with captions to choose from."""
    ids = {"latent_id": f"latent{number}", "text_feature_id": f"text{number}"}
    choices = [{"text_feature_id": name, "weight": 0.5} for name in chosen]
    row = {"clip_id": f"clip{number}", "uri": "a.mp4", "bucket": "32x32x9@8", "text": "a hill"}
    return Pair.model_validate({**row, **ids, "choices": choices})


PAIRS = [pair(0), pair(1, "a", "b"), pair(2, "b"), pair(3)]


def test_pairs_come_back_one_by_one_and_in_slices():
    pairs = Pairs.of(PAIRS)
    assert list(pairs) == PAIRS
    assert (pairs[-1], list(pairs[::2]), list(pairs[1:1])) == (PAIRS[3], PAIRS[::2], [])
    assert list(pickle.loads(pickle.dumps(pairs))) == PAIRS
    assert list(Pairs.of([])) == []
    with pytest.raises(IndexError):
        pairs[4]


def test_a_pair_needs_its_latent_and_all_of_its_texts():
    pairs = Pairs.of(PAIRS)
    assert set(pairs.text_ids.to_pylist()) == {"text0", "text1", "text2", "text3", "a", "b"}
    latents, texts = (pa.chunked_array([ids]) for ids in (["latent0", "latent1", "latent2"], ["text0", "text1", "b"]))
    assert [pair.clip_id for pair in pairs.with_data(latents, texts)] == ["clip0"]


def test_a_pair_in_columns_takes_a_few_hundred_bytes():
    many = Pairs.of(pair(number, "a", "b") for number in range(20_000))
    assert many.table.nbytes / len(many) < 300
