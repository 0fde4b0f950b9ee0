"""CPU cost of cutting videos into clips, compared with lower bounds, on footage made from `datasets/sample`.

    uv run python benchmarks/curation.py            # everything; ten minutes on two cores
    uv run python benchmarks/curation.py --quick    # shorter footage, fewer repetitions: a test of the script
    uv run python benchmarks/curation.py --only detection pass

Times are CPU seconds of all threads. Each ratio is the median of alternating runs, so that other work on the
machine slows both sides equally.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import psutil
from rich.console import Console
from rich.table import Table

from pyramid_model.shots.shots import ShotsConfig, find_shots
from pyramid_model.video.footage import decode
from pyramid_model.video.video import ClipWriter
from tasks.cutting.clips import VERSION, ClipsConfig, VideoWorker, clips
from tasks.cutting.video_pass import cut_video
from tasks.running.run import Run, StepResult, lineage
from tasks.scoring.scores import ScoresConfig, score_id, scores
from tasks.selecting.select import SelectConfig, select
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import ok_row

SAMPLE = Path(__file__).parents[1] / "datasets" / "sample"
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
FPS = 24


@dataclass(frozen=True)
class Figure:
    """A line of the table."""

    what: str
    figure: str
    target: str
    reached: bool


@dataclass(frozen=True)
class Effort:
    """Amount of footage and number of repetitions."""

    shot_frames: int  # of each of the eight sample files
    runs: int
    num_clips: int
    num_videos: int


FULL, QUICK = Effort(90, 5, 10_000, 500), Effort(32, 1, 500, 60)


def film(path: Path, size: tuple[int, int], shot_frames: int, start: int = 0) -> int:
    """Write a film of one shot from every sample file, (height, width) px; returns its number of frames."""
    height, width = size
    count = 0
    with av.open(str(path), "w") as container:
        options = {"crf": "23", "preset": "medium", "threads": "1"}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for source in sorted(file for file in SAMPLE.iterdir() if file.suffix in SUFFIXES):
            for frame in decode(str(source)):
                if frame.index >= start + shot_frames:
                    break
                if frame.index >= start:
                    image = frame.upright(height, width)
                    image.pts, image.time_base, image.pict_type = count, Fraction(1, FPS), 0  # type: ignore[assignment]
                    container.mux(stream.encode(image))
                    count += 1
        container.mux(stream.encode())
    return count


def cpu_s(call: Callable[[], Any]) -> float:
    """CPU seconds of a call in this process, all threads."""
    started = time.process_time()
    call()
    return time.process_time() - started


def taking_turns(first: Callable[[], float], second: Callable[[], float], runs: int) -> tuple[float, float, float]:
    """Median seconds of both calls and the median of their ratios, first to second; one run of each warms up."""
    first(), second()
    pairs = [(first(), second()) for _ in range(runs)]
    ones, others = zip(*pairs, strict=True)
    return statistics.median(ones), statistics.median(others), statistics.median(a / b for a, b in pairs)


def detection(path: Path, num_frames: int, effort: Effort) -> Iterator[Figure]:
    """Decoding and cut detection, ours and PySceneDetect's own, with the same detector at its defaults."""
    from scenedetect import AdaptiveDetector, detect

    def stock() -> list[int]:
        return [start.frame_num for start, _ in detect(str(path), AdaptiveDetector(min_scene_len=1))][1:]

    def ours() -> list[int]:
        return find_shots(str(path), ShotsConfig()).cuts

    same = stock() == ours()
    stock_s, ours_s, ratio = taking_turns(lambda: cpu_s(stock), lambda: cpu_s(ours), effort.runs)
    rates = f"{num_frames / ours_s:.0f} frames a CPU second, {num_frames / stock_s:.0f} by PySceneDetect alone"
    yield Figure(f"decoding and cuts, speed: {rates}", f"{ratio:.2f}", ">= 1.25", ratio >= 1.25)
    yield Figure(f"the same {len(ours())} cuts", "yes" if same else "no", "yes", same)


def source_item(path: Path, number: int = 0) -> dict[str, Any]:
    """Item that the clips step gives to a worker for a file."""
    columns = {"uri": str(path), "path": path.name, "size_bytes": path.stat().st_size, "source": "", "license": ""}
    return {"video_id": content_id(str(path), number), "attempt": 1, "committed_ids": [], **columns}


