"""Cost of finding duplicates and selecting, by the number of clips: synthetic scores and hashes in real tables.

uv run python benchmarks/selecting.py               # 100,000 clips
uv run python benchmarks/selecting.py --clips 10000
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from tasks.running.run import Run
from tasks.selecting.duplicates import DuplicatesConfig, duplicates
from tasks.selecting.select import SelectConfig, select
from tasks.tables.content_ids import content_id
from tasks.tables.delta import table_uri
from tasks.tables.schemas import SCHEMAS

CLIPS_PER_VIDEO = 10
SCORERS = [f"score{number}" for number in range(10)]
HASHES = 20  # of a clip of five seconds
COPIES = 0.05  # share of the clips that are copies of a clip of another video


def write_rows(root: str, table: str, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    """Append ok rows; missing columns are empty."""
    count = len(next(iter(columns.values())))
    common = {"status": ["ok"] * count, "attempt": [1] * count, "created_at": [datetime.now(UTC)] * count}
    full = common | dict(columns)
    arrays = [
        pa.array(full[field.name], field.type) if field.name in full else pa.nulls(count, field.type)
        for field in SCHEMAS[table]
    ]
    write_deltalake(table_uri(root, table), pa.table(arrays, schema=SCHEMAS[table]), mode="append", name=table)


def made_hashes(rng: np.random.Generator, num_clips: int) -> list[list[str]]:
    """Hashes of clips whose frames differ in about 12 % of the bits, and of copies of some clips that differ in 6 %."""
    hashes = np.repeat(rng.integers(0, 256, (num_clips, 1, 32), np.uint8), HASHES, axis=1)
    chosen = rng.choice(num_clips, 2 * int(num_clips * COPIES), replace=False)
    originals, copies = np.split(chosen, 2)
    for clip in range(num_clips):
        hashes[clip] ^= flips(rng)
    for original, copy in zip(originals, copies, strict=True):
        hashes[copy] = hashes[original] ^ flips(rng)
    return [[frame.tobytes().hex() for frame in clip] for clip in hashes]


def flips(rng: np.random.Generator) -> np.ndarray:
    """Bits to change in the hashes of one clip."""
    return np.packbits(rng.random((HASHES, 256)) < 0.06, axis=1)


def make_tables(root: str, num_clips: int) -> None:
    """Write tables of clips of 2 to 16 s from two sources, with ten scores for each clip."""
    rng = np.random.default_rng(0)
    number = np.arange(num_clips)
    ids = [content_id("clip", int(one)) for one in number]
    videos = [content_id("video", int(one)) for one in range(-(-num_clips // CLIPS_PER_VIDEO))]
    num_frames = rng.integers(48, 384, num_clips)
    start_s = number % CLIPS_PER_VIDEO * 20.0
    clips = {
        "clip_id": ids,
        "video_id": [videos[one // CLIPS_PER_VIDEO] for one in number],
        "num_frames": num_frames,
        "start_frame": (start_s * 24).astype(int),
        "start_s": start_s,
        "end_s": start_s + num_frames / 24,
        "fps_num": [24] * num_clips,
        "fps_den": [1] * num_clips,
        "height": [720] * num_clips,
        "width": rng.choice([1280, 960, 720], num_clips),
        "size_bytes": rng.integers(100_000, 10_000_000, num_clips),
    }
    write_rows(root, "clips", clips)
    of_video = [ids[start : start + CLIPS_PER_VIDEO] for start in range(0, num_clips, CLIPS_PER_VIDEO)]
    sources = rng.choice(["films", "phones"], len(videos))
    write_rows(root, "videos", {"video_id": videos, "clip_ids": of_video, "source": sources})
    hashes = enumerate(made_hashes(rng, num_clips))
    details = [json.dumps({"hashes": own, "frames_hash": str(place)}) for place, own in hashes]
    for scorer in ("phash", *SCORERS):
        scores = {"score_id": [content_id(one, scorer) for one in ids], "clip_id": ids, "scorer": [scorer] * num_clips}
        values = {"details": details} if scorer == "phash" else {"value": rng.random(num_clips)}
        write_rows(root, "scores", scores | values)


def main() -> None:
    """Print wall and CPU seconds of both steps, with everything new and with nothing new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    num_clips = parser.parse_args().clips
    limits = {"min_percentile": 1, "max_percentile": 99}
    selection = SelectConfig.model_validate(
        {
            "thresholds": dict.fromkeys(SCORERS, limits),
            "buckets": ["384px121@24", "384px57@24"],
            "max_per_video": 8,
            "sources": {"films": 2, "phones": 1},
        }
    )
    with tempfile.TemporaryDirectory() as root:
        make_tables(root, num_clips)
        run = Run(root=root)
        for when in ("all new", "nothing new"):
            for step, config in ((duplicates, DuplicatesConfig()), (select, selection)):
                wall_s, cpu_s = time.time(), time.process_time()
                result = step(run, config)
                wall_s, cpu_s = time.time() - wall_s, time.process_time() - cpu_s
                print(f"{result.step}, {when}: {wall_s:.1f} s, {cpu_s:.1f} s of CPU; {result.note}", flush=True)


if __name__ == "__main__":
    main()
