"""Which clips repeat others: groups of equal, near-equal and alike clips, and which one of a group to keep.

Hashes come from the scorer `phash`, vectors from the table of embeddings; only rows are read here. The table says what
the last run of this step found: clips whose group changed get another row, and clips that left theirs one without it.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import: pyright sees none of them.

import itertools
import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike
from pydantic import Field, field_validator

from pyramid_model.config import Config
from pyramid_model.duplicates import Pairs, across_videos, equal, groups, groups_around, near_by_embedding, near_by_hash
from tasks.running.run import Run, StepResult, lineage
from tasks.running.step import step
from tasks.scoring.embeddings import newest_source
from tasks.tables.appending import append_again, append_block
from tasks.tables.current import current_clips, current_duplicates
from tasks.tables.delta import as_dataset, bad_row, content_id, ok_row, open_table, read_table, table_version
from tasks.tables.newest import ORDER, newest_by, newest_row
from tasks.tables.rows import DuplicateColumns, DuplicateRow, EmbeddingRow, as_rows

VERSION = "1"
METHODS = ("exact", "phash", "semantic")  # in this order they are looked for and, when clips are selected, applied
CLIP_COLUMNS = ("clip_id", "video_id", "width", "height", "size_bytes", "num_frames")
LEFT = {"group_id": "", "keeper": False, "rank": 0, "num_clips": 0, "similarity": 0.0}

Method = Literal["exact", "phash", "semantic"]


class DuplicatesConfig(Config):
    """When two clips show the same."""

    clips: str = Field("", description="which clips: output of the clips step; empty: of each video the newest")
    methods: tuple[Method, ...] = Field(
        ("exact", "phash"),
        description="exact: equal frames; phash: re-encoded, scaled or slightly cropped copies in other videos; "
        "semantic: alike to a vision model, needs embeddings",
    )
    max_distance: int = Field(
        32, ge=0, le=64, description="phash: bits of 256 that two frames may differ by; re-encoding changes up to 15"
    )
    min_share: float = Field(
        0.6, gt=0, le=1, description="phash: share of a clip's frames that must be found in the other one"
    )
    eps: float = Field(0.05, gt=0, lt=1, description="semantic: two clips are alike from a cosine of 1 - eps on")
    num_clusters: int | None = Field(
        None, ge=1, description="semantic: clips are compared within so many clusters; empty: one for every 2,000 clips"
    )

    @field_validator("methods")
    @classmethod
    def _in_order(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        return tuple(method for method in METHODS if method in methods)


@step
def duplicates(run: Run, config: DuplicatesConfig) -> StepResult:
    """Find the groups of duplicates among the current clips; rows in `duplicates` for those whose group is new.

    Raises:
        ValueError: no clip has what a method compares.
    """
    started = time.time()
    clips = current_clips(run.root, CLIP_COLUMNS, config.clips).sort_by("clip_id")
    clip_ids = clips["clip_id"].to_pylist()
    rank = keeping_order(clips)
    found: dict[str, DuplicateColumns] = {}
    for method in config.methods:
        for row in _group_rows(method, _pairs(run, config, method, clips), clip_ids, rank, config.clips):
            found[row["duplicate_id"]] = row
    rows = _append(run, config, found)
    num_new = len({row["clip_id"] for row in rows} & set(clip_ids))
    return StepResult(
        step="duplicates",
        num_in=len(clip_ids),
        num_done=len(clip_ids) - num_new,
        num_ok=num_new,
        rows={"duplicates": len(rows)} if rows else {},
        versions={"duplicates": table_version(run.root, "duplicates")},
        note=_note(run, found.values(), len(clip_ids)),
        busy_s=time.time() - started,
    )


def duplicate_id(clip_id: str, method: str, clips: str) -> str:
    """Identity of what one method says of a clip among the clips of some settings."""
    return content_id(clip_id, method, *filter(None, [clips]))


def _append(run: Run, config: DuplicatesConfig, found: Mapping[str, DuplicateColumns]) -> list[dict[str, Any]]:
    """Append rows for the clips whose group changed since the last search among these clips, and return the rows.

    If nothing changed, but others searched since, one row is appended again: this search is then the newest.
    """
    table = read_table(run.root, "duplicates")
    searched = (row for row in as_rows(table, DuplicateRow) if (row["clips"] or "") == config.clips)
    rows = _changed(found, {row["duplicate_id"]: row for row in searched})
    made = lineage(run, "duplicates", VERSION, config)
    block_id = content_id("duplicates", sorted((row["duplicate_id"], row["attempt"], row["group_id"]) for row in rows))
    append_block(run.root, "duplicates", rows, block_id, made)
    last = newest_row(table)
    if not rows and found and last and (last["clips"] or "") != config.clips:
        append_again(run.root, "duplicates", [next(iter(found))], made)
    return rows


def keeping_order(clips: pa.Table) -> np.ndarray:
    """Place of each clip in the order in which clips of a group are kept; 0 is best.

    The most pixels a frame come first, then the most frames (in steps of a fifth: copies differ by a few at their
    ends), then the largest file (clips are encoded at one quality, so it shows the most detail), then the smallest id.
    Nothing depends on which clip came first.
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
    """Lengths as steps of a fifth, within which clips count as equally long; of a number or of an array."""
    return np.rint(4 * np.log2(np.maximum(1, num_frames)))


