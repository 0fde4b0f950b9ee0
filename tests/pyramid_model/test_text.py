"""Text encoders: real T5 classes at a tiny size (about ten seconds, most of it transformers' import)."""

import json

import pytest
import torch

from pyramid_model.text import build_tiny_text_encoder, load_text_encoder, stack_features, text_encoder_hash

CAPTIONS = [
    "A fat grey bunny wakes up in a dark burrow.",
    "Snow drifts over a steep grey mountain ridge in a storm.",
    "Tall office towers glow with green windows at night.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    build_tiny_text_encoder(CAPTIONS, folder, dim=32, num_layers=1, vocab_size=128)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text_encoder(folder)


def test_the_same_texts_and_seed_give_the_same_encoder_and_another_seed_another(folder, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        build_tiny_text_encoder(CAPTIONS, tmp_path / name, dim=32, num_layers=1, vocab_size=128, seed=seed)
    assert text_encoder_hash(tmp_path / "same") == text_encoder_hash(folder) != text_encoder_hash(tmp_path / "other")


def test_an_encoder_that_was_never_trained_says_so(folder, encoder):
    assert json.loads((folder / "encoder.json").read_text())["random_init"] is True
    assert encoder.info["random_init"] is True


def test_different_captions_have_clearly_different_features(encoder):
    pooled = torch.nn.functional.normalize(torch.stack([pooled for _, pooled in encoder.encode(CAPTIONS)]), dim=1)
    assert (pooled @ pooled.T - torch.eye(len(CAPTIONS))).max() < 0.9


def test_features_do_not_depend_on_what_shares_their_batch(encoder):
    together = encoder.encode([*CAPTIONS, "a"], batch_size=4)
    for text, (embeds, pooled) in zip([*CAPTIONS, "a"], together, strict=True):
        ((alone, alone_pooled),) = encoder.encode([text])
        torch.testing.assert_close(embeds, alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pooled, alone_pooled, atol=1e-4, rtol=1e-4)


def test_only_valid_tokens_are_kept_128_at_most_and_pooled_is_their_mean(encoder):
    empty, long = encoder.encode(["", "snow " * 300])
    assert len(empty[0]) == 1  # the end token
    assert len(long[0]) == 128
    torch.testing.assert_close(long[1], long[0].mean(0))


def test_stacked_features_mask_the_padding(encoder):
    rows = encoder.encode(["snow", CAPTIONS[0]])
    text = stack_features(rows)
    assert text.mask.sum(1).tolist() == [len(embeds) for embeds, _ in rows]
    assert not text.embeds[~text.mask].any()


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_text_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        text_encoder_hash(tmp_path)
