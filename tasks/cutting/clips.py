"""Step `clips`: decode every video once, find its cuts, encode its clips, and score them."""

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, TypedDict

import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import NOT_IDENTITY
from pyramid_model.shots.shots import ShotsConfig
from tasks.cutting.planning import ClipRules
from tasks.running.isolated import Crashed, Isolated, MemoryExceeded, TimedOut
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult, lineage, params_hash
from tasks.running.step import step
from tasks.running.work import PerItemWork, Produced
from tasks.tables import storage
from tasks.tables.appending import append_again
from tasks.tables.delta import read_table, table_version
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.rows import ClipRow, Row, ScoreRow, SourceRow, VideoRow, as_rows, bad_row

VERSION = "2"
SOURCE_COLUMNS = ("video_id", "uri", "path", "size_bytes", "source", "license")
SALVAGED = "salvaged: "  # start of the column `error` of a damaged video from which clips were made
MAX_BLOCK = 16  # videos; fewer if there are few videos, so that every actor gets some
LEAST_S = 20.0  # seconds that every video of a block gets, however long the others took
# About two minutes of 1080p, so that a block is committed within minutes even on a slow core. A larger video is a block
# of its own and gets proportionally more time.
MAX_BLOCK_BYTES = 128 * 2**20

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]


class ClipsConfig(ClipRules):
    """Settings by which videos are cut into clips."""

    shots: ShotsConfig = ShotsConfig()
    max_side: int | None = Field(
        default=None, ge=16, description="longer side of clips in px; null: the size of the video"
    )
    crf: int = Field(
        default=18, ge=0, le=51, description="x264 quality of clips; 0 is lossless, 18 is visually close to the source"
    )
    preset: Preset = Field(default="veryfast", description="x264 speed; slower presets make smaller files")
    # The only setting that changes some results and not others: it changes only the clips of damaged videos, and a
    # video must be decoded to know whether it is damaged. So it is part of the hash, and `_made_alike` counts an
    # undamaged video as done if it was cut with either value.
    salvage: bool = Field(default=False, description="use the undamaged parts of damaged or truncated videos")
    keep_hdr: bool = Field(
        default=False, description="use HDR videos, although their brightness is not converted to SDR"
    )
    crop_letterbox: bool = Field(default=False, description="remove black bars that are in all frames of a video")
    timeout_s: float = Field(
        default=1500,
        gt=0,
        description="a video fails after this time for each 128 MiB or part of it; a change redoes nothing",
        json_schema_extra=NOT_IDENTITY,
    )
    max_memory_gb: float = Field(
        default=4,
        gt=0,
        description="a video fails if cutting it takes more GiB of memory; a change redoes nothing",
        json_schema_extra=NOT_IDENTITY,
    )
    max_megapixels: float = Field(
        default=36,
        gt=0,
        description="a video with larger frames fails; 36 is above 8K; a change redoes nothing",
        json_schema_extra=NOT_IDENTITY,
    )


class VideoFile(TypedDict):
    """A file of a video: SOURCE_COLUMNS of its row in `sources`."""

    video_id: str
    uri: str
    path: str
    size_bytes: int
    source: str
    license: str


class VideoItem(VideoFile):
    """Work item of `VideoWorker`. committed_ids: clips and scores of the video that are in their tables already."""

    attempt: int
    committed_ids: list[str]


