"""Clips on the page: which of them have a preview, and the listing that the search reads."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tasks.report.curation import Curation
from tasks.tables import storage
from tasks.tables.plain_text import visible

FileState = tuple[str, int | None, str]  # URI, size in bytes as the table has it, damage as `file_damage` calls it


def preview_clips(curation: Curation, examples: Iterable[Sequence[str]], max_media: int) -> list[str]:
    """Ids of the clips that get a preview, at most `max_media`: examples first, then all others.

    examples: lists of clip ids, the most important list first; the lists take turns.
    """
    turns = itertools.zip_longest(*examples)
    example_ids = (clip_id for turn in turns for clip_id in turn if clip_id)
    others = itertools.chain(*_kept_and_dropped(curation))
    return list(itertools.islice(dict.fromkeys(itertools.chain(example_ids, others)), max_media))


def _kept_and_dropped(curation: Curation) -> Iterable[list[str]]:
    """Three clips that are kept or not judged, then a dropped one, and so on; the drop reasons take turns."""
    kept_ids: list[str] = []
    by_reason: dict[str, list[str]] = defaultdict(list)
    for clip_id, keep, reasons in zip(
        curation.clips["clip_id"].to_pylist(), curation.keep, curation.drop_reasons, strict=True
    ):
        if keep is False:
            by_reason["".join(reasons[:1])].append(clip_id)
        else:
            kept_ids.append(clip_id)
    dropped_ids = [clip_id for turn in itertools.zip_longest(*by_reason.values()) for clip_id in turn if clip_id]
    for turn in range(max(math.ceil(len(kept_ids) / 3), len(dropped_ids))):
        yield kept_ids[3 * turn : 3 * turn + 3] + dropped_ids[turn : turn + 1]


def file_states(curation: Curation, clip_ids: Sequence[str]) -> dict[str, FileState]:
    """Clip id -> URI of its file, its size when it was written, and its damage."""
    clips = curation.clips.filter(pc.field("clip_id").isin(pa.array(clip_ids, pa.string())))
    columns = (clips[name].to_pylist() for name in ("clip_id", "uri", "size_bytes"))
    files = {clip_id: (uri, size_bytes) for clip_id, uri, size_bytes in zip(*columns, strict=True)}
    return {clip_id: (*files[clip_id], file_damage(*files[clip_id])) for clip_id in clip_ids}


def is_unchanged(states: Mapping[str, Sequence]) -> bool:
    """Whether each file is in the state that `file_states` gave before. states: as read back from JSON."""
    return all(file_damage(uri, size_bytes) == damage for uri, size_bytes, damage in states.values())


def file_damage(uri: str, size_bytes: int | None) -> str:
    """Damage of a file that its size alone shows: "", "missing" (or out of reach) or "truncated" (another size)."""
    try:
        fs, path = storage.filesystem(uri)
        size = fs.info(path)["size"]
    except OSError:
        return "missing"
    return "" if size_bytes in (None, size) else "truncated"


@dataclass(frozen=True)
class Listing:
    """Clips for the search of the page."""

    text: str  # JSON: columns
    num_listed: int  # clips in the listing; the root may have more


def listing(
    curation: Curation, first: Sequence[str], labels: Mapping[str, Mapping[str, str]], max_clips: int, max_bytes: int
) -> Listing:
    """Facts about clips, those in `first` before the others, each in the order of the files.

    Args:
        curation: the clips.
        first: ids of the clips that are listed in any case.
        labels: scorer -> clip id -> label.
        max_clips: most clips.
        max_bytes: most bytes of JSON, about.
    """
    goes_first = set(first)
    ids = sorted(curation.clips["clip_id"].to_pylist(), key=lambda clip_id: clip_id not in goes_first)[:max_clips]
    text = _listing_text(curation, ids, labels)
    if len(text.encode()) > max_bytes:
        ids = ids[: len(ids) * max_bytes * 9 // 10 // len(text.encode())]
        text = _listing_text(curation, ids, labels)
    return Listing(text, len(ids))


def _listing_text(curation: Curation, ids: Sequence[str], labels: Mapping[str, Mapping[str, str]]) -> str:
    positions = pc.index_in(pa.array(ids, pa.string()), value_set=curation.clips["clip_id"].combine_chunks())
    rows = curation.clips.take(positions)
    columns: dict[str, Sequence] = {
        "id": ids,
        "start": [round(value, 2) for value in rows["start_s"].to_pylist()],
        "end": [round(value, 2) for value in rows["end_s"].to_pylist()],
        "caption": [text or "" for text in rows["caption"].to_pylist()],
        "captions": _captions(curation, ids),
        "keep": rows["keep"].to_pylist(),
        "reasons": [curation.drop_reasons[place] for place in positions.to_pylist()],
    }
    for name in ("num_frames", "width", "height"):
        columns[name] = rows[name].to_pylist()
    words = {name: _coded(rows[name].to_pylist()) for name in ("path", "source", "split", "bucket")}
    words |= {scorer: _coded([by_clip.get(clip_id, "") for clip_id in ids]) for scorer, by_clip in labels.items()}
    scorers = [name for name in curation.scorers if rows[name].null_count < rows.num_rows]
    scores = {name: [_short(value) for value in rows[name].to_pylist()] for name in scorers}
    return script_json({"columns": columns, "words": words, "labels": list(labels), "scores": scores})


def _captions(curation: Curation, ids: Sequence[str]) -> list[list[list[str]]]:
    """(kind, text) of every caption of a clip that has several; an empty list for other clips."""
    rows = curation.captions.filter(pc.field("clip_id").isin(pa.array(ids, pa.string())))
    by_clip: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows.sort_by("kind").to_pylist():
        by_clip[row["clip_id"]].append([row["kind"], row["text"] or ""])
    return [by_clip[clip_id] if len(by_clip[clip_id]) > 1 else [] for clip_id in ids]


def script_json(value: object) -> str:
    """JSON for a script element, escaped so that it cannot end the element or begin a comment; texts are `visible`."""
    return json.dumps(_visible(value), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _visible(value: object) -> object:
    """A JSON value in which control characters and marks of the direction of writing are written out in every text."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(name): _visible(entry) for name, entry in value.items()}
    return [_visible(entry) for entry in value] if isinstance(value, list | tuple) else value


def _coded(texts: Sequence[str | None]) -> dict[str, list]:
    """Texts with many repetitions: `values` has each distinct text once, `at` has an index into it for each text."""
    places = {text: place for place, text in enumerate(dict.fromkeys(text or "" for text in texts))}
    return {"values": list(places), "at": [places[text or ""] for text in texts]}


def _short(value: float | None) -> float | None:
    """A number with four digits; None for NaN and infinity, which JSON does not have."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
