"""Cost of finding duplicates and selecting, by the number of clips: synthetic scores and hashes in real tables.

uv run python benchmarks/selecting.py               # 100,000 clips
uv run python benchmarks/selecting.py --clips 10000
"""

import argparse
import json
import tempfile
import time

import numpy as np
from scale import CLIPS_PER_VIDEO, clip_columns, write_rows

from tasks.running.run import Run
from tasks.selecting.duplicates import DuplicatesConfig, duplicates
from tasks.selecting.select import SelectConfig, select
from tasks.tables.content_ids import content_id

SCORERS = [f"score{number}" for number in range(10)]
HASHES = 20  # of a clip of five seconds
COPIES = 0.05  # share of the clips that are copies of a clip of another video


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
    ids = [content_id("clip", number) for number in range(num_clips)]
    videos = [content_id("video", number) for number in range(-(-num_clips // CLIPS_PER_VIDEO))]
    write_rows(root, "clips", clip_columns(rng, ids, videos))
    of_video = [ids[start : start + CLIPS_PER_VIDEO] for start in range(0, num_clips, CLIPS_PER_VIDEO)]
    sources = rng.choice(["films", "phones"], len(videos))
    write_rows(root, "videos", {"video_id": videos, "clip_ids": of_video, "source": sources})
    hashes = enumerate(made_hashes(rng, num_clips))
    details = [json.dumps({"hashes": of_clip, "frames_hash": str(place)}) for place, of_clip in hashes]
    for scorer in ("phash", *SCORERS):
        scores = {
            "score_id": [content_id(clip_id, scorer) for clip_id in ids],
            "clip_id": ids,
            "scorer": [scorer] * num_clips,
        }
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
