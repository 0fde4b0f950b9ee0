"""Videos to clips: every video is decoded once; that pass finds its cuts, encodes its clips and scores them."""

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import NOT_IDENTITY
from pyramid_model.shots.shots import ShotsConfig
from tasks.cutting.planning import ClipRules
from tasks.running.isolated import Crashed, Isolated, TimedOut, TookTooMuch
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult, lineage, params_hash
from tasks.running.step import step
from tasks.running.work import Item, PerItemWork, Produced
from tasks.tables import storage
from tasks.tables.appending import append_again
from tasks.tables.delta import bad_row, read_table
from tasks.tables.newest import ORDER, newest_by

VERSION = "2"
SOURCE_COLUMNS = ("video_id", "uri", "path", "size_bytes", "source", "license")
SALVAGED = "salvaged: "  # what the remark on a damaged video that gave clips begins with
MAX_BLOCK = 16  # videos; fewer while there are few, so that every actor has some
LEAST_S = 20.0  # seconds that every video of a block has, however long those before it took
# About two minutes of 1080p: a block commits within minutes, on a slow core too. A larger video has a block to itself,
# and as much more time.
MAX_BLOCK_BYTES = 128 * 2**20

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]


class ClipsConfig(ClipRules):
    """How videos are cut into clips."""

    shots: ShotsConfig = ShotsConfig()
    max_side: int | None = Field(None, ge=16, description="longer side of clips in px; null: the size of the video")
    crf: int = Field(
        18, ge=0, le=51, description="x264 quality of clips; 0 is lossless, 18 is visually close to the source"
    )
    preset: Preset = Field("veryfast", description="x264 speed; slower presets make smaller files")
    salvage: bool = Field(False, description="use the undamaged parts of damaged or truncated videos")
    keep_hdr: bool = Field(False, description="use HDR videos, although their brightness is not converted to SDR")
    crop_letterbox: bool = Field(False, description="remove black bars that are in all frames of a video")
    timeout_s: float = Field(
        1500,
        gt=0,
        description="a video fails after this time for each 128 MiB or part of it; a change redoes nothing",
        json_schema_extra=NOT_IDENTITY,
    )
    max_memory_gb: float = Field(
        4,
        gt=0,
        description="a video fails if cutting it takes more GiB of memory; a change redoes nothing",
        json_schema_extra=NOT_IDENTITY,
    )
    max_megapixels: float = Field(
        36,
        gt=0,
        description="a video with larger frames fails; 36 is above 8K; a change redoes nothing",
        json_schema_extra=NOT_IDENTITY,
    )


