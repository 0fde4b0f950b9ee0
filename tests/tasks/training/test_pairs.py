"""Which of several captions of a clip a training sees. Seconds, no Ray."""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from pyramid_model.config import CaptionsOfKind, Kind, LatentNorm
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import read_table, table_version
from tasks.tables.rows import Lineage, ok_row
from tasks.training.pairs import TABLES, PairReader, PairSource, find_pairs
from tasks.training.train_dit import TrainDiTConfig

CLIPS = [content_id("clip", number) for number in range(6)]
BUCKET = "32x32x9@8"
NORM = LatentNorm(first_shift=0, first_scale=1, rest_shift=0, rest_scale=1)
WRITTEN = {"dense": {0, 1, 2}, "short": {0, 1}, "human": {0, 4}}  # kind -> numbers of the clips that have it
WEIGHTS: dict[Kind, float] = {"dense": 0.5, "short": 0.4, "human": 0.1}
HUMAN, SHORT, DENSE = (CaptionsOfKind(kind=kind) for kind in ("human", "short", "dense"))


def text_of(kind: str, number: int) -> str:
    return f"{kind} {number}"


@pytest.fixture
def captioned(squares) -> Run:
    """Six clips with latents, and captions with features that are as long as their place in WRITTEN."""
    rows: dict[str, list[dict]] = {"captions": [], "latents": [], "text_features": []}
    latent = np.zeros((4, 2, 4, 4), np.float32).tobytes()
    blob = {"vae_hash": "vae", "bucket": BUCKET, "shape": [4, 2, 4, 4], "dtype": "float32", "crc32": crc32(latent)}
    for clip_id in CLIPS:
        rows["latents"].append(ok_row({}, latent_id=content_id(clip_id), clip_id=clip_id, latent=latent, **blob))
    for length, (kind, numbers) in enumerate(WRITTEN.items(), start=1):
        embeds = np.full((length, 2), length, np.float32).tobytes()
        pooled = np.zeros(2, np.float32).tobytes()
        facts = {"encoder_hash": "t5", "shape": [length, 2], "dtype": "float32", "crc32": crc32(embeds, pooled)}
        for number in numbers:
            text = text_of(kind, number)
            caption = {"caption_id": content_id(kind, number), "prompt_hash": kind}
            rows["captions"].append(ok_row({}, clip_id=CLIPS[number], kind=kind, text=text, **caption))
            feature = {"text_feature_id": content_id(text), "text": text, "embeds": embeds, "pooled": pooled}
            rows["text_features"].append(ok_row({}, **feature, **facts))
    for table, found in rows.items():
        append_block(squares.root, table, found, "fixture", Lineage("test", "fixture", "1", "captioned", ""))
    return squares


def source(run: Run, captions: Sequence[CaptionsOfKind], weights: dict[Kind, float]) -> PairSource:
    versions = {name: table_version(run.root, name) for name in TABLES}
    known = {"run": run, "selection": "", "vae_hash": "vae", "encoder_hash": "t5", "versions": versions}
    return PairSource(**known, norm=NORM, latent_channels=4, captions=tuple(captions), caption_weights=weights)


def num_tokens(reader: PairReader, chance: random.Random) -> int | None:
    """Length of the text that the first clip is read with; None where it cannot be read."""
    sample = reader.read(0, chance)
    return len(sample[1][0]) if sample else None


def test_without_weights_a_clip_has_the_first_kind_that_is_named(captioned):
    pairs = {
        pair.clip_id: pair
        for pair in find_pairs(
            source(captioned, (SHORT, CaptionsOfKind(kind="human", hashes=("human",)), DENSE), {}), "train"
        )
    }
    assert [pairs[CLIPS[number]].text for number in (0, 1, 2)] == ["short 0", "short 1", "dense 2"]
    assert CLIPS[3] not in pairs
    assert all(pair.choices == () for pair in pairs.values())


def test_with_weights_a_clip_has_every_kind_of_which_it_has_a_caption(captioned):
    pairs = {pair.clip_id: pair for pair in find_pairs(source(captioned, (HUMAN, SHORT, DENSE), WEIGHTS), "train")}
    assert {choice.weight for choice in pairs[CLIPS[0]].choices} == set(WEIGHTS.values())
    assert [len(pairs[CLIPS[number]].choices) for number in (0, 1, 2)] == [3, 2, 1]
    assert pairs[CLIPS[0]].text == "dense 0"  # what validation looks at
    only_short = find_pairs(source(captioned, (HUMAN, SHORT, DENSE), {"short": 1.0, "dense": 0.0}), "train")
    assert {pair.text for pair in only_short} == {"short 0", "short 1"}


def test_captions_are_drawn_by_weight_and_the_same_for_the_same_step(captioned):
    where = source(captioned, (DENSE, SHORT, HUMAN), WEIGHTS)
    reader = PairReader(where, [pair for pair in find_pairs(where, "train") if pair.clip_id == CLIPS[0]])
    lengths = Counter(num_tokens(reader, random.Random(f"step {step}")) for step in range(1000))
    assert lengths[1] == pytest.approx(500, abs=60)
    assert lengths[3] == pytest.approx(100, abs=40)
    assert num_tokens(reader, random.Random("step 7")) == num_tokens(reader, random.Random("step 7"))


def test_a_damaged_caption_is_left_out_alone_and_what_a_step_sees_does_not_depend_on_steps_before(captioned):
    damaged = content_id(text_of("short", 0))
    rows = read_table(captioned.root, "text_features", where=pc.field("text_feature_id") == damaged).to_pylist()
    block = [row | {"attempt": 2, "crc32": row["crc32"] ^ 1} for row in rows]
    append_block(captioned.root, "text_features", block, "damage", Lineage("test", "fixture", "1", "captioned", ""))
    where = source(captioned, (DENSE, SHORT, HUMAN), WEIGHTS)
    pairs = [pair for pair in find_pairs(where, "train") if pair.clip_id == CLIPS[0]]
    undisturbed, steps = PairReader(where, pairs), range(40)

    def seen(reader: PairReader, step: int) -> tuple:
        chance = random.Random(f"step {step}")
        return num_tokens(reader, chance), chance.random()  # what is drawn next, for the samples after it

    found = [seen(undisturbed, step) for step in steps]
    assert {length for length, _ in found} == {1, None, 3}  # dense and human are still read
    assert found == [seen(PairReader(where, pairs), step) for step in steps]  # as if resumed before every step
    (bad,) = undisturbed.bad
    assert damaged in bad


def test_weights_of_captions_are_at_least_0_and_of_kinds_that_there_are():
    with pytest.raises(ValidationError, match="0 or more"):
        TrainDiTConfig(caption_weights={"dense": -1})
    with pytest.raises(ValidationError, match="dens"):
        TrainDiTConfig.model_validate({"caption_weights": {"dens": 1}})