class VideoWorker:
    """Actor: cuts videos in a child process. If the child crashes or hangs, the video gets a failed row.

    Args:
        config: a ClipsConfig as JSON.
        media: URI of the folder of clips.
        block_timeout_s: longest time for a block, which must end within `ray.no_progress_timeout_s`.
    """

    def __init__(self, config: Mapping[str, object], media: str, block_timeout_s: float = math.inf):
        self.config, self.media, self.block_timeout_s = config, media, block_timeout_s
        self.settings = ClipsConfig.model_validate(config)
        max_bytes = int(self.settings.max_memory_gb * 2**30)
        self.child = Isolated("tasks.cutting.video_pass:cut_video", max_bytes=max_bytes)

    def __call__(self, items: Sequence[VideoItem]) -> Produced:
        """Rows of `clips`, `scores` and `videos`."""
        rows: dict[str, list[Row]] = {"clips": [], "scores": [], "videos": []}
        deadline = time.monotonic() + self.block_timeout_s
        for num_after, item in zip(reversed(range(len(items))), items, strict=True):
            limit_s = self.settings.timeout_s * num_portions(item)
            timeout_s = min(limit_s, share_s(deadline - time.monotonic(), num_after))
            for table, new_rows in self._cut(item, timeout_s).items():
                rows[table] += new_rows
        return Produced(rows)

    def _cut(self, item: VideoItem, timeout_s: float) -> dict[str, list[Row]]:
        # On the disk of the clips, so that a rename completes a clip. `vacuum` deletes old folders with this prefix.
        folder = storage.filesystem(self.media)[1] if storage.is_local(self.media) else None
        staging = tempfile.mkdtemp(prefix=".writing-", dir=folder)
        try:
            return self.child.call(timeout_s, item=item, config=self.config, media=self.media, staging=staging)
        except Crashed as err:
            problem = ("decoder_crashed", f"the decoding process ended: {err}")
        except TimedOut:
            problem = ("timeout", f"not done after {timeout_s:.3g} s (clips.timeout_s, ray.no_progress_timeout_s)")
        except MemoryExceeded as err:
            advice = "lower clips.max_side, or raise clips.max_memory_gb"
            problem = ("too_much_memory", f"cutting it took {err} of memory: {advice}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        columns: Row = {name: item[name] for name in SOURCE_COLUMNS}
        return {"videos": [bad_row(item, problem, **columns)]}


def num_portions(item: VideoItem) -> int:
    """Number of portions of MAX_BLOCK_BYTES in a video, by which its time limit is multiplied."""
    return max(1, math.ceil(item["size_bytes"] / MAX_BLOCK_BYTES))


def share_s(left_s: float, num_after: int) -> float:
    """Time limit of one video of a block, seconds: `left_s` minus LEAST_S for each of the `num_after` later videos."""
    return max(LEAST_S, left_s - num_after * LEAST_S)


class ClipsResult(StepResult):
    """Result of the clips step."""

    clips: str = Field(description="hash of the settings, in `videos.params_hash`: identifies the clips of this run")


@step
def clips(run: Run, config: ClipsConfig) -> ClipsResult:
    """Cut every ingested video into clips, unless it was cut with these settings before.

    Raises:
        ValueError: weights or a package of TransNetV2 are missing.
    """
    since = {table: table_version(run.root, table) for table in ("videos", "clips", "scores")}
    sources = _sources(run)
    attempts, to_restore = _pending(run, list(sources), config)
    restored = append_again(
        run.root, "videos", to_restore, lineage(run, "clips", VERSION, config), _with_equal_clips(config)
    )
    num_done = len(sources) - len(attempts)
    media = run.media("clips")
    items = _items(run, sources, attempts)
    patience_s = run.ray.no_progress_timeout_s * max((num_portions(item) for item in items), default=1)
    if attempts and config.shots.method == "transnetv2":
        from pyramid_model.shots.transnet import (
            load_network,  # imports OpenCV, which other users of the settings do not need
        )

        load_network(config.shots.weights)  # raises for a missing package or file, before any video is decoded
    if attempts and storage.is_local(media):
        storage.filesystem(media)[0].makedirs(storage.filesystem(media)[1], exist_ok=True)
    work = PerItemWork(
        step="clips",
        version=VERSION,
        config=config,
        worker=partial(
            VideoWorker, config=config.model_dump(mode="json"), media=media, block_timeout_s=0.9 * patience_s
        ),
        done_table="videos",
        since=since,
        block_size=min(MAX_BLOCK, 1 + len(attempts) // 64),
        max_block_bytes=MAX_BLOCK_BYTES,
        patience_s=patience_s,
    )
    result = run_blocks(run, work, items, num_done)
    note = f"{restored} videos use clips of an earlier run again" if restored else result.note
    return ClipsResult(**dict(result, note=note), clips=params_hash(config))


def _sources(run: Run) -> dict[str, list[VideoFile]]:
    """Files by video id, the newest first; the copy of a file under `media/sources` before the file itself."""
    rows = read_table(run.root, "sources", [*SOURCE_COLUMNS, "copy"], where=pc.field("status") == "ok")
    files: dict[str, list[VideoFile]] = {}
    for row in reversed(as_rows(rows, SourceRow)):
        uris = [row["copy"], row["uri"]] if row["copy"] else [row["uri"]]
        for uri in uris:
            file: VideoFile = {
                "video_id": row["video_id"],
                "uri": uri,
                "path": row["path"],
                "size_bytes": row["size_bytes"],
                "source": row["source"],
                "license": row["license"],
            }
            files.setdefault(row["video_id"], []).append(file)
    return files


def _pending(run: Run, video_ids: Sequence[str], settings: ClipsConfig) -> tuple[dict[str, int], list[str]]:
    """Videos that have to be cut with these settings, and videos whose rows have to be appended again.

    Returns:
        (attempt by video id of the videos to cut, ids of videos that were cut with these settings before, but whose
        newest row is of other settings).
    """
    names = ["video_id", "status", "params_hash", *ORDER]
    attempts = read_table(run.root, "videos", [*names, "step_version", "error"], newest=False)
    newest, of_settings = (
        {row["video_id"]: row for row in as_rows(newest_by(rows.select(names), ["video_id"]), VideoRow)}
        for rows in (attempts, attempts.filter(_with_equal_clips(settings)))
    )
    to_cut: dict[str, int] = {}
    to_restore = []
    for video_id in video_ids:
        last, done = newest.get(video_id), of_settings.get(video_id)
        if done is None or (run.retry_failed and done["status"] == "failed"):
            to_cut[video_id] = last["attempt"] + 1 if last else 1
        elif done != last or done["params_hash"] != params_hash(settings):
            to_restore.append(video_id)
    return to_cut, to_restore


def _with_equal_clips(settings: ClipsConfig) -> pc.Expression:
    """Rows of `videos` whose clips are those that these settings give.

    `salvage` does not change the clips of an undamaged video.
    """
    other = ClipsConfig.model_validate(settings.model_dump() | {"salvage": not settings.salvage})
    salvaged = pc.starts_with(pc.field("error"), SALVAGED)  # pyright: ignore[reportAttributeAccessIssue]
    undamaged = (pc.field("status") == "ok") & ~salvaged
    same_clips = (pc.field("params_hash") == params_hash(other)) & undamaged
    return (pc.field("step_version") == VERSION) & ((pc.field("params_hash") == params_hash(settings)) | same_clips)


def _items(run: Run, sources: Mapping[str, list[VideoFile]], attempts: Mapping[str, int]) -> list[VideoItem]:
    """Work items, the largest files first, so that no large file is cut alone at the end.

    A killed run may have committed clips and scores of a video without the row of the video: these are not appended
    again.
    """
    if not attempts:
        return []
    committed = _committed_ids(run, attempts)
    items: list[VideoItem] = [
        {**_existing_file(sources[video_id]), "attempt": attempt, "committed_ids": committed.get(video_id, [])}
        for video_id, attempt in attempts.items()
    ]
    return sorted(items, key=lambda item: (-item["size_bytes"], item["video_id"]))


def _existing_file(files: Sequence[VideoFile]) -> VideoFile:
    """The first file that exists; the first of all if none exists."""
    return next((file for file in files if len(files) > 1 and storage.exists(file["uri"])), files[0])


def _committed_ids(run: Run, video_ids: Iterable[str]) -> dict[str, list[str]]:
    """Ids of committed clips and scores by video id."""
    of_videos = pc.field("video_id").isin(list(video_ids))
    rows = as_rows(read_table(run.root, "clips", ["clip_id", "video_id"], where=of_videos), ClipRow)
    video_of = {row["clip_id"]: row["video_id"] for row in rows}
    ids: dict[str, list[str]] = {}
    for clip_id, video_id in video_of.items():
        ids.setdefault(video_id, []).append(clip_id)
    if video_of:
        of_clips = pc.field("clip_id").isin(list(video_of))
        for row in as_rows(read_table(run.root, "scores", ["score_id", "clip_id"], where=of_clips), ScoreRow):
            ids[video_of[row["clip_id"]]].append(row["score_id"])
    return ids
