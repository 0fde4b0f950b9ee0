"""Which DiT a recipe trains, and on clips of several sizes. Runs in 3 s."""

import json
from pathlib import Path

import pytest
import torch

from pyramid_model.config import LatentNorm, MiniFluxConfig, MMDiTConfig, PyramidConfig, VAEConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.train.buckets import parse_bucket
from pyramid_model.weights.released_names import vae_config_to_released
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.blobs import tensor_bytes
from tasks.tables.content_ids import crc32
from tasks.tables.delta import table_version
from tasks.tables.rows import Lineage, ok_row
from tasks.training.pairs import TABLES, PairSource, find_pairs
from tasks.training.train_dit import DiTTraining, TrainDiTConfig, train_dit

SIZES = {"latent_channels": 4, "num_heads": 1, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}
MINIFLUX = MiniFluxConfig(**SIZES, num_double_blocks=1, num_single_blocks=1, rope_axes=(2, 2, 4))
MMDIT = MMDiTConfig(**SIZES, num_blocks=1, position_grid=4, position_base=4)


def test_the_section_mmdit_stands_in_place_of_model():
    config = TrainDiTConfig(model=MINIFLUX)
    other = TrainDiTConfig.model_validate(config.model_dump(mode="json") | {"mmdit": MMDIT.model_dump(mode="json")})
    assert (config.dit, other.dit) == (MINIFLUX, MMDIT)
    assert isinstance(config.untrained(), MiniFlux)
    assert isinstance(other.untrained(), MMDiT)


BUCKETS = ("32x64x9@8", "64x32x9@8", "32x64x17@8")


def latent_shape(bucket: str) -> tuple[int, ...]:
    size = parse_bucket(bucket)
    return 4, 1 + size.num_frames // 8, size.height // 8, size.width // 8


@pytest.fixture
def sizes(tmp_path) -> Run:
    """Eighteen clips to train on and three held out, of three buckets in turn, with latents and captions."""
    run = Run(root=str(tmp_path))
    rows: dict[str, list[dict]] = {name: [] for name in TABLES}
    for number in range(21):
        clip_id, bucket = f"clip{number:02}", BUCKETS[number % 3]
        split = "train" if number < 18 else "val"
        rows["clips"].append(ok_row({}, clip_id=clip_id, video_id=clip_id, start_frame=0, uri=clip_id))
        verdict = {"keep": True, "drop_reasons": [], "bucket": bucket, "split": split}
        rows["selections"].append(ok_row({}, selection_id=clip_id, clip_id=clip_id, **verdict))
        rows["captions"].append(ok_row({}, caption_id=clip_id, clip_id=clip_id, kind="human", text="a clip"))
        data = tensor_bytes(torch.randn(latent_shape(bucket)), "float32")
        stored = {"shape": list(latent_shape(bucket)), "dtype": "float32", "latent": data, "crc32": crc32(data)}
        rows["latents"].append(ok_row({}, latent_id=clip_id, clip_id=clip_id, bucket=bucket, vae_hash="vae", **stored))
    for text in ("", "a clip"):
        data = tensor_bytes(torch.randn(3, 6), "float32"), tensor_bytes(torch.randn(5), "float32")
        stored = {"shape": [3, 6], "dtype": "float32", "embeds": data[0], "pooled": data[1], "crc32": crc32(*data)}
        rows["text_features"].append(ok_row({}, text_feature_id=f"text {text}", text=text, encoder_hash="t5", **stored))
    for table, found in rows.items():
        append_block(run.root, table, found, "fixture", Lineage("test", "fixture", "1", "sizes", ""))
    return run


def test_a_step_trains_on_one_bucket_and_all_buckets_have_their_turn(sizes):
    config = TrainDiTConfig(model=MINIFLUX, pyramid=PyramidConfig(num_stages=2), optim={"batch_size": 2}, num_batches=2)
    norm = LatentNorm(first_shift=0, first_scale=1, rest_shift=0, rest_scale=1)
    versions = {name: table_version(sizes.root, name) for name in TABLES}
    known = {"run": sizes, "selection": "", "captions": (), "vae_hash": "vae", "encoder_hash": "t5"}
    source = PairSource(**known, versions=versions, norm=norm, latent_channels=4)
    train, val = find_pairs(source, "train"), find_pairs(source, "val")
    assert (len(train), len(val)) == (18, 3)
    training = DiTTraining(config, source, train, val, [""] * 18, torch.device("cpu"))
    bucket, seen = {pair.clip_id: pair.bucket for pair in train}, set()
    objective = training.objective()
    for step in range(24):
        batches = [training.batch(step, index) for index in (0, 1)]
        assert {clip_id for batch in batches for clip_id in batch.ids} <= bucket.keys()  # none is held out
        (trained,) = {bucket[clip_id] for batch in batches for clip_id in batch.ids}
        assert {tuple(batch.args[0].shape) for batch in batches} == {(2, *latent_shape(trained))}
        if trained not in seen:
            assert objective(*batches[0].args)[0].isfinite()
        seen.add(trained)
    assert seen == set(BUCKETS)
    name, largest = training.largest()
    assert (name, tuple(largest.args[0].shape)) == ("32x64x17@8", (2, *latent_shape("32x64x17@8")))
    assert objective._units_to_train(*largest.args[3:], 3)[-1] == 3  # the last unit at the finest stage
    assert not bucket.keys() & {pair.clip_id for pair in val}
    assert training.describe()[0] == "18 clips; 1,000 steps of 2 batches are 222 epochs"
    assert 0 < training.validate(objective)["val_loss"] < 10  # held-out clips of all buckets


@pytest.mark.parametrize("setting", ["model", "mmdit"])
def test_a_vae_with_other_channels_than_the_dit_is_refused(squares, tmp_path, setting):
    folder = Path(squares.models("vae-v"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(vae_config_to_released(VAEConfig(latent_channels=4))))
    row = {"model_id": "v", "kind": "vae", "weights_hash": "w", "uri": str(folder), "config": "{}", "metrics": "{}"}
    append_block(squares.root, "models", [ok_row({}, **row)], "vae", Lineage("test", "train_vae", "1", "", ""))
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "model.safetensors").write_bytes(b"weights")
    config = TrainDiTConfig.model_validate({"encoder": str(encoder), setting: {"latent_channels": 16}})
    with pytest.raises(StepError, match=rf"makes 4 latent channels .*train_dit\.{setting}\.l.* is 16: set it to 4"):
        train_dit(squares, config)


def test_a_batch_that_does_not_divide_into_the_stages_is_refused_at_once():
    with pytest.raises(ValueError, match=r"optim\.batch_size 4 does not divide into 3 columns.* set it to 6"):
        TrainDiTConfig.model_validate({"optim": {"batch_size": 4}})


def test_an_adapter_without_a_model_is_refused():
    with pytest.raises(ValueError, match=r"lora changes a DiT that exists: set train_dit\.init_from"):
        TrainDiTConfig.model_validate({"lora": {}})
