"""The worker of the latents step on real clips and a tiny VAE; no Ray."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pyramid_model.config import LatentNorm, VAEConfig, VAEStackConfig
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.video.video import write_video
from pyramid_model.weights.record import ModelFolder
from pyramid_model.weights.weights import save_vae, weights_hash
from tasks.encoding.latents import LatentEncoder, LatentsConfig

STACK = VAEStackConfig(channels=(8, 8, 8, 16), layers=(1, 1, 1, 1), norm_groups=4)
NORM = LatentNorm(first_shift=0.1, first_scale=2.0, rest_shift=-0.2, rest_scale=3.0)


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("vae")
    model = CausalVideoVAE(VAEConfig(latent_channels=4, encoder=STACK, decoder=STACK, latent_norm=NORM))
    save_vae(model, folder)
    return ModelFolder(uri=str(folder), hash=weights_hash(folder))


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[dict]:
    """Five clips, of two buckets in turn."""
    folder, clips = tmp_path_factory.mktemp("clips"), []
    for number in range(5):
        path = folder / f"{number}.mp4"
        frames = np.random.default_rng(number).integers(0, 255, (9, 32, 32, 3), np.uint8)
        write_video(str(path), frames, fps=8)
        data = path.read_bytes()
        bucket = ("32x32x9@8", "16x32x1@8")[number % 2]
        row = {"latent_id": f"latent{number}", "clip_id": f"clip{number}", "uri": str(path), "bucket": bucket}
        clips.append(
            row | {"size_bytes": len(data), "crc32": zlib.crc32(data), "attempt": 1, "view": 0, "seconds": 9 / 8}
        )
    return clips


def stored(row: dict) -> np.ndarray:
    return np.frombuffer(row["latent"], np.float32).reshape(row["shape"])


def test_clips_that_are_coded_together_get_the_latents_they_get_alone(vae, items):
    alone = LatentEncoder(vae, LatentsConfig())(items).rows["latents"]
    together = LatentEncoder(vae, LatentsConfig(batch_size=3, decode_threads=2))(items).rows["latents"]
    assert [row["latent_id"] for row in together] == [item["latent_id"] for item in items]
    for row, other in zip(alone, together, strict=True):
        assert row["shape"] == ([4, 2, 4, 4] if row["bucket"] == "32x32x9@8" else [4, 1, 2, 4])
        np.testing.assert_allclose(stored(other), stored(row), atol=1e-5)


def test_windows_change_no_latent(vae, items):
    whole, windowed = (
        LatentEncoder(vae, LatentsConfig(window=window))(items[:1]).rows["latents"] for window in (None, 8)
    )
    np.testing.assert_allclose(stored(windowed[0]), stored(whole[0]), atol=1e-5)


def test_log_variances_stand_behind_the_means_when_they_are_asked_for(vae, items):
    (mean,) = LatentEncoder(vae, LatentsConfig())(items[:1]).rows["latents"]
    (both,) = LatentEncoder(vae, LatentsConfig(parts="mean,logvar"))(items[:1]).rows["latents"]
    assert (mean["parts"], both["parts"]) == ("mean", "mean,logvar")
    assert both["shape"] == [8, 2, 4, 4]
    np.testing.assert_array_equal(stored(both)[:4], stored(mean))
    assert np.isfinite(stored(both)[4:]).all()


def test_values_are_raw_and_the_shift_and_scale_stand_beside_them(vae, items):
    (row,) = LatentEncoder(vae, LatentsConfig())(items[:1]).rows["latents"]
    assert json.loads(row["latent_norm"]) == NORM.model_dump()
    assert row["crc32"] == zlib.crc32(row["latent"])


def test_a_clip_that_is_gone_or_not_what_was_cut_is_a_row_with_the_reason_and_the_others_go_on(vae, items, tmp_path):
    longer, other = tmp_path / "longer.mp4", tmp_path / "other.mp4"
    data = Path(items[1]["uri"]).read_bytes()
    longer.write_bytes(data + b"\0")
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed = [items[1] | {"uri": str(uri), "latent_id": uri.name} for uri in (longer, other, tmp_path / "gone.mp4")]
    rows = LatentEncoder(vae, LatentsConfig(batch_size=2))([items[0], *changed, items[2]]).rows["latents"]
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "failed", "ok"]
    assert [row["error_type"] for row in rows[1:4]] == ["clip_changed", "clip_changed", "missing"]
    assert f"{len(data) + 1} bytes, its row says {len(data)}" in rows[1]["error"]
    assert "crc32" in rows[2]["error"]


def test_a_worker_tells_how_long_the_vae_worked_and_how_long_it_might_have(vae, items):
    encoder = LatentEncoder(vae, LatentsConfig())
    first = encoder(items).seconds
    assert 0 < first["vae_busy_s"] <= first["vae_span_s"]
    second = encoder(items).seconds
    assert 0 < second["vae_busy_s"] < second["vae_span_s"]  # the time between the two calls counts as waiting


@torch.no_grad()
def test_the_stored_mean_is_that_of_the_vae(vae, items):
    from pyramid_model.vae.pixels import to_unit_range
    from pyramid_model.video.video import read_clip

    encoder = LatentEncoder(vae, LatentsConfig())
    (row,) = encoder(items[:1]).rows["latents"]
    frames = read_clip(items[0]["uri"], height=32, width=32, fps=8, num_frames=9)
    expected = encoder.vae.encode(to_unit_range(frames)[None]).mean[0].numpy()
    np.testing.assert_allclose(stored(row), expected, atol=1e-6)
