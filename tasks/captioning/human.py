"""Captions that came with the videos, in sidecar CSV files and in lists, matched to clips by time."""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, cast

import pyarrow.compute as pc

from tasks.captioning.config import HUMAN, VERSION, CaptionItem, CaptionsConfig
from tasks.running.errors import StepError
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.work import PerItemWork, Produced
from tasks.sources.card import cards_of, read_card
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, in_order
from tasks.tables.pending import pending
from tasks.tables.rows import ClipRow, Row, SourceRow, as_rows, ok_row, skipped_row

COLUMNS = ("file", "start_s", "end_s", "text")


@dataclass(frozen=True)
class Span:
    """A caption of a span of a video, in seconds."""

    start_s: float
    end_s: float
    text: str


class SpanColumns(TypedDict):
    """A Span as JSON."""

    start_s: float
    end_s: float
    text: str


class ListedSpan(TypedDict):
    """A caption in `sources.annotations`. Times in seconds; None: from the start, or to the end, of the video."""

    start_s: float | None
    end_s: float | None
    text: str


class HumanItem(CaptionItem):
    """Work item of `CaptionMatcher`: a clip, and the location of the captions of its video.

    file: name of the video in the sidecar file.
    sidecar: URI of the sidecar file; "" without one.
    listed: captions from a list that overlap the clip; None if no list describes the video.
    """

    start_s: float
    end_s: float
    file: str
    sidecar: str
    listed: list[SpanColumns] | None