def _pairs(run: Run, config: DuplicatesConfig, method: Method, clips: pa.Table) -> Pairs:
    """Clips that are the same by one method, as positions in `clips`."""
    clip_ids = clips["clip_id"].to_pylist()
    if method == "semantic":
        at, vectors = mean_embeddings(run.root, clip_ids)
        pairs = near_by_embedding(vectors, config.eps, config.num_clusters)
        return Pairs(at[pairs.first], at[pairs.second], pairs.similarity)
    details = _phash_details(run, clip_ids)
    shown = [details.get(clip_id, {}).get("hashes", []) for clip_id in clip_ids]
    if method == "exact":  # clips that show nothing, black ones say, are equal by chance
        return equal(
            [details[clip_id]["frames_hash"] if some else "" for clip_id, some in zip(clip_ids, shown, strict=True)]
        )
    hashes = [np.frombuffer(bytes.fromhex("".join(some)), np.uint8).reshape(-1, 32) for some in shown]
    video = np.unique(np.array(clips["video_id"].to_pylist(), dtype=str), return_inverse=True)[1]
    return across_videos(near_by_hash(hashes, config.max_distance, config.min_share), video)


def _phash_details(run: Run, clip_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """clip id -> what the scorer `phash` said of it.

    Raises:
        ValueError: it has looked at none of the clips.
    """
    good = (pc.field("scorer") == "phash") & (pc.field("status") == "ok")
    rows = newest_by(read_table(run.root, "scores", ["clip_id", "details", *ORDER], where=good), ["clip_id"])
    wanted = set(clip_ids)
    pairs = zip(rows["clip_id"].to_pylist(), rows["details"].to_pylist(), strict=True)
    details = {clip_id: json.loads(text) for clip_id, text in pairs if clip_id in wanted}
    if wanted and not details:
        raise ValueError(
            "no clip has a perceptual hash, which duplicates.methods exact and phash compare: add phash to "
            "scores.scorers and run the scores step, or leave both methods out"
        )
    return details


def mean_embeddings(root: str, clip_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the frames of each clip's embedding, by the model and sampling that were asked for last.

    Returns:
        (positions in `clip_ids`, ascending (n,) int64; vectors (n, d) float32). Clips without an embedding are absent.

    Raises:
        ValueError: there are clips, and none has one.
        CorruptBlobError: stored bytes are not what was written.
    """
    from tasks.tables.blobs import embedding_of

    if not clip_ids:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    place = {clip_id: at for at, clip_id in enumerate(clip_ids)}
    model_hash, sampling = newest_source(root)
    of_source = (pc.field("model_hash") == model_hash) & (pc.field("sampling") == sampling)
    good = (pc.field("status") == "ok") & of_source
    rows = read_table(root, "embeddings", ["embedding_id", "clip_id"], where=good)
    rows = rows.filter(pc.is_in(rows["clip_id"], value_set=pa.array(clip_ids, pa.string())))
    delta = open_table(root, "embeddings")
    if not rows.num_rows or delta is None:
        raise ValueError(
            "no clip has an embedding, which duplicates.methods semantic compares: name an embedding model in the "
            "settings of the scores step, or leave the method out"
        )
    chosen = pc.field("embedding_id").isin(rows["embedding_id"].combine_chunks())
    means: dict[int, np.ndarray] = {}
    columns = ["clip_id", "shape", "dtype", "embedding", "crc32"]
    for batch in as_dataset(delta, "embeddings").to_batches(columns=columns, filter=chosen, batch_size=1024):
        for row in cast("list[EmbeddingRow]", batch.to_pylist()):
            means[place[row["clip_id"]]] = embedding_of(row).numpy().mean(axis=0)
    at = np.array(sorted(means), np.int64)
    return at, np.stack([means[one] for one in at.tolist()])


def _group_rows(
    method: str, pairs: Pairs, clip_ids: Sequence[str], order: np.ndarray, searched: str
) -> list[DuplicateColumns]:
    """A row for each clip in a group. searched: settings of the clips step whose clips were compared."""
    # Copies of a copy are copies. What is merely alike drifts from step to step, so there all resemble the keeper.
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
    """Similarity of each clip to the one of its group that is most like it, (num_clips,)."""
    group = np.full(num_clips, -1)
    for number, members in enumerate(joined):
        group[members] = number
    inside = group[pairs.first] == group[pairs.second]
    closest = np.zeros(num_clips)
    for end in (pairs.first, pairs.second):
        np.maximum.at(closest, end[inside], pairs.similarity[inside])
    return closest


def _changed(found: Mapping[str, DuplicateColumns], committed: Mapping[str, DuplicateRow]) -> list[dict[str, Any]]:
    """Rows to append: of new and changed groups, and of clips that are in none any more."""
    rows = []
    for duplicate_id, row in found.items():
        before = committed.get(duplicate_id)
        if before is None or (before["group_id"], before["rank"]) != (row["group_id"], row["rank"]):
            rows.append(ok_row({"attempt": before["attempt"] + 1 if before else 1}, **row))
    for duplicate_id, before in committed.items():
        if before["group_id"] and duplicate_id not in found:
            left = ("left_group", "the clip is no longer cut, or no longer like the others")
            names = {name: before[name] for name in ("duplicate_id", "clip_id", "method", "clips")}
            rows.append(bad_row({"attempt": before["attempt"] + 1}, left, "skipped", **names | LEFT))
    return rows


def _note(run: Run, found: Collection[DuplicateColumns], num_clips: int) -> str:
    """What was found, for people: extra clips by method, and files that are copies of others."""
    extra = Counter(row["method"] for row in found if not row["keeper"])
    num_extra = len({row["clip_id"] for row in found if not row["keeper"]})
    by_method = ", ".join(f"{method} {extra[method]}" for method in METHODS if extra[method])
    files = num_equal_files(run.root)
    copies = f"; {files} files hold the same bytes as others" if files else ""
    return f"{num_extra} of {num_clips} clips repeat others" + (f" ({by_method})" if by_method else "") + copies


def num_equal_files(root: str) -> int:
    """Ingested files with the bytes of another one, beyond the first: they share its video and give no clips."""
    video_ids = read_table(root, "sources", ["video_id"], where=pc.field("status") == "ok")["video_id"].to_pylist()
    return len(video_ids) - len(set(video_ids))


def groups_by_method(root: str, clips: str = "") -> dict[str, list[list[str]]]:
    """method -> groups of clip ids, the clip to keep first; as the last search found them.

    clips: the search among the clips of these settings of the clips step; empty: the last search that found any.
    """
    rows = current_duplicates(root, ["method", "group_id", "rank", "clip_id"], clips)
    rows = rows.sort_by([("method", "ascending"), ("group_id", "ascending"), ("rank", "ascending")]).to_pylist()
    found: dict[str, list[list[str]]] = {method: [] for method in METHODS}
    for (method, _), members in itertools.groupby(rows, key=lambda row: (row["method"], row["group_id"])):
        found[method].append([row["clip_id"] for row in members])
    return found
