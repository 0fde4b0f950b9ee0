"""Rows that steps start from: current clips with their figures, duplicates, selected clips, and captions."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import: pyright does not know them.

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pyramid_model.config import CaptionsOfKind, Kind
from tasks.tables.delta import read_table
from tasks.tables.manifest import left_join, verdicts_of
from tasks.tables.newest import ORDER, newest_ok_by, newest_row
from tasks.tables.rows import DuplicateRow
from tasks.tables.schemas import CLIP_FIGURES


def current_clip_ids(root: str, clips: str = "") -> pa.Array:
    """Ids of the clips that the clips step cut from each video, with given settings or with the newest ones.

    Args:
        root: of the tables.
        clips: `params_hash` of the settings of the clips step; empty: the newest clips of each video.
    """
    of_settings = pc.field("params_hash") == clips if clips else None
    columns = ["video_id", "status", "clip_ids", *ORDER]
    videos = newest_ok_by(read_table(root, "videos", columns, where=of_settings, newest=False), ["video_id"])
    return pc.call_function("list_flatten", [videos["clip_ids"].combine_chunks()])


def current_clips(root: str, columns: Sequence[str] | None = None, clips: str = "") -> pa.Table:
    """Rows of the current clips, in the order of (video_id, start_frame).

    The table `clips` also has clips of other settings; the newest row of each video in `videos` lists its current ones.

    Args:
        root: of the tables.
        columns: of `clips`; None: all of them.
        clips: `params_hash` of the settings of the clips step; empty: the newest clips of each video.
    """
    current = current_clip_ids(root, clips)
    names = None if columns is None else [*dict.fromkeys([*columns, "video_id", "start_frame"])]
    rows = read_table(root, "clips", names, where=pc.field("clip_id").isin(current))
    rows = rows.sort_by([("video_id", "ascending"), ("start_frame", "ascending")])
    return rows if columns is None else rows.select(list(columns))


def clip_figures(clips: pa.Table) -> dict[str, pa.ChunkedArray]:
    """The figures CLIP_FIGURES of clips, float64; null where a column is null.

    clips: `start_s`, `end_s`, `fps_num`, `fps_den`, `height` and `width` of rows of `clips`.
    """
    floats = {name: clips[name].cast(pa.float64()) for name in ("width", "height", "fps_num", "fps_den")}
    figures = (
        pc.subtract(clips["end_s"], clips["start_s"]),
        pc.divide(floats["fps_num"], floats["fps_den"]),
        floats["height"],
        floats["width"],
        pc.divide(floats["width"], floats["height"]),
    )
    return dict(zip(CLIP_FIGURES, figures, strict=True))


def current_duplicates(root: str, columns: Sequence[str], clips: str = "", version: int | None = None) -> pa.Table:
    """Rows of `duplicates` of the clips that are in a group after the last search.

    Args:
        root: of the tables.
        columns: of `duplicates`.
        clips: the search among the clips of these settings of the clips step; empty: the last search that found any.
        version: of the table; None: the newest.
    """
    rows = read_table(root, "duplicates", list(dict.fromkeys([*columns, "status", "clips", *ORDER])), version)
    last = newest_row(rows, DuplicateRow)
    searched = clips or (last and last["clips"]) or ""
    of_search = pc.field("clips") == searched
    of_search = of_search if searched else of_search | pc.field("clips").is_null()
    return rows.filter(of_search).filter(pc.field("status") == "ok").select(list(columns))


def selected_clips(
    root: str,
    selection: str = "",
    split: str = "",
    columns: Sequence[str] | None = None,
    versions: Mapping[str, int] | None = None,
) -> pa.Table:
    """Rows of the clips that a selection keeps, with `bucket` and `split`, in the order of (video_id, start_frame).

    Args:
        root: of the tables.
        selection: `selection` of the result of the select step; empty: the newest selection.
        split: train, val or test; empty: all.
        columns: of `clips`; None: all of them.
        versions: of the tables `selections` and `clips`; None: the newest.

    Raises:
        ValueError: the selection does not exist.
    """
    versions = versions or {}
    verdicts = verdicts_of(root, selection, versions.get("selections"))
    if not verdicts.num_rows:
        which = f"selection {selection!r}" if selection else "selection"
        raise ValueError(f"there is no {which} in {root}: run the select step (pyramid curate)")
    condition = pc.field("keep") & (pc.field("split") == split) if split else pc.field("keep")
    selected = verdicts.filter(condition).select(["clip_id", "bucket", "split"])
    of_selected = pc.field("clip_id").isin(selected["clip_id"].combine_chunks())
    names = None if columns is None else [*dict.fromkeys(["clip_id", *columns, "video_id", "start_frame"])]
    clips = read_table(root, "clips", names, versions.get("clips"), of_selected)
    joined = left_join(clips, selected, "clip_id", {"bucket": "bucket", "split": "split"})
    joined = joined.sort_by([("video_id", "ascending"), ("start_frame", "ascending")])
    return joined if columns is None else joined.select([*columns, "bucket", "split"])


def captions_of(
    root: str, clip_ids: Sequence[str], captions: Sequence[CaptionsOfKind] = (), version: int | None = None
) -> dict[str, str]:
    """Caption by clip id, of the first kind that the clip has. Arguments as for `captions_by_kind`."""
    by_kind = captions_by_kind(root, clip_ids, captions, version)
    return {clip_id: next(iter(texts.values())) for clip_id, texts in by_kind.items()}


def captions_by_kind(
    root: str, clip_ids: Sequence[str], captions: Sequence[CaptionsOfKind] = (), version: int | None = None
) -> dict[str, dict[Kind, str]]:
    """Caption by clip id and kind. Clips whose newest row is not ok are left out.

    Args:
        root: of the tables.
        clip_ids: ids of the clips.
        captions: which captions; the result has kinds in this order. Empty: the newest caption of each clip, of any
            kind.
        version: of the table; None: the newest.
    """
    columns = ["clip_id", "kind", "prompt_hash", "text", "status", *ORDER]
    of_clips = pc.field("clip_id").isin(pa.array(clip_ids, pa.string()))
    rows = read_table(root, "captions", columns, version, of_clips)
    if not captions:
        return _texts(newest_ok_by(rows, ["clip_id"]))
    texts: dict[str, dict[Kind, str]] = {}
    for used in captions:
        of_kind = pc.field("kind") == used.kind
        if used.hashes is not None:
            of_kind &= pc.field("prompt_hash").isin(pa.array(used.hashes, pa.string()))
        for clip_id, by_kind in _texts(newest_ok_by(rows.filter(of_kind), ["clip_id"])).items():
            texts.setdefault(clip_id, {}).update(by_kind)
    return texts


def _texts(rows: pa.Table) -> dict[str, dict[Kind, str]]:
    """Text by clip id and kind. rows: at most one for each clip."""
    return {row["clip_id"]: {row["kind"]: row["text"]} for row in rows.to_pylist()}
