"""Fault test of the clips step: damaged videos, killed, frozen and doubled processes, a full disk must lose no row.

    uv run python benchmarks/faults.py                            # 200 videos, 30 of them damaged; minutes
    uv run python benchmarks/faults.py --videos 40 --damaged 9

A run without faults, one video after the other, gives the expected result. The run with faults starts the step again
each time it is killed. Then its tables and media are compared with the expected ones, row by row and frame by frame.
Where a fault ends a driver with an error, the error must name the fault. The full disk is a tmpfs of its own, so that
fault needs root; without it a message says that it was left out. Restarts of a Prefect server and kills of its workers
are tested in tests/flows/test_operations.py.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil

from pyramid_model.video.video import open_video
from tasks.cutting.clips import ClipsConfig, VideoWorker, clips
from tasks.running.run import RayConfig, Run, StepResult, lineage
from tasks.sources.ingest import hash_file
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.rows import ok_row
from tasks.tables.schemas import ID_COLUMNS

CONFIG = ClipsConfig(min_frames=8, max_frames=20, margin_frames=0)
HEIGHT, WIDTH, FPS, SHOTS = 64, 96, 24, (14, 18)
FILLER = "filler"  # file that fills the disk of a root
DISK_BYTES_PER_VIDEO = 2**20  # size of that disk
FROZEN_S = 45.0  # a driver stops if no block finishes within this time
ENCODER_NOISE = 1.0  # allowed mean difference of a frame, of 255; 0.3 was measured
TABLES = ("clips", "scores", "videos")


def flipped(data: bytes, seed: int) -> bytes:
    """Copy of the bytes with some bits of the pictures flipped."""
    damaged = bytearray(data)
    start = data.index(b"mdat") + 500
    for position in np.random.default_rng(seed).integers(start, len(data), 60):
        damaged[position] ^= 1 << int(position) % 8
    return bytes(damaged)


DAMAGE: tuple[Callable[[bytes, int], bytes], ...] = (
    lambda data, _: data[: len(data) * 6 // 10],  # the end is missing
    flipped,
    lambda _, seed: b"not a video %d" % seed,
    lambda data, seed: data[: 40 + seed],  # a header alone
    lambda data, _: data.replace(b"avc1", b"zzz9"),  # a codec that nobody knows
    lambda data, _: data.replace(b"moov", b"gone"),  # the index is missing
    lambda _, seed: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n%d.mp4\n#EXT-X-ENDLIST\n" % seed,
)


def shoot(path: Path, seed: int) -> None:
    """Write a video of two shots, each with its own moving texture."""
    random = np.random.default_rng(seed)
    with open_video(str(path), FPS) as video:
        for length in SHOTS:
            texture = random.integers(20, 236, (4, 6, 3), dtype=np.uint8)
            still = cv2.resize(texture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            video.write(np.stack([np.roll(still, 2 * shift, axis=1) for shift in range(length)]))


def make_footage(folder: Path, num_videos: int, num_damaged: int) -> None:
    """Write the videos; damaged ones are spread among them, and the kinds of damage alternate."""
    folder.mkdir(parents=True)
    for number in range(num_videos):
        path = folder / f"{number:03}.mp4"
        shoot(path, number)
        kind = number * num_damaged // num_videos
        if kind != (number + 1) * num_damaged // num_videos:
            path.write_bytes(DAMAGE[kind % len(DAMAGE)](path.read_bytes(), number))


def sources(folder: Path) -> list[dict[str, Any]]:
    """A row of `sources` for each file, as ingest writes it."""
    return [
        ok_row(
            {},
            source_id=content_id(str(path)),
            video_id=hash_file(str(path))[0],
            uri=str(path),
            path=path.name,
            size_bytes=path.stat().st_size,
            source="faults",
            license="CC0-1.0",
        )
        for path in sorted(folder.iterdir())
    ]


def undisturbed(folder: Path, media: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by table of a run without faults, one video after the other."""
    media.mkdir(parents=True)
    worker = VideoWorker(CONFIG.model_dump(mode="json"), str(media))
    try:
        return worker([row | {"committed_ids": []} for row in sources(folder)]).rows
    finally:
        worker.child.close()


def driver(root: str) -> StepResult:
    """One run of the step; the processes that are killed execute this."""
    return clips(Run(root=root, ray=RayConfig(num_cpus=2, no_progress_timeout_s=FROZEN_S)), CONFIG)


