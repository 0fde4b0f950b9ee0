"""Text encoders: real T5 classes at a tiny size (about ten seconds, most of it transformers' import)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.text import build_tiny_text_encoder, load_text_encoder, stack_features, text_encoder_dims
from pyramid_model.weights.files_hash import text_encoder_hash

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


def test_a_word_of_the_captions_is_one_token_and_another_word_is_split_into_known_pieces(tmp_path):
    build_tiny_text_encoder(["Two bunnies run.", "A bunny runs, 你好"], tmp_path, dim=32, num_layers=1, vocab_size=128)
    tokenizer = load_text_encoder(tmp_path).tokenizer
    assert tokenizer.tokenize("Two bunnies run.") == ["two", "bunnies", "run", "."]
    assert tokenizer.tokenize("runbunny 好") == ["run", "bunny", "好"]
    assert tokenizer.tokenize("zoo") == ["z", "o", "o"]
    assert len(tokenizer) <= 128


def test_an_encoder_that_was_never_trained_says_so(folder, encoder):
    assert json.loads((folder / "encoder.json").read_text())["random_init"] is True
    assert encoder.info["random_init"] is True
    assert text_encoder_dims(folder) == (encoder.dim, encoder.pooled_dim) == (32, 32)


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


@pytest.mark.parametrize(("variant", "pooled_dim"), [("miniflux", 16), ("sd3", 32)])
def test_released_directories_give_t5_tokens_and_pooled_clip_as_the_padded_encoders_do(
    write_text_parts, tmp_path, variant, pooled_dim
):
    write_text_parts(tmp_path, variant)
    encoder = load_text_encoder(tmp_path)
    assert text_encoder_dims(tmp_path) == (encoder.dim, encoder.pooled_dim)
    assert (encoder.dim, encoder.pooled_dim) == (32, pooled_dim)
    for text, (embeds, pooled) in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        padded = encoder.tokenizer(text, padding="max_length", max_length=128, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder.t5(padded.input_ids, attention_mask=padded.attention_mask).last_hidden_state[0]
            words = [c.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt") for c in encoder.clips]
            outs = [c.model(w.input_ids) for c, w in zip(encoder.clips, words, strict=True)]
        torch.testing.assert_close(embeds, hidden[padded.attention_mask[0].bool()], atol=1e-5, rtol=1e-5)
        wanted = [out.text_embeds if variant == "sd3" else out.pooler_output for out in outs]
        torch.testing.assert_close(pooled, torch.cat(wanted, dim=1)[0], atol=1e-5, rtol=1e-5)


def test_the_hash_of_a_released_directory_covers_its_text_parts_alone(write_text_parts, tmp_path):
    write_text_parts(tmp_path, "miniflux")
    before = text_encoder_hash(tmp_path)
    (tmp_path / "diffusion_transformer_384p").mkdir()
    (tmp_path / "diffusion_transformer_384p" / "config.json").write_text("{}")
    assert text_encoder_hash(tmp_path) == before
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\nb n\n")
    assert text_encoder_hash(tmp_path) != before


def test_a_released_directory_without_one_part_names_it(write_text_parts, tmp_path):
    write_text_parts(tmp_path, "sd3")
    (tmp_path / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="text_encoder_2 holds no CLIP text encoder"):
        load_text_encoder(tmp_path)


def test_an_encoder_that_lacks_a_tensor_is_refused_not_made_up(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "encoder")
    weights = tmp_path / "encoder" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors, such as encoder\.final_layer_norm\.weight"):
        load_text_encoder(tmp_path / "encoder")


def test_an_encoder_that_was_cut_off_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "encoder")
    with (tmp_path / "encoder" / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match="encoder holds no T5 text encoder"):
        load_text_encoder(tmp_path / "encoder")


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_text_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        text_encoder_hash(tmp_path)


def test_an_encoder_that_is_placed_by_a_device_map_gives_the_same_features(folder, encoder):
    spread = load_text_encoder(folder, "auto")
    for (embeds, pooled), (expected, expected_pooled) in zip(
        spread.encode(CAPTIONS), encoder.encode(CAPTIONS), strict=True
    ):
        torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pooled, expected_pooled, atol=1e-5, rtol=1e-5)