def cut(path: Path, folder: Path) -> list[dict[str, Any]]:
    """The clips of a file, by the whole pass."""
    with tempfile.TemporaryDirectory(dir=folder) as media, tempfile.TemporaryDirectory(dir=folder) as staging:
        return cut_video(source_item(path), ClipsConfig().model_dump(mode="json"), media, staging)["clips"]


def decode_and_encode(path: Path, folder: Path, spans: Sequence[tuple[int, int]]) -> None:
    """Lower bound for cutting at given frames: decode all frames, encode those of the clips."""
    ends = dict(spans)
    writer, first_pts, end = None, 0, 0
    config = ClipsConfig()
    with tempfile.TemporaryDirectory(dir=folder) as media, av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, base = Fraction(stream.average_rate or FPS), Fraction(stream.time_base or 1)
        for index, frame in enumerate(container.decode(stream)):
            if index in ends:
                name, first_pts, end = os.path.join(media, f"{index}.mp4"), frame.pts or 0, ends[index]
                writer = ClipWriter(name, frame.height, frame.width, rate, base, config.crf, config.preset)
            if writer:
                writer.write(frame, (frame.pts or 0) - first_pts)
                if index == end - 1:
                    writer.close()
                    writer = None


def whole_pass(path: Path, num_frames: int, effort: Effort, folder: Path) -> Iterator[Figure]:
    """The whole pass (probe, detect cuts, encode, score) compared with decoding and encoding alone."""
    spans = [(row["start_frame"], row["end_frame"]) for row in cut(path, folder)]
    whole_s, bare_s, ratio = taking_turns(
        lambda: cpu_s(lambda: cut(path, folder)),
        lambda: cpu_s(lambda: decode_and_encode(path, folder, spans)),
        effort.runs,
    )
    what = f"whole pass to decoding and encoding alone: {whole_s:.1f} to {bare_s:.1f} CPU s for {num_frames} frames"
    yield Figure(what, f"{ratio:.2f}", "<= 1.15", ratio <= 1.15)


def cut_cpu_s(path: Path, folder: Path) -> float:
    """CPU seconds of the whole pass; runs in a process of a pool."""
    cv2.setNumThreads(1)
    return cpu_s(lambda: cut(path, folder))


