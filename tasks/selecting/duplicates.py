"""Step duplicates: groups of equal, nearly equal and semantically similar clips, and the clip of each group to keep.

The step reads rows only: hashes of the scorer `phash`, and vectors of the table `embeddings`. The table `duplicates`
holds the result of the last search: a clip whose group changed gets a new row, and a clip that is no longer in a group
gets a row without a group.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import itertools
import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike
from pydantic import Field, field_validator

from pyramid_model.config import NOT_IDENTITY, Config
from pyramid_model.duplicates import Pairs, across_videos, equal, groups, groups_around, near_by_embedding, near_by_hash
from pyramid_model.metrics.facts import PHASH
from tasks.running.errors import StepError
from tasks.running.run import Run, StepResult, lineage
from tasks.running.step import step
from tasks.scoring.embeddings import newest_source
from tasks.scoring.newest import TRIES
from tasks.tables.appending import append_again, append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import current_clips, current_duplicates
from tasks.tables.delta import as_dataset, open_table, read_table, table_version
from tasks.tables.newest import ORDER, newest_ok_by, newest_row
from tasks.tables.rows import DuplicateColumns, DuplicateRow, EmbeddingRow, Row, as_rows, ok_row, skipped_row
from tasks.tables.schemas import DUPLICATE_METHODS, DuplicateMethod

VERSION = "1"
CLIP_COLUMNS = ("clip_id", "video_id", "width", "height", "size_bytes", "num_frames")
NO_GROUP = {"group_id": "", "keeper": False, "rank": 0, "num_clips": 0, "similarity": 0.0}


class DuplicatesConfig(Config):
    """Methods that find duplicates, and their limits."""

    clips: str = Field(
        default="", description="clips to use, as an output of the clips step; empty: the newest clips of each video"
    )
    versions: dict[str, int] = Field(
        default={},
        description="versions of the tables scores and embeddings to read, as the scores step states them; empty: the "
        "newest",
        json_schema_extra=NOT_IDENTITY,
    )
    methods: tuple[DuplicateMethod, ...] = Field(
        default=("exact", "phash"),
        description="exact: equal frames; phash: re-encoded, scaled or slightly cropped copies in other videos; "
        "semantic: similar by the features of a vision model, needs embeddings",
    )
    max_distance: int = Field(
        default=32,
        ge=0,
        le=64,
        description="phash: two frames are equal if at most this many of 256 bits differ; re-encoding changes up to 15",
    )
    min_share: float = Field(
        default=0.6, gt=0, le=1, description="phash: share of a clip's frames that must match a frame of the other one"
    )
    eps: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="semantic: two clips are similar if the cosine of their features is at least 1 - eps",
    )
    num_clusters: int | None = Field(
        default=None,
        ge=1,
        description="semantic: compare clips within this many clusters; empty: one for every 2,000 clips",
    )

    @field_validator("methods")
    @classmethod
    def _in_order(cls, methods: tuple[DuplicateMethod, ...]) -> tuple[DuplicateMethod, ...]:
        return tuple(method for method in DUPLICATE_METHODS if method in methods)


@step
def duplicates(run: Run, config: DuplicatesConfig) -> StepResult:
    """Find the groups of duplicates among the current clips; rows in `duplicates` for those whose group is new.

    Raises:
        ValueError: no clip has the hash or the embedding that a method compares.
    """
    started = time.time()
    clips = current_clips(run.root, CLIP_COLUMNS, config.clips).sort_by("clip_id")
    clip_ids = clips["clip_id"].to_pylist()
    rank = keeping_order(clips)
    grouped: dict[str, DuplicateColumns] = {}
    for method in config.methods:
        for row in _group_rows(method, _pairs(run, config, method, clips), clip_ids, rank, config.clips):
            grouped[row["duplicate_id"]] = row
    rows, version = _append(run, config, grouped)
    num_new = len({row["clip_id"] for row in rows} & set(clip_ids))
    return StepResult(
        step="duplicates",
        num_in=len(clip_ids),
        num_done=len(clip_ids) - num_new,
        num_ok=num_new,
        rows={"duplicates": len(rows)} if rows else {},
        versions={"duplicates": version},
        note=_note(run, grouped.values(), len(clip_ids)),
        busy_s=time.time() - started,
    )


def duplicate_id(clip_id: str, method: str, clips: str) -> str:
    """Id of the row of one clip and method. clips: settings of the clips step whose clips were compared."""
    return content_id(clip_id, method, clips)


def _append(run: Run, config: DuplicatesConfig, grouped: Mapping[str, DuplicateColumns]) -> tuple[list[Row], int]:
    """Append rows for the clips whose group changed since the last search among these clips.

    If no group changed but the newest search is one among other clips, one row is appended again, so that this search
    becomes the newest. Another run may append other groups of the same clips at any time, so the step that follows
    reads the returned version.

    Returns:
        (rows appended, version of the table at which these groups are the newest).

    Raises:
        StepError: another run appended other groups at each try.
    """
    settings = lineage(run, "duplicates", VERSION, config)
    appended: list[Row] = []
    for _ in range(TRIES):
        version = table_version(run.root, "duplicates")
        table = read_table(run.root, "duplicates", version=version)
        searched = (row for row in as_rows(table, DuplicateRow) if (row["clips"] or "") == config.clips)
        rows = _changed(grouped, {row["duplicate_id"]: row for row in searched})
        ids = sorted((row["duplicate_id"], row["attempt"], row["group_id"]) for row in rows)
        append_block(run.root, "duplicates", rows, content_id("duplicates", ids), settings)
        appended += rows
        last = newest_row(table, DuplicateRow)
        is_other = bool(grouped) and last is not None and (last["clips"] or "") != config.clips
        if not rows and is_other:
            append_again(run.root, "duplicates", [next(iter(grouped))], settings)
        elif not rows:
            return appended, version
    raise StepError("another run on this root groups the same clips again and again: let one run at a time")


def keeping_order(clips: pa.Table) -> np.ndarray:
    """Rank of each clip, (n,) int64; 0 is best. Of each group, the clip of the lowest rank is kept.

    Clips are ordered by pixels per frame (most first), then number of frames (most first, in steps of a fifth: the ends
    of copies differ by a few frames), then file size (largest first: all clips are encoded at one quality, so a larger
    file holds more detail), then id (smallest first). The order of the rows of `clips` does not matter.
    """
    ids = np.array(clips["clip_id"].to_pylist(), dtype=str)
    width, height, num_frames, size = (
        clips[name].to_numpy() for name in ("width", "height", "num_frames", "size_bytes")
    )
    frames = length_step(num_frames)
    place = np.empty(len(ids), np.int64)
    place[np.lexsort((ids, -size, -frames, -width * height))] = np.arange(len(ids))
    return place


def length_step(num_frames: ArrayLike) -> np.ndarray:
    """Number of frames, one or an array, as a step of about a fifth; clips of the same step count as equally long."""
    return np.rint(4 * np.log2(np.maximum(1, num_frames)))


def _pairs(run: Run, config: DuplicatesConfig, method: DuplicateMethod, clips: pa.Table) -> Pairs:
    """Pairs of duplicate clips by one method, as positions in `clips`."""
    clip_ids = clips["clip_id"].to_pylist()
    if method == "semantic":
        at, vectors = mean_embeddings(run.root, clip_ids, config.versions.get("embeddings"))
        pairs = near_by_embedding(vectors, config.eps, config.num_clusters)
        return Pairs(at[pairs.first], at[pairs.second], pairs.similarity)
    details = _phash_details(run, clip_ids, config.versions.get("scores"))
    hex_hashes = [details.get(clip_id, {}).get("hashes", []) for clip_id in clip_ids]
    if method == "exact":  # clips without content, such as black ones, have no hashes: they are equal by chance
        return equal(
            [
                details[clip_id]["frames_hash"] if texts else ""
                for clip_id, texts in zip(clip_ids, hex_hashes, strict=True)
            ]
        )
    hashes = [np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(-1, 32) for texts in hex_hashes]
    video = np.unique(np.array(clips["video_id"].to_pylist(), dtype=str), return_inverse=True)[1]
    return across_videos(near_by_hash(hashes, config.max_distance, config.min_share), video)


def _phash_details(run: Run, clip_ids: Sequence[str], version: int | None) -> dict[str, dict[str, Any]]:
    """Clip id -> details of the score `phash` at a version of the table.

    Raises:
        ValueError: none of the clips has this score.
    """
    of_scorer = pc.field("scorer") == PHASH.name
    rows = read_table(run.root, "scores", ["clip_id", "details", "status", *ORDER], version, of_scorer)
    rows = newest_ok_by(rows, ["clip_id"])
    clips = set(clip_ids)
    pairs = zip(rows["clip_id"].to_pylist(), rows["details"].to_pylist(), strict=True)
    details = {clip_id: json.loads(text) for clip_id, text in pairs if clip_id in clips}
    if clips and not details:
        raise ValueError(
            f"no clip has a perceptual hash, which duplicates.methods exact and phash compare: add {PHASH.name} to "
            "scores.scorers and run the scores step, or remove both methods"
        )
    return details


def mean_embeddings(root: str, clip_ids: Sequence[str], version: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each clip's embedding over its frames, of the newest model and sampling at a version of the table.

    Returns:
        (positions in `clip_ids`, ascending (n,) int64; vectors (n, d) float32). Clips without an embedding are absent.

    Raises:
        ValueError: there are clips, and none has an embedding.
        CorruptBlobError: stored bytes are not what was written.
    """
    from tasks.tables.blobs import embedding_of

    if not clip_ids:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    place = {clip_id: at for at, clip_id in enumerate(clip_ids)}
    model_hash, sampling = newest_source(root, version)
    of_source = (pc.field("model_hash") == model_hash) & (pc.field("sampling") == sampling)
    good = (pc.field("status") == "ok") & of_source
    rows = read_table(root, "embeddings", ["embedding_id", "clip_id", "attempt"], version, good)
    rows = rows.filter(pc.is_in(rows["clip_id"], value_set=pa.array(clip_ids, pa.string())))
    delta = open_table(root, "embeddings", version)
    if not rows.num_rows or delta is None:
        raise ValueError(
            "no clip has an embedding, which duplicates.methods semantic compares: name an embedding model in the "
            "settings of the scores step, or remove the method"
        )
    # The files hold all attempts of a row; the filter can only compare single columns, so the loop compares attempts.
    of_clips = (pc.field("status") == "ok") & pc.field("embedding_id").isin(rows["embedding_id"].combine_chunks())
    attempts = dict(zip(rows["embedding_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True))
    means: dict[int, np.ndarray] = {}
    columns = ["embedding_id", "attempt", "clip_id", "shape", "dtype", "embedding", "crc32"]
    for batch in as_dataset(delta, "embeddings").to_batches(columns=columns, filter=of_clips, batch_size=1024):
        for row in cast("list[EmbeddingRow]", batch.to_pylist()):
            if row["attempt"] == attempts[row["embedding_id"]]:
                means[place[row["clip_id"]]] = embedding_of(row).numpy().mean(axis=0)
    at = np.array(sorted(means), np.int64)
    return at, np.stack([means[position] for position in at.tolist()])


def _group_rows(
    method: str, pairs: Pairs, clip_ids: Sequence[str], order: np.ndarray, searched: str
) -> list[DuplicateColumns]:
    """A row for each clip in a group. searched: settings of the clips step whose clips were compared."""
    # A copy of a copy is a copy, so connected pairs are one group. Similarity is not transitive: in a semantic group
    # every clip is similar to the clip to keep.
    joined = groups_around(pairs, order) if method == "semantic" else groups(len(clip_ids), pairs.first, pairs.second)
    closest = _closest(pairs, joined, len(clip_ids))
    rows: list[DuplicateColumns] = []
    for members in joined:
        group_id = content_id(method, [clip_ids[member] for member in sorted(members.tolist())])
        for rank, member in enumerate(sorted(members.tolist(), key=lambda member: order[member])):
            clip_id = clip_ids[int(member)]
            rows.append(
                {
                    "duplicate_id": duplicate_id(clip_id, method, searched),
                    "clip_id": clip_id,
                    "method": method,
                    "group_id": group_id,
                    "keeper": rank == 0,
                    "rank": rank,
                    "num_clips": len(members),
                    "similarity": float(closest[member]),
                    "clips": searched,
                }
            )
    return rows


def _closest(pairs: Pairs, joined: Sequence[np.ndarray], num_clips: int) -> np.ndarray:
    """Similarity of each clip to the most similar clip of its group, (num_clips,)."""
    group = np.full(num_clips, -1)
    for number, members in enumerate(joined):
        group[members] = number
    inside = group[pairs.first] == group[pairs.second]
    closest = np.zeros(num_clips)
    for end in (pairs.first, pairs.second):
        np.maximum.at(closest, end[inside], pairs.similarity[inside])
    return closest


def _changed(grouped: Mapping[str, DuplicateColumns], committed: Mapping[str, DuplicateRow]) -> list[Row]:
    """Rows to append: of clips in new and changed groups, and of clips that are no longer in a group."""
    rows = []
    for duplicate_id, row in grouped.items():
        before = committed.get(duplicate_id)
        if before is None or (before["group_id"], before["rank"]) != (row["group_id"], row["rank"]):
            rows.append(ok_row({"attempt": before["attempt"] + 1 if before else 1}, **row))
    for duplicate_id, before in committed.items():
        if before["group_id"] and duplicate_id not in grouped:
            error = ("left_group", "the clip is no longer cut, or no longer a duplicate of the others")
            columns = {name: before[name] for name in ("duplicate_id", "clip_id", "method", "clips")}
            rows.append(skipped_row({"attempt": before["attempt"] + 1}, error, **columns | NO_GROUP))
    return rows


def _note(run: Run, rows: Collection[DuplicateColumns], num_clips: int) -> str:
    """Note of the result: number of extra clips by method, and of files that are copies of others."""
    extra = Counter(row["method"] for row in rows if not row["keeper"])
    num_extra = len({row["clip_id"] for row in rows if not row["keeper"]})
    by_method = ", ".join(f"{method} {extra[method]}" for method in DUPLICATE_METHODS if extra[method])
    files = num_equal_files(run.root)
    copies = f"; {files} files hold the same bytes as others" if files else ""
    return f"{num_extra} of {num_clips} clips repeat others" + (f" ({by_method})" if by_method else "") + copies


def num_equal_files(root: str) -> int:
    """Number of ingested files with the same bytes as an earlier file: they share its video and have no own clips."""
    video_ids = read_table(root, "sources", ["video_id"], where=pc.field("status") == "ok")["video_id"].to_pylist()
    return len(video_ids) - len(set(video_ids))


def groups_by_method(root: str, clips: str = "", version: int | None = None) -> dict[str, list[list[str]]]:
    """Method -> groups of clip ids of the last search, the clip to keep first.

    clips: the search among the clips of these settings of the clips step; empty: the last search that found any.
    version: of the table; None: the newest.
    """
    rows = current_duplicates(root, ["method", "group_id", "rank", "clip_id"], clips, version)
    rows = rows.sort_by([("method", "ascending"), ("group_id", "ascending"), ("rank", "ascending")]).to_pylist()
    by_method: dict[str, list[list[str]]] = {method: [] for method in DUPLICATE_METHODS}
    for (method, _), members in itertools.groupby(rows, key=lambda row: (row["method"], row["group_id"])):
        by_method[method].append([row["clip_id"] for row in members])
    return by_method