@dataclass(frozen=True)
class Blow:
    """A fault, which happens when this share of the videos is done.

    kill: signal to the victim; None for `disk`, which becomes full, and for `rival`, a second driver that starts.
    error: text that the error of the driver must contain; empty: any.
    """

    share: float
    kill: signal.Signals | None
    victim: str  # actor | driver | raylet | disk | rival
    error: str = ""

    @property
    def ends_driver(self) -> bool:
        """Whether the driver ends because of it."""
        return self.victim in ("driver", "raylet", "disk") or self.kill is signal.SIGSTOP

    def __str__(self) -> str:
        what = {"disk": "the disk became full", "rival": "a second driver started"}
        return what.get(self.victim) or f"{self.victim} got {self.kill.name if self.kill else ''}"


BLOWS = (
    Blow(0.1, signal.SIGKILL, "actor"),
    Blow(0.2, signal.SIGKILL, "driver"),
    Blow(0.4, signal.SIGTERM, "driver"),
    Blow(0.5, signal.SIGKILL, "raylet"),
    Blow(0.6, signal.SIGSTOP, "actor", "no_progress_timeout_s"),
    Blow(0.7, None, "disk", "No space left on device"),
    Blow(0.8, signal.SIGKILL, "driver"),
    Blow(0.85, None, "rival"),
)


def under_fire(root: str, num_videos: int, blows: Sequence[Blow] = BLOWS) -> Iterator[str]:
    """Run the step until it completes, with a fault now and then; yields a message for each event.

    Raises:
        RuntimeError: a driver ended without a fault, or its error does not name the fault.
    """
    waiting = list(blows)
    while True:
        drivers, strikes = [start_driver(root)], []
        family: dict[int, psutil.Process] = {}
        while drivers[0].poll() is None:
            family |= {child.pid: child for child in _descendants(drivers[0].pid)}
            done = read_table(root, "videos", ["video_id"]).num_rows
            if waiting and done >= waiting[0].share * num_videos and _strike(waiting[0], root, drivers, family):
                strikes.append(waiting.pop(0))
                yield f"{strikes[-1]} at {done} of {num_videos} videos"
            time.sleep(0.2)
        errors = [process.communicate()[1].decode() for process in drivers]
        (Path(root) / FILLER).unlink(missing_ok=True)
        yield from _buried(family)
        for process, error in zip(drivers, errors, strict=True):
            fatal = [blow for blow in strikes if blow.ends_driver]
            if process.returncode and not fatal:
                raise RuntimeError(f"the driver ended with {process.returncode}: {error[-3000:]}")
            if process.returncode and fatal[-1].error not in error:
                raise RuntimeError(
                    f"after {fatal[-1]}, the error does not contain {fatal[-1].error!r}: {error[-3000:]}"
                )
        if drivers[0].returncode == 0:
            yield from (f"the work was done before this could happen: {blow}" for blow in waiting)
            return


def start_driver(root: str) -> subprocess.Popen:
    """A process that runs the step once."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import faults; faults.driver({root!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def fill_disk(root: str) -> None:
    """Fill the file system of a root, which must be its own, with a file."""
    with contextlib.suppress(OSError), (Path(root) / FILLER).open("wb", buffering=0) as file:
        while file.write(bytes(2**16)):
            pass


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process, what: str) -> bool:
    """Whether the command line of a process contains a text; False if the process has ended."""
    try:
        return what in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _strike(blow: Blow, root: str, drivers: list[subprocess.Popen], family: dict[int, psutil.Process]) -> bool:
    """Cause a fault; False if its victim does not run yet."""
    if blow.victim == "rival":
        drivers.append(start_driver(root))
    elif blow.victim == "disk":
        fill_disk(root)
    elif blow.victim == "driver":
        assert blow.kill is not None
        drivers[0].send_signal(blow.kill)
        drivers[0].wait()
    else:
        name = {"actor": "MapWorker", "raylet": "/raylet/raylet"}[blow.victim]
        victim = next((child for child in family.values() if _runs(child, name)), None)
        if victim is None or blow.kill is None:
            return False
        victim.send_signal(blow.kill)
    return True


def _buried(family: dict[int, psutil.Process], patience_s: float = 60) -> Iterator[str]:
    """Wait until the actors and decoding processes of a driver have ended; Ray ends its other processes."""
    working = [
        child for child in family.values() if _runs(child, "tasks.running.isolated") or _runs(child, "MapWorker")
    ]
    _, alive = psutil.wait_procs(working, timeout=patience_s)
    for child in alive:
        yield f"process {child.pid} outlived its driver by {patience_s:g} s"
        child.kill()


def unlike(ours: Path, theirs: Path) -> str:
    """Message on how the pictures of a clip differ from those of the run without faults; empty if they do not.

    Files are not compared, since x264 does not always give the same bytes for the same frames.
    """
    if not ours.exists():
        return "is missing"
    actual, wanted = (pictures(path) for path in (ours, theirs))
    if actual.shape != wanted.shape:
        return f"has {len(actual)} frames, not {len(wanted)}"
    return "shows something else" if np.abs(actual - wanted).mean(axis=(1, 2)).max() > ENCODER_NOISE else ""


def pictures(path: Path) -> np.ndarray:
    """Luma of the frames of a file, (t h w) int."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)]).astype(int)


