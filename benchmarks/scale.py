"""Time and peak memory of everything that reads or writes whole tables, by the number of clips; synthetic tables.

uv run python benchmarks/scale.py                          # 10,000, 100,000 and 1,000,000 clips
uv run python benchmarks/scale.py --clips 10000 100000     # fewer
uv run python benchmarks/scale.py --commits 4000           # one append after every number of commits before it

Each clip has 24 scores, 12 of them with the ids of the scores that `curate` computes. There are no media files. Each
measurement is a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pyramid_model.metrics.scorers import IN_DECODE_PASS
from tasks.cutting.clips import ClipsConfig, clips
from tasks.inspecting.table_stats import histograms, status_counts
from tasks.inspecting.verify import verify
from tasks.report.report import ReportConfig, report
from tasks.running.run import Run, params_hash
from tasks.scoring.scores import ScoresConfig, score_id, scores
from tasks.selecting.duplicates import DuplicatesConfig, duplicates
from tasks.selecting.select import SelectConfig, select
from tasks.tables.appending import CONFIGURATION, append_block
from tasks.tables.committed_ids import CommittedIds
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table, table_uri, table_version
from tasks.tables.parquet_files import commit, write_parquet
from tasks.tables.pending import pending
from tasks.tables.rows import Lineage, ok_row
from tasks.tables.schemas import SCHEMAS

CLIPS_PER_VIDEO = 10
PER_FILE = 50_000  # clips of one file of `clips`
OTHER_SCORERS = [f"model{number}" for number in range(24 - len(IN_DECODE_PASS))]
LINEAGE = Lineage("scale", "scale", "1", "scale", "scale")


def write_rows(root: str, table: str, columns: Mapping[str, Any]) -> None:
    """Append ok rows in one commit; missing columns are empty."""
    from deltalake import DeltaTable

    count = len(next(iter(columns.values())))
    common = {"status": "ok", "error_type": "", "error": "", "attempt": 1, "run_id": "scale", "step_version": "2"}
    common |= {"params_hash": "scale", "code_version": "scale", "created_at": datetime.now(UTC)}
    arrays = []
    for field in SCHEMAS[table]:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        elif field.name in common:
            arrays.append(pa.repeat(pa.scalar(common[field.name], field.type), count))
        else:
            arrays.append(pa.nulls(count, field.type))
    uri = table_uri(root, table)
    delta = DeltaTable.create(uri, schema=SCHEMAS[table], mode="ignore", name=table, configuration=CONFIGURATION)
    rows = pa.table(arrays, schema=SCHEMAS[table])
    place = rows.schema.get_field_index("commit_order")
    rows = rows.set_column(place, "commit_order", pa.repeat(pa.scalar(delta.version() + 1, pa.int64()), count))
    commit(delta, table, [write_parquet(uri, table, [rows])])


def random_ids(rng: np.random.Generator, count: int) -> list[str]:
    """Ids like content ids, without the time to hash."""
    text = rng.bytes(16 * count).hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


def clip_columns(rng: np.random.Generator, ids: Sequence[str], videos: Sequence[str]) -> dict[str, Any]:
    """Columns of `clips` of 2 to 16 s without files; CLIPS_PER_VIDEO clips of each video."""
    count, number = len(ids), np.arange(len(ids))
    num_frames, start_s = rng.integers(48, 384, count), number % CLIPS_PER_VIDEO * 20.0
    return {
        "clip_id": ids,
        "video_id": [videos[place // CLIPS_PER_VIDEO] for place in number],
        "num_frames": num_frames,
        "start_frame": (start_s * 24).astype(int),
        "start_s": start_s,
        "end_s": start_s + num_frames / 24,
        "fps_num": np.full(count, 24),
        "fps_den": np.full(count, 1),
        "height": np.full(count, 720),
        "width": rng.choice([1280, 960, 720], count),
        "size_bytes": rng.integers(100_000, 10_000_000, count),
        "uri": [""] * count,
    }


def make_tables(root: str, num_clips: int) -> None:
    """Sources, videos, clips and scores, as `curate` writes them."""
    rng = np.random.default_rng(0)
    for first in range(0, num_clips, PER_FILE):
        count = min(PER_FILE, num_clips - first)
        ids, videos = random_ids(rng, count), random_ids(rng, -(-count // CLIPS_PER_VIDEO))
        source = rng.choice(["films", "phones"], len(videos)).tolist()
        files = {"video_id": videos, "uri": [f"/videos/{name}.mp4" for name in videos], "source": source}
        files |= {name: [""] * len(videos) for name in ("path", "card", "annotations", "copy")}
        write_rows(root, "sources", files | {"source_id": random_ids(rng, len(videos))})
        of_video = [ids[start : start + CLIPS_PER_VIDEO] for start in range(0, count, CLIPS_PER_VIDEO)]
        settings = [params_hash(ClipsConfig())] * len(videos)
        files = {name: files[name] for name in ("video_id", "uri", "path", "source")}
        write_rows(root, "videos", files | {"clip_ids": of_video, "params_hash": settings})
        write_rows(root, "clips", clip_columns(rng, ids, videos))
        for scorer in (*IN_DECODE_PASS, *OTHER_SCORERS):
            computed = scorer in IN_DECODE_PASS
            score_ids = [score_id(clip_id, scorer) for clip_id in ids] if computed else random_ids(rng, count)
            columns = {"score_id": score_ids, "clip_id": ids, "scorer": [scorer] * count, "value": rng.random(count)}
            if scorer == "phash":
                hashes = [rng.bytes(32).hex() for _ in range(4 * count)]
                columns["details"] = [
                    json.dumps({"hashes": hashes[4 * place : 4 * place + 4], "frames_hash": clip_id})
                    for place, clip_id in enumerate(ids)
                ]
            write_rows(root, "scores", columns)


def block(number: int) -> list[dict[str, Any]]:
    """Rows of `scores` of ten new clips."""
    clip_ids = [content_id("new clip", number, place) for place in range(10)]
    return [
        ok_row({}, score_id=content_id(clip_id, scorer), clip_id=clip_id, scorer=str(scorer), value=1.0)
        for clip_id in clip_ids
        for scorer in range(24)
    ]


def one_append(root: str) -> None:
    """One block, as an actor appends it."""
    others = CommittedIds("scores", table_version(root, "scores"), "0" * 32)
    append_block(root, "scores", block(0), "block", LINEAGE, others)


def all_pending(root: str) -> None:
    """Which clips have no row."""
    assert not pending(root, "clips", read_table(root, "clips", ["clip_id"])["clip_id"].to_pylist()).attempts


def stats(root: str) -> None:
    """What `manifest stats` computes of scores."""
    status_counts(root, "scores")
    histograms(root, "scores")


def nothing_new(root: str) -> None:
    """The steps of `curate` that look for missing rows."""
    assert clips(Run(root=root), ClipsConfig()).num_new == 0
    assert scores(Run(root=root), ScoresConfig()).num_new == 0


def selected(root: str) -> None:
    """A selection with limits on every score."""
    limits = {scorer: {"min_percentile": 1, "max_percentile": 99} for scorer in OTHER_SCORERS}
    buckets = ["384px121@24", "384px57@24"]
    select(Run(root=root), SelectConfig.model_validate({"thresholds": limits, "buckets": buckets, "max_per_video": 8}))


MEASURED: dict[str, Callable[[str], object]] = {
    "pending": all_pending,
    "one append": one_append,
    "duplicates (exact)": lambda root: duplicates(Run(root=root), DuplicatesConfig(methods=("exact",))),
    "select": selected,
    "nothing new": nothing_new,
    "verify": lambda root: list(verify(root)),
    "stats of scores": stats,
    "report": lambda root: report(Run(root=root), ReportConfig()),
}


def measured(name: str, root: str, results: Any) -> None:
    """Put wall time, s, and the growth of the peak memory of this process, GiB, into a queue."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    MEASURED[name](root)
    wall_s = time.perf_counter() - started
    results.put((wall_s, before / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def measure_commits(count: int) -> None:
    """Print the mean time of an append after every number of commits."""
    with tempfile.TemporaryDirectory() as root:
        others, step = CommittedIds("scores", -1, "0" * 32), max(1, count // 8)
        started, cpu = time.perf_counter(), time.process_time()
        for number in range(1, count + 1):
            append_block(root, "scores", block(number), f"block {number}", LINEAGE, others)
            if number % step == 0:
                wall_ms = 1000 * (time.perf_counter() - started) / step
                cpu_ms = 1000 * (time.process_time() - cpu) / step
                print(f"{number:,} commits: {wall_ms:.0f} ms, {cpu_ms:.0f} ms of CPU for each of the last {step:,}")
                started, cpu = time.perf_counter(), time.process_time()


def main() -> None:
    """Print a line for each size and measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", default=list(MEASURED), choices=list(MEASURED))
    parser.add_argument("--commits", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.commits:
        measure_commits(arguments.commits)
        return
    context = multiprocessing.get_context("spawn")
    for num_clips in arguments.clips:
        with tempfile.TemporaryDirectory() as root:
            started = time.perf_counter()
            make_tables(root, num_clips)
            print(f"{num_clips:,} clips made in {time.perf_counter() - started:.0f} s", flush=True)
            for name in arguments.only:
                results = context.Queue()
                process = context.Process(target=measured, args=(name, root, results))
                process.start()
                process.join()
                line = "failed"
                if process.exitcode == 0:
                    wall_s, before, peak = results.get()
                    line = f"{wall_s:.2f} s, peak {peak:.2f} GiB ({before:.2f} before)"
                print(f"  {num_clips:,} clips, {name}: {line}", flush=True)


if __name__ == "__main__":
    main()
