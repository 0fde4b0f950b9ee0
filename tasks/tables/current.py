"""The rows that steps start from: current clips, selected clips and their captions."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables.delta import read_table
from tasks.tables.manifest import left_join, verdicts_of


def current_clip_ids(root: str) -> pa.Array:
    """Ids of the clips of all videos as the clips step last left them."""
    videos = read_table(root, "videos", ["clip_ids"], where=pc.field("status") == "ok")
    return pc.call_function("list_flatten", [videos["clip_ids"].combine_chunks()])


def current_clips(root: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Clips of all videos as the clips step last left them, in the order of (video_id, start_frame).

    The table `clips` also keeps those of earlier settings; the newest row of each video names the current ones.
    """
    current = current_clip_ids(root)
    names = None if columns is None else [*dict.fromkeys([*columns, "video_id", "start_frame"])]
    rows = read_table(root, "clips", names, where=pc.field("clip_id").isin(current))
    rows = rows.sort_by([("video_id", "ascending"), ("start_frame", "ascending")])
    return rows if columns is None else rows.select(list(columns))


def selected_clips(
    root: str,
    selection: str = "",
    split: str = "",
    columns: Sequence[str] | None = None,
    versions: Mapping[str, int] | None = None,
) -> pa.Table:
    """Clips to work on, with the columns `bucket` and `split`, in the order of (video_id, start_frame).

    Args:
        root: where the tables are.
        selection: `outputs["selection"]` of the select step; empty: the newest selection.
        split: train, val or test; empty: all.
        columns: of `clips`; None: all of them.
        versions: of the tables `selections` and `clips`; None: the newest.

    Raises:
        ValueError: there is no such selection.
    """
    versions = versions or {}
    verdicts = verdicts_of(root, selection, versions.get("selections"))
    if not verdicts.num_rows:
        which = f"selection {selection!r}" if selection else "selection"
        raise ValueError(f"there is no {which} in {root}: run the select step (pyramid curate)")
    asked = pc.field("keep") & (pc.field("split") == split) if split else pc.field("keep")
    chosen = verdicts.filter(asked).select(["clip_id", "bucket", "split"])
    of_chosen = pc.field("clip_id").isin(chosen["clip_id"].combine_chunks())
    names = None if columns is None else [*dict.fromkeys(["clip_id", *columns, "video_id", "start_frame"])]
    clips = read_table(root, "clips", names, versions.get("clips"), of_chosen)
    joined = left_join(clips, chosen, "clip_id", {"bucket": "bucket", "split": "split"})
    joined = joined.sort_by([("video_id", "ascending"), ("start_frame", "ascending")])
    return joined if columns is None else joined.select([*columns, "bucket", "split"])


def captions_of(root: str, clip_ids: Sequence[str], captions: str = "", version: int | None = None) -> dict[str, str]:
    """Text by clip id: of several kinds, the first that a clip has; see `captions_by_kind`."""
    found = captions_by_kind(root, clip_ids, captions, version)
    return {clip_id: next(iter(texts.values())) for clip_id, texts in found.items()}


def captions_by_kind(
    root: str, clip_ids: Sequence[str], captions: str = "", version: int | None = None
) -> dict[str, dict[str, str]]:
    """Text by clip id and kind. Clips for which the last word is that they have no caption are left out.

    Args:
        root: where the tables are.
        clip_ids: which clips.
        captions: the `captions` of a run of the step (`dense:HASH,…;short:HASH`), or kinds alone (`dense;short`), which
            take the newest of each; kinds come in this order. Empty: of each clip the newest, of whatever kind.
        version: of the table; None: the newest.
    """
    columns = ["clip_id", "kind", "prompt_hash", "text", "status", "created_at"]
    wanted = pc.field("clip_id").isin(pa.array(clip_ids, pa.string()))
    rows = read_table(root, "captions", columns, version, wanted).sort_by("created_at").to_pylist()
    if not captions:
        newest = {row["clip_id"]: row for row in rows}
        return {key: {row["kind"]: row["text"]} for key, row in newest.items() if row["status"] == "ok"}
    named = [part.partition(":") for part in captions.split(";")]
    found: dict[str, dict[str, str]] = {}
    for kind, colon, hashes in named:
        allowed = set(hashes.split(",")) if colon else None
        alike = [row for row in rows if row["kind"] == kind and (allowed is None or row["prompt_hash"] in allowed)]
        for row in {row["clip_id"]: row for row in alike}.values():
            if row["status"] == "ok":
                found.setdefault(row["clip_id"], {})[kind] = row["text"]
    return found