def two_workers(path: Path, num_frames: int, effort: Effort, folder: Path) -> Iterator[Figure]:
    """CPU time of two processes compared with one: whether a second process slows the first."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as one, ProcessPoolExecutor(2, mp_context=spawn) as two:

        def mean_s(pool: ProcessPoolExecutor) -> float:
            return statistics.mean(call.result() for call in [pool.submit(cut_cpu_s, path, folder) for _ in range(2)])

        two_s, one_s, ratio = taking_turns(lambda: mean_s(two), lambda: mean_s(one), effort.runs)
    source_s = num_frames / FPS
    what = f"two workers to one: {two_s / source_s:.2f} to {one_s / source_s:.2f} CPU s a second of footage"
    yield Figure(what, f"{ratio:.2f}", "<= 1.10", ratio <= 1.10)


def finished_root(root: Path, num_clips: int) -> Run:
    """Tables of a root with all clips cut and scored, as the steps write them; ten clips for each video, no media."""
    run = Run(root=str(root))
    done = lineage(run, "clips", VERSION, ClipsConfig())
    for first in range(0, num_clips // 10, 16):
        rows: dict[str, list[dict[str, Any]]] = {"sources": [], "clips": [], "scores": [], "videos": []}
        for video in range(first, min(first + 16, num_clips // 10)):
            for table, table_rows in _finished_video(f"video {video}").items():
                rows[table] += table_rows
        for table, table_rows in rows.items():
            append_block(run.root, table, table_rows, content_id(table, first), done)
    return run


def _finished_video(name: str) -> dict[str, list[dict[str, Any]]]:
    video_id = content_id(name)
    file = {"video_id": video_id, "uri": f"/footage/{name}.mp4", "path": f"{name}.mp4", "size_bytes": 1}
    spans = [{"start_frame": 100 * n, "end_frame": 100 * n + 97, "num_frames": 97} for n in range(10)]
    size = {"height": 720, "width": 1280, "fps_num": FPS, "fps_den": 1, "uri": "/media/clip.mp4"}
    clip_rows = [
        ok_row({}, clip_id=content_id(video_id, span), video_id=video_id, start_s=0.0, end_s=4.0, **span, **size)
        for span in spans
    ]
    ids = [row["clip_id"] for row in clip_rows]
    return {
        "sources": [ok_row({}, source_id=content_id("source", name), **file)],
        "clips": clip_rows,
        "scores": [
            ok_row({}, score_id=score_id(clip_id, scorer), clip_id=clip_id, scorer=scorer, value=1.0, details="{}")
            for clip_id in ids
            for scorer in ScoresConfig().scorers
        ],
        "videos": [ok_row({}, num_clips=len(ids), clip_ids=ids, **file)],
    }


def nothing_new(effort: Effort, folder: Path) -> Iterator[Figure]:
    """A second run over many clips."""
    run = finished_root(folder / "finished", effort.num_clips)
    choice = SelectConfig()
    select(run, choice)
    calls: dict[str, Callable[[], StepResult]] = {
        "clips": lambda: clips(run, ClipsConfig()),
        "scores": lambda: scores(run, ScoresConfig()),
        "select": lambda: select(run, choice),
    }
    for name, call in calls.items():
        started = time.process_time()
        result = call()
        taken_s = time.process_time() - started
        new = f", {result.num_new} new rows" if result.num_new else ""
        what = f"{effort.num_clips} clips, nothing new: {name}{new}"
        yield Figure(what, f"{taken_s:.1f} CPU s", "<= 5 CPU s", taken_s <= 5 and not result.num_new)


def memory(effort: Effort, folder: Path) -> Iterator[Figure]:
    """Resident memory of one decoding process over many videos; it is never replaced here."""
    paths = [folder / f"small {number}.mp4" for number in range(10)]
    for number, path in enumerate(paths):
        film(path, (96, 160), 12, start=number)
    media = folder / "media"
    media.mkdir()
    worker = VideoWorker(ClipsConfig(min_frames=5).model_dump(mode="json"), str(media))
    worker.child.max_calls = sys.maxsize
    settled = effort.num_videos // 10
    resident = []
    for number in range(effort.num_videos):
        [row] = worker([source_item(paths[number % 10], number)]).rows["videos"]
        if row["status"] != "ok":
            sys.exit(f"{row['path']}: {row['error']}")
        assert worker.child._child, "it lives from call to call"
        resident.append(psutil.Process(worker.child._child.pid).memory_info().rss / 2**20)
    worker.child.close()
    early, late = resident[settled - 1], resident[-1]
    slope = (late - early) / (effort.num_videos - settled) * 100
    what = f"memory of the decoder after {settled} and {effort.num_videos} videos: {early:.0f} and {late:.0f} MiB"
    yield Figure(what, f"{slope:.2f} MiB a 100", "< 1 MiB a 100", slope < 1)


def measured(only: Sequence[str], effort: Effort, folder: Path) -> Iterator[Figure]:
    """Yield the requested figures as they are measured."""
    path = folder / "film.mp4"
    num_frames = film(path, (720, 1280), effort.shot_frames) if {"detection", "pass", "workers"} & set(only) else 0
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "detection": lambda: detection(path, num_frames, effort),
        "pass": lambda: whole_pass(path, num_frames, effort, folder),
        "workers": lambda: two_workers(path, num_frames, effort, folder),
        "rerun": lambda: nothing_new(effort, folder),
        "memory": lambda: memory(effort, folder),
    }
    for name in only:
        yield from parts[name]()


def main() -> None:
    """Parse the command line and print."""
    names = ("detection", "pass", "workers", "rerun", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little footage, one run of each: a test of the script")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the parts")
    options = parser.parse_args()
    console = Console(width=150 if not sys.stdout.isatty() else None)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load}, Python {platform.python_version()}\n")
    cv2.setNumThreads(1)
    table = Table("what", "figure", "to reach", "")
    with tempfile.TemporaryDirectory(prefix="pyramid-curation-") as folder:
        for line in measured(options.only, QUICK if options.quick else FULL, Path(folder)):
            table.add_row(line.what, line.figure, line.target, "reached" if line.reached else "[red]not reached[/]")
    console.print(table)


if __name__ == "__main__":
    main()