def differences(root: str, expected: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Differences between tables and media of a root and the expected ones, as messages; empty if there are none."""
    messages = []
    for table in TABLES:
        id_column = ID_COLUMNS[table]
        rows = read_table(root, table, newest=False).to_pylist()
        ids = Counter(row[id_column] for row in rows)
        doubled = [name for name, count in ids.items() if count > 1]
        if doubled:
            messages.append(f"{len(doubled)} ids of {table} are there more than once")
        wanted = {row[id_column] for row in expected[table]}
        if missing := wanted - set(ids):
            messages.append(f"{len(missing)} of {len(wanted)} rows of {table} are missing")
        if extra := set(ids) - wanted:
            messages.append(f"{len(extra)} rows of {table} should not be there")
    verdict = {row["video_id"]: (row["status"], row.get("error_type", "")) for row in expected["videos"]}
    for row in read_table(root, "videos", ["video_id", "path", "status", "error_type"]).to_pylist():
        if (row["status"], row["error_type"]) != verdict.get(row["video_id"]):
            messages.append(f"{row['path']}: {row['status']} {row['error_type']}, not {verdict.get(row['video_id'])}")
    media = Path(root) / "media" / "clips"
    theirs = {Path(row["uri"]).name: Path(row["uri"]) for row in expected["clips"]}
    messages += [f"the clip {path.name} should not be there" for path in media.glob("*.mp4") if path.name not in theirs]
    told = {name: unlike(media / name, path) for name, path in theirs.items()}
    return messages + [f"the clip {name} {what}" for name, what in told.items() if what]


@dataclass(frozen=True)
class Outcome:
    """Result of a run with faults."""

    differences: list[str]
    statuses: Counter[str]
    num_clips: int
    wall_s: float
    left_to_do: int


def run_under_fire(folder: Path, num_videos: int, num_damaged: int, blows: Sequence[Blow] = BLOWS) -> Outcome:
    """Write the footage, run without and with faults, and compare."""
    make_footage(folder / "footage", num_videos, num_damaged)
    expected = undisturbed(folder / "footage", folder / "undisturbed")
    with small_disk(folder / "root", DISK_BYTES_PER_VIDEO * num_videos) as has_own_disk:
        if not has_own_disk:
            print("the full disk is left out: mounting a tmpfs needs root", flush=True)
            blows = [blow for blow in blows if blow.victim != "disk"]
        run = Run(root=str(folder / "root"))
        append_block(run.root, "sources", sources(folder / "footage"), "faults", lineage(run, "faults", "1", CONFIG))
        started = time.monotonic()
        for event in under_fire(run.root, num_videos, blows):
            print(event, flush=True)
        wall_s = time.monotonic() - started
        statuses = Counter(read_table(run.root, "videos")["status"].to_pylist())
        left_to_do = driver(run.root).num_new
        return Outcome(differences(run.root, expected), statuses, len(expected["clips"]), wall_s, left_to_do)


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[bool]:
    """Mount a tmpfs of this size at a folder; yields whether that was possible."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main() -> None:
    """Parse the command line, run, print; exit code 1 if a row was lost or duplicated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=200, help="number of videos")
    parser.add_argument("--damaged", type=int, default=30, help="number of damaged videos among them")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="pyramid-faults-") as folder:
        outcome = run_under_fire(Path(folder), options.videos, options.damaged)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(outcome.statuses.items()))
    clips = f"{outcome.num_clips} clips; {outcome.left_to_do} left"
    print(f"{options.videos} videos: {counts}; {clips}; {outcome.wall_s:.0f} s")
    print(
        *outcome.differences
        or ["no row lost or duplicated; every clip shows the same pictures as in the run without faults"],
        sep="\n",
    )
    sys.exit(bool(outcome.differences or outcome.left_to_do or sum(outcome.statuses.values()) != options.videos))


if __name__ == "__main__":
    main()
