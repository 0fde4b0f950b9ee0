"""Files of the published code, good and bad, as the worker of the import reads them; no Ray."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, T5Config

from pyramid_model.config import LatentNorm, VAEConfig
from pyramid_model.weights.record import ModelFolder
from pyramid_model.weights.released_names import vae_config_to_released
from tasks.exchange.official_files import ImportConfig, OfficialReader, _lines


@pytest.fixture
def reader(tmp_path) -> OfficialReader:
    vae = tmp_path / "vae"
    vae.mkdir()
    norm = LatentNorm(first_shift=0, first_scale=1, rest_shift=0, rest_scale=1)
    (vae / "config.json").write_text(json.dumps(vae_config_to_released(VAEConfig(latent_channels=4, latent_norm=norm))))
    # As a released directory of miniFLUX has them: a CLIP for the pooled values, and T5.
    T5Config(d_model=8).save_pretrained(tmp_path / "encoder" / "text_encoder_2")
    CLIPTextConfig(hidden_size=6, num_attention_heads=2).save_pretrained(tmp_path / "encoder" / "text_encoder")
    encoder = ModelFolder(uri=str(tmp_path / "encoder"), hash="encoder")
    config = ImportConfig(annotation=str(tmp_path / "data.jsonl"), dtype="float32", fps=12.5)
    return OfficialReader(ModelFolder(uri=str(vae), hash="vae"), encoder, config)


@pytest.fixture
def item(tmp_path) -> dict:
    """A line with good files: 3 latent frames of 4 channels, 5 valid tokens of 128."""
    latent = torch.randn(1, 4, 3, 6, 10).bfloat16()
    mask = (torch.arange(128) < 5).long()[None]
    text = {
        "prompt_embed": torch.randn(1, 128, 8).bfloat16(),
        "prompt_attention_mask": mask,
        "pooled_prompt_embed": torch.randn(1, 6).bfloat16(),
    }
    torch.save(latent, tmp_path / "latent.pt")
    torch.save(text, tmp_path / "text.pt")
    (tmp_path / "video.mp4").write_bytes(b"video")
    uris = {"video": "video.mp4", "latent": "latent.pt", "text_fea": "text.pt"}
    named = {name: str(tmp_path / file) for name, file in uris.items()}
    return named | {"path": "video.mp4", "text": "A cat.", "clip_id": "clip", "latent_id": "latent", "attempt": 1}


def test_a_good_line_gives_a_clip_ready_for_training(reader, item):
    rows = reader([item, item | {"clip_id": "clip2", "latent_id": "latent2"}]).rows
    assert [row["latent_id"] for row in rows["latents"]] == ["latent", "latent2"]
    (row, _), latent = rows["latents"], torch.load(item["latent"], weights_only=True)[0].float()
    assert row["bucket"] == "48x80x17@12.5"
    assert torch.equal(torch.frombuffer(bytearray(row["latent"]), dtype=torch.float32).reshape(row["shape"]), latent)
    (text,) = rows["text_features"]  # shared by both
    assert text["shape"] == [5, 8]
    assert len(text["pooled"]) == 6 * 4
    (video,), (first, _) = rows["videos"], rows["clips"]
    assert (first["num_frames"], first["height"], first["width"]) == (17, 48, 80)
    assert first["video_id"] == video["video_id"]
    assert first["end_s"] == pytest.approx(17 / 12.5)


def bad_text(path: Path) -> None:
    torch.save({"prompt_embed": torch.zeros(1, 128, 8)}, path)


def with_another_dimension(path: Path) -> None:
    content = torch.load(path)
    torch.save(content | {"pooled_prompt_embed": content["pooled_prompt_embed"][None]}, path)


def of_another_t5(path: Path) -> None:
    torch.save(torch.load(path) | {"prompt_embed": torch.zeros(1, 128, 16)}, path)


def of_another_clip(path: Path) -> None:
    torch.save(torch.load(path) | {"pooled_prompt_embed": torch.zeros(1, 8)}, path)


def of_another_vae(path: Path) -> None:
    torch.save(torch.zeros(1, 16, 3, 6, 10), path)


def not_finite(path: Path) -> None:
    torch.save(torch.full((1, 4, 3, 6, 10), float("nan")), path)


def with_code(path: Path) -> None:
    class Sneaky:
        def __reduce__(self):
            return (Path.touch, (path.parent / "ran",))

    with path.open("wb") as file:
        pickle.dump(Sneaky(), file)


@pytest.mark.parametrize(
    ("name", "spoil", "kind", "message"),
    [
        ("latent", of_another_vae, "other_vae", "has 16 channels and the VAE .* makes 4"),
        ("latent", not_finite, "not_finite", "NaN or Inf"),
        ("latent", bad_text, "bad_latent", r"holds a dict, expected floats \(1 c t h w\)"),
        ("latent", with_code, "unreadable", "not a file of tensors: it is damaged, or contains code$"),
        ("latent", Path.unlink, "missing", "is missing"),
        ("text_fea", bad_text, "bad_text", "expected prompt_embed"),
        ("text_fea", with_another_dimension, "bad_text", r"\(1, 1, 6\), expected \(1 n d\) and \(1 p\)"),
        ("text_fea", of_another_t5, "other_encoder", "has 16 values per token and 6 pooled, .* gives 8 and 6: set the"),
        (
            "text_fea",
            of_another_clip,
            "other_encoder",
            "has 8 values per token and 8 pooled, .* gives 8 and 6: set the",
        ),
        ("video", Path.unlink, "missing", "cannot be read"),
    ],
)
def test_a_line_that_cannot_be_used_is_a_failed_row_and_nothing_else(
    reader, item, tmp_path, name, spoil, kind, message
):
    spoil(Path(item[name]))
    rows = dict(reader([item]).rows)
    (row,) = rows.pop("latents")
    assert (row["status"], row["error_type"]) == ("failed", kind)
    assert re.search(message, row["error"])
    assert not any(rows.values())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"video": "a.mp4"}', "line 1: expected the keys video, text, latent and text_fea"),
        ("not json", "line 1: expected the keys"),
        ('{"video": "../a.mp4", "text": "", "latent": "a.pt", "text_fea": "b.pt"}', "would leave the root"),
        ('{"video": "a.mp4", "text": "", "latent": "/etc/passwd", "text_fea": "b.pt"}', "would leave the root"),
    ],
)
def test_an_annotation_cannot_name_files_outside_its_folder(tmp_path, line, message):
    (tmp_path / "data.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        list(_lines(ImportConfig(annotation=str(tmp_path / "data.jsonl"))))
