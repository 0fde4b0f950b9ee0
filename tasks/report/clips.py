"""Clips on the page: which of them are shown moving, and a listing of all for its search."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import: pyright sees none of them.

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.report.curation import Curation
from tasks.tables import storage

Facts = dict[str, list]  # clip id -> [uri, size in bytes, damage]


def chosen_clips(curation: Curation, wanted: Iterable[Sequence[str]], max_media: int) -> list[str]:
    """Ids of the clips that are shown moving, at most so many: examples and groups take turns, then all others.

    wanted: lists of clip ids, in the order of their worth.
    """
    turns = itertools.zip_longest(*wanted)
    asked = (clip_id for turn in turns for clip_id in turn if clip_id)
    rest = itertools.chain(*_kept_and_dropped(curation))
    return list(itertools.islice(dict.fromkeys(itertools.chain(asked, rest)), max_media))


def _kept_and_dropped(curation: Curation) -> Iterable[list[str]]:
    """Three clips that are kept or not judged, then one dropped one, reasons taking turns."""
    kept: list[str] = []
    by_reason: dict[str, list[str]] = defaultdict(list)
    for clip_id, keep, reasons in zip(
        curation.clips["clip_id"].to_pylist(), curation.keep, curation.drop_reasons, strict=True
    ):
        if keep is False:
            by_reason["".join(reasons[:1])].append(clip_id)
        else:
            kept.append(clip_id)
    dropped = [clip_id for turn in itertools.zip_longest(*by_reason.values()) for clip_id in turn if clip_id]
    for turn in range(max(math.ceil(len(kept) / 3), len(dropped))):
        yield kept[3 * turn : 3 * turn + 3] + dropped[turn : turn + 1]


def file_facts(curation: Curation, clip_ids: Sequence[str]) -> Facts:
    """Where the files of clips are, how large they were, and what is wrong with them now."""
    chosen = curation.clips.filter(pc.field("clip_id").isin(pa.array(clip_ids, pa.string())))
    rows = {row["clip_id"]: row for row in chosen.select(["clip_id", "uri", "size_bytes"]).to_pylist()}
    return {
        clip_id: [row["uri"], row["size_bytes"], file_damage(row["uri"], row["size_bytes"])]
        for clip_id in clip_ids
        for row in [rows[clip_id]]
    }


def as_noted(facts: Mapping[str, Sequence]) -> bool:
    """Whether files are still as `file_facts` found them."""
    return all(file_damage(uri, size) == damage for uri, size, damage in facts.values())


def file_damage(uri: str, size_bytes: int | None) -> str:
    """What is wrong with a file by its size alone: "", "missing" (or out of reach) or "truncated" (another size)."""
    try:
        fs, path = storage.filesystem(uri)
        size = fs.info(path)["size"]
    except OSError:
        return "missing"
    return "" if size_bytes in (None, size) else "truncated"


@dataclass(frozen=True)
class Listing:
    """Clips for the page's search, as JSON of columns; `num_listed` of all there are."""

    text: str
    num_listed: int


def listing(
    curation: Curation, first: Sequence[str], labels: Mapping[str, Mapping[str, str]], max_clips: int, max_bytes: int
) -> Listing:
    """Facts of clips, those of `first` and then the others, each in the order of the files, as many as fit."""
    chosen = set(first)
    ids = sorted(curation.clips["clip_id"].to_pylist(), key=lambda clip_id: clip_id not in chosen)[:max_clips]
    text = _listing_text(curation, ids, labels)
    if len(text.encode()) > max_bytes:
        ids = ids[: len(ids) * max_bytes * 9 // 10 // len(text.encode())]
        text = _listing_text(curation, ids, labels)
    return Listing(text, len(ids))


def _listing_text(curation: Curation, ids: Sequence[str], labels: Mapping[str, Mapping[str, str]]) -> str:
    positions = pc.index_in(pa.array(ids, pa.string()), value_set=curation.clips["clip_id"].combine_chunks())
    rows = curation.clips.take(positions)
    columns: dict[str, Any] = {
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
    words |= {scorer: _coded([found.get(clip_id, "") for clip_id in ids]) for scorer, found in labels.items()}
    scorers = [name for name in curation.scorers if rows[name].null_count < rows.num_rows]
    scores = {name: [_short(value) for value in rows[name].to_pylist()] for name in scorers}
    found = {"columns": columns, "words": words, "labels": list(labels), "scores": scores}
    return script_json(found)


def _captions(curation: Curation, ids: Sequence[str]) -> list[list[list[str]]]:
    """(kind, text) of all captions of clips that have several; none for the others."""
    rows = curation.captions.filter(pc.field("clip_id").isin(pa.array(ids, pa.string())))
    found: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows.sort_by("kind").to_pylist():
        found[row["clip_id"]].append([row["kind"], row["text"] or ""])
    return [found[clip_id] if len(found[clip_id]) > 1 else [] for clip_id in ids]


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _coded(texts: Sequence[str | None]) -> dict[str, list]:
    """Texts that repeat, as a list of the different ones and places in it."""
    places = {text: place for place, text in enumerate(dict.fromkeys(text or "" for text in texts))}
    return {"values": list(places), "at": [places[text or ""] for text in texts]}


def _short(value: float | None) -> float | None:
    """Four digits; None for what JSON cannot say."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