class VideoWorker:
    """Actor: has its videos cut in a child process, and turns a crash or a hang of that into a row.

    block_timeout_s: a block ends within it, since the pipeline's patience ends soon after.
    """

    def __init__(self, config: dict[str, Any], media: str, block_timeout_s: float = math.inf):
        self.config, self.media, self.block_timeout_s = config, media, block_timeout_s
        max_bytes = int(ClipsConfig.model_validate(config).max_memory_gb * 2**30)
        self.child = Isolated("tasks.cutting.video_pass:cut_video", max_bytes=max_bytes)

    def __call__(self, items: list[Item]) -> Produced:
        """Rows of clips, scores and videos."""
        rows: dict[str, list[dict[str, Any]]] = {"clips": [], "scores": [], "videos": []}
        deadline = time.monotonic() + self.block_timeout_s
        for num_after, item in zip(reversed(range(len(items))), items, strict=True):
            limit_s = self.config["timeout_s"] * num_portions(item)
            timeout_s = min(limit_s, share_s(deadline - time.monotonic(), num_after))
            for table, found in self._cut(item, timeout_s).items():
                rows[table] += found
        return Produced(rows)

    def _cut(self, item: dict[str, Any], timeout_s: float) -> dict[str, list[dict[str, Any]]]:
        # Beside the clips, so that finished ones appear by a rename; vacuum knows the prefix.
        folder = storage.filesystem(self.media)[1] if storage.is_local(self.media) else None
        staging = tempfile.mkdtemp(prefix=".writing-", dir=folder)
        try:
            return self.child.call(timeout_s, item=item, config=self.config, media=self.media, staging=staging)
        except Crashed as err:
            problem = ("decoder_crashed", f"the decoding process was lost: {err}")
        except TimedOut:
            problem = ("timeout", f"not done after {timeout_s:.3g} s (clips.timeout_s, ray.no_progress_timeout_s)")
        except TookTooMuch as err:
            advice = "lower clips.max_side, or raise clips.max_memory_gb"
            problem = ("too_much_memory", f"cutting it took {err} of memory: {advice}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        columns = {name: item[name] for name in SOURCE_COLUMNS}
        return {"videos": [bad_row(item, problem, **columns)]}


def num_portions(item: Mapping[str, Any]) -> int:
    """How many times as long as a small video this one may take."""
    return max(1, math.ceil(item["size_bytes"] / MAX_BLOCK_BYTES))


def share_s(left_s: float, num_after: int) -> float:
    """Seconds that one video of a block may take: one that hangs leaves its time to each of the `num_after` others."""
    return max(LEAST_S, left_s - num_after * LEAST_S)


class ClipsResult(StepResult):
    """What the clips step hands on."""

    clips: str = Field(description="hash of the settings, in `videos.params_hash`: names the clips of this run")


@step
def clips(run: Run, config: ClipsConfig) -> ClipsResult:
    """Cut every ingested video at its shots into clips, unless that was done with these settings before."""
    sources = _sources(run)
    attempts, to_restore = _pending(run, list(sources), config)
    restored = append_again(run.root, "videos", to_restore, lineage(run, "clips", VERSION, config), _made_alike(config))
    num_done = len(sources) - len(attempts)
    media = run.media("clips")
    items = _items(run, sources, attempts)
    patience_s = run.ray.no_progress_timeout_s * max((num_portions(item) for item in items), default=1)
    if attempts and config.shots.method == "transnetv2":
        from pyramid_model.shots.transnet import (
            load_network,  # OpenCV, which other readers of these settings do without
        )

        load_network(config.shots.weights)  # a missing package or file is said once, before any video is tried
    if attempts and storage.is_local(media):
        storage.filesystem(media)[0].makedirs(storage.filesystem(media)[1], exist_ok=True)
    work = PerItemWork(
        step="clips",
        version=VERSION,
        config=config,
        worker=VideoWorker,
        done_table="videos",
        worker_args={
            "config": config.model_dump(mode="json"),
            "media": media,
            "block_timeout_s": 0.9 * patience_s,
        },
        block_size=min(MAX_BLOCK, 1 + len(attempts) // 64),
        max_block_bytes=MAX_BLOCK_BYTES,
        patience_s=patience_s,
    )
    result = run_blocks(run, work, items, num_done)
    note = f"{restored} videos are back to clips that were made before" if restored else result.note
    return ClipsResult(**dict(result, note=note), clips=params_hash(config))


def _sources(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The files of every video, the newest first, by video id; our own copy of a file before the file itself."""
    rows = read_table(run.root, "sources", [*SOURCE_COLUMNS, "copy"], where=pc.field("status") == "ok")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in reversed(rows.to_pylist()):
        copy = row.pop("copy")
        found.setdefault(row["video_id"], []).extend([row | {"uri": copy}, row] if copy else [row])
    return found


def _pending(run: Run, wanted: Sequence[str], settings: ClipsConfig) -> tuple[dict[str, int], list[str]]:
    """What these settings still have to do.

    Returns:
        (video id -> attempt) of the videos to cut, and the ids of those that were cut with these settings before, but
        whose newest row is of other settings.
    """
    names = ["video_id", "status", "params_hash", *ORDER]
    attempts = read_table(run.root, "videos", [*names, "step_version", "error"], latest=False)
    newest, ours = (
        {row["video_id"]: row for row in newest_by(rows.select(names), ["video_id"]).to_pylist()}
        for rows in (attempts, attempts.filter(_made_alike(settings)))
    )
    to_cut: dict[str, int] = {}
    to_restore = []
    for video_id in wanted:
        last, done = newest.get(video_id, {"attempt": 0}), ours.get(video_id)
        if done is None or (run.retry_failed and done["status"] == "failed"):
            to_cut[video_id] = last["attempt"] + 1
        elif done != last or done["params_hash"] != params_hash(settings):
            to_restore.append(video_id)
    return to_cut, to_restore


def _made_alike(settings: ClipsConfig) -> pc.Expression:
    """Rows of `videos` whose clips these settings would give too.

    A sound video gives the same clips whether or not damaged ones are salvaged.
    """
    other = ClipsConfig.model_validate(settings.model_dump() | {"salvage": not settings.salvage})
    salvaged = pc.starts_with(pc.field("error"), SALVAGED)  # pyright: ignore[reportAttributeAccessIssue]
    sound = (pc.field("status") == "ok") & ~salvaged
    alike = (pc.field("params_hash") == params_hash(other)) & sound
    return (pc.field("step_version") == VERSION) & ((pc.field("params_hash") == params_hash(settings)) | alike)


def _items(run: Run, sources: Mapping[str, list[dict[str, Any]]], attempts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Work for the actors, the largest files first so that none of them comes last and alone.

    Clips and scores are committed before the row of their video: those that a killed run left are `known`.
    """
    if not attempts:
        return []
    known = _known(run, attempts)
    items = [
        _present(sources[video_id]) | {"attempt": attempt, "known": known.get(video_id, [])}
        for video_id, attempt in attempts.items()
    ]
    return sorted(items, key=lambda item: (-item["size_bytes"], item["video_id"]))


def _present(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The newest of the files with the same bytes that is still there."""
    return next((file for file in files if len(files) > 1 and storage.exists(file["uri"])), files[0])


def _known(run: Run, video_ids: Iterable[str]) -> dict[str, list[str]]:
    """Committed clip and score ids by video id."""
    of_videos = pc.field("video_id").isin(list(video_ids))
    rows = read_table(run.root, "clips", ["clip_id", "video_id"], where=of_videos).to_pylist()
    video_of = {row["clip_id"]: row["video_id"] for row in rows}
    known: dict[str, list[str]] = {}
    for clip_id, video_id in video_of.items():
        known.setdefault(video_id, []).append(clip_id)
    if video_of:
        of_clips = pc.field("clip_id").isin(list(video_of))
        for row in read_table(run.root, "scores", ["score_id", "clip_id"], where=of_clips).to_pylist():
            known[video_of[row["clip_id"]]].append(row["score_id"])
    return known