def read_sidecar(uri: str) -> dict[str, list[Span]]:
    """Spans by file, from a CSV with the columns file, start_s, end_s, text.

    Raises:
        StepError: the file does not have this form; the message gives the line.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = err.object[: err.start].count(b"\n") + 1
        raise StepError(f"caption file {uri}, line {line}: it is not UTF-8 ({err.reason}); save it as UTF-8") from err
    reader = csv.DictReader(io.StringIO(text, newline=None), strict=True)
    try:
        return _spans(reader, uri)
    except csv.Error as err:
        raise StepError(f"caption file {uri}, line {reader.reader.line_num}: {err}") from err


def _spans(reader: csv.DictReader, uri: str) -> dict[str, list[Span]]:
    """See `read_sidecar`. Raises also csv.Error."""
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise StepError(f"caption file {uri} lacks the columns {missing}: its first line must be {','.join(COLUMNS)}")
    spans = defaultdict(list)
    for row in reader:
        try:
            if None in row:
                raise ValueError("it has more cells than the first line: put a text with commas in quotes")
            span = Span(float(row["start_s"]), float(row["end_s"]), row["text"].strip())
            if span.text and not span.start_s < span.end_s:
                raise ValueError(f"start_s {span.start_s:g} is not before end_s {span.end_s:g}")
        except (TypeError, ValueError, AttributeError) as err:
            raise StepError(f"caption file {uri}, line {reader.line_num}: {err}; expected {','.join(COLUMNS)}") from err
        if span.text:
            spans[row["file"]].append(span)
    return dict(spans)


def best_caption(spans: Sequence[Span], start_s: float, end_s: float) -> tuple[str, float]:
    """The caption that covers most of [start_s, end_s], and the share that it covers; "" and 0 if none overlaps."""

    def covered(span: Span) -> float:
        return min(span.end_s, end_s) - max(span.start_s, start_s)

    best = max(spans, key=covered, default=None)
    if best is None or covered(best) <= 0:
        return "", 0.0
    return best.text, covered(best) / (end_s - start_s)


class CaptionMatcher:
    """Actor: reads the sidecar files once, then gives each clip the caption that covers most of it."""

    def __init__(self, config: CaptionsConfig, sidecars: Sequence[str]):
        self.config = config
        self.spans = {uri: read_sidecar(uri) for uri in sidecars}

    def __call__(self, items: Sequence[HumanItem]) -> Produced:
        """One row per clip."""
        return Produced({"captions": [self.caption(item) for item in items]})

    def caption(self, item: HumanItem) -> Row:
        """Row of one clip: ok with a text, or skipped with the reason."""
        columns = {
            "caption_id": item["caption_id"],
            "clip_id": item["clip_id"],
            "kind": HUMAN,
            "language": self.config.language,
            "prompt_hash": item["decided_by"],
        }
        if not item["sidecar"] and item["listed"] is None:
            error = "no_sidecar", f"{item['file']}: its folder has no source.yaml with `captions`, and none was given"
            return skipped_row(item, error, **columns)
        listed = [Span(**span) for span in item["listed"] or ()]
        spans = self.spans[item["sidecar"]].get(item["file"], []) if item["sidecar"] else listed
        text, share = best_caption(spans, item["start_s"], item["end_s"])
        if share < self.config.min_overlap:
            span = f"{item['file']} from {item['start_s']:.2f} to {item['end_s']:.2f} s"
            error = "no_caption", f"no caption covers {self.config.min_overlap:.0%} of {span} (best: {share:.0%})"
            return skipped_row(item, error, **columns)
        return ok_row(item, text=text, **columns)


def match_captions(run: Run, config: CaptionsConfig, clips: Sequence[ClipRow]) -> tuple[list[HumanItem], StepResult]:
    """Give clips the captions that people wrote; returns the items and the result.

    Raises:
        StepError: a caption file is missing or cannot be read.
    """
    files = _source_files(run, {clip["video_id"] for clip in clips}, config.sidecar)
    items = [_item(clip, files[clip["video_id"]], config) for clip in clips]
    todo = pending(run.root, "captions", [item["caption_id"] for item in items], run.retry_failed)
    work = PerItemWork(
        step="captions",
        version=VERSION,
        config=config,
        worker=partial(CaptionMatcher, config=config, sidecars=sorted({item["sidecar"] for item in items} - {""})),
        done_table="captions",
        since={"captions": todo.version},
        block_size=config.block_size,
    )
    result = run_blocks(run, work, todo.items(items, "caption_id"), todo.num_done)
    return items, result


@dataclass(frozen=True)
class CaptionSource:
    """Location of the captions of a video.

    file: name of the video in the sidecar file.
    sidecar: URI of the sidecar file; "" without one.
    text_hash: hash of the bytes of the sidecar file; "annotations" for captions from a list.
    annotations: `sources.annotations` of the video, JSON of ListedSpan; only without a sidecar file.
    """

    file: str
    sidecar: str = ""
    text_hash: str = ""
    annotations: str = ""


def _listed_spans(annotations: str, start_s: float, end_s: float) -> list[SpanColumns]:
    """Captions of a list that overlap [start_s, end_s] of the video; one without times describes the whole video."""
    spans: list[SpanColumns] = [
        {
            "start_s": start_s if listed["start_s"] is None else listed["start_s"],
            "end_s": end_s if listed["end_s"] is None else listed["end_s"],
            "text": listed["text"],
        }
        for listed in cast("list[ListedSpan]", json.loads(annotations))
    ]
    return [span for span in spans if span["text"] and span["start_s"] < end_s and span["end_s"] > start_s]


def _item(clip: ClipRow, source: CaptionSource, config: CaptionsConfig) -> HumanItem:
    # The hash covers the bytes of the caption file: an edited file gives new captions.
    decided_by = content_id(source.text_hash, config.min_overlap, config.language) if source.text_hash else ""
    return {
        "caption_id": content_id(clip["clip_id"], HUMAN, decided_by, source.annotations),
        "clip_id": clip["clip_id"],
        "kind": HUMAN,
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "file": source.file,
        "sidecar": source.sidecar,
        "listed": _listed_spans(source.annotations, clip["start_s"], clip["end_s"]) if source.annotations else None,
        "decided_by": decided_by,
    }


def _source_files(run: Run, video_ids: set[str], sidecar: str) -> dict[str, CaptionSource]:
    """Caption source by video id; of several files with the same bytes, one that has captions."""
    if sidecar and not storage.exists(sidecar):
        raise StepError(f"there is no caption file {sidecar}: set captions.sidecar to a CSV, or leave it empty")
    names = ["video_id", "uri", "path", "card", "annotations", *ORDER]
    rows = read_table(run.root, "sources", names, where=pc.field("status") == "ok")
    rows = as_rows(in_order(rows), SourceRow)  # if two lists describe a video, the newer row counts
    sidecars = {"": sidecar}  # by URI of the source.yaml
    hashes = {"": ""}
    sources: dict[str, CaptionSource] = {}
    for card, row in zip(cards_of(rows), rows, strict=True):
        video_id = row["video_id"]
        older = sources.get(video_id)
        if video_id not in video_ids or (older and older.sidecar):
            continue
        if card not in sidecars:
            sidecars[card] = sidecar or _sidecar_of(card)
        uri = sidecars[card]
        if uri not in hashes:
            hashes[uri] = content_id(storage.read_bytes(uri))
        annotations = "" if uri else row["annotations"] or ""
        if annotations or not (older and older.annotations) or uri:
            # The same hash for all lists: later steps select captions by it.
            text_hash = "annotations" if annotations else hashes[uri]
            sources[video_id] = CaptionSource(row["path"], uri, text_hash, annotations)
    return {video_id: sources.get(video_id, CaptionSource(f"video {video_id}")) for video_id in video_ids}


def _sidecar_of(card: str) -> str:
    """URI of the caption file that a source.yaml names; "" if it names none."""
    try:
        name = read_card(card).captions
    except FileNotFoundError:
        raise StepError(f"{card} is missing, which named the caption file of its videos: restore it") from None
    uri = storage.join(os.path.dirname(card), name) if name else ""
    if uri and not storage.exists(uri):
        raise StepError(f"{card} names the caption file {name!r}, which does not exist: correct `captions` in it")
    return uri
