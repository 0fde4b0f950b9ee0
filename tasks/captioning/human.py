"""Captions that came with the videos: sidecar CSVs and lists, matched to clips by time."""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from tasks.captioning.config import HUMAN, VERSION, CaptionsConfig
from tasks.running.errors import StepError
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.work import Item, PerItemWork, Produced
from tasks.sources.card import cards_of, read_card
from tasks.tables import storage
from tasks.tables.delta import bad_row, content_id, ok_row, read_table
from tasks.tables.newest import ORDER, in_order
from tasks.tables.pending import pending

COLUMNS = ("file", "start_s", "end_s", "text")


@dataclass(frozen=True)
class Span:
    """A caption of a stretch of a video, seconds."""

    start_s: float
    end_s: float
    text: str


def read_sidecar(uri: str) -> dict[str, list[Span]]:
    """Spans by file from a CSV with the columns file, start_s, end_s, text.

    Raises:
        StepError: no CSV of that form; the message names the line.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = err.object[: err.start].count(b"\n") + 1
        raise StepError(f"caption file {uri}, line {line}: it is not UTF-8 ({err.reason}); save it as UTF-8") from err
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise StepError(f"caption file {uri} lacks the columns {missing}: its first line must be {','.join(COLUMNS)}")
    spans = defaultdict(list)
    for row in reader:
        try:
            span = Span(float(row["start_s"]), float(row["end_s"]), row["text"].strip())
        except (TypeError, ValueError, AttributeError) as err:
            raise StepError(f"caption file {uri}, line {reader.line_num}: {err}; expected {','.join(COLUMNS)}") from err
        if span.text and span.end_s > span.start_s:
            spans[row["file"]].append(span)
    return dict(spans)


def best_caption(spans: Sequence[Span], start_s: float, end_s: float) -> tuple[str, float]:
    """The caption that covers most of [start_s, end_s], and the share of it that is covered ("" and 0 if none does)."""

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

    def __call__(self, items: list[Item]) -> Produced:
        """One row a clip."""
        return Produced({"captions": [self.caption(item) for item in items]})

    def caption(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The row of one clip: ok with a text, or skipped with the reason."""
        columns = {
            "caption_id": item["caption_id"],
            "clip_id": item["clip_id"],
            "kind": HUMAN,
            "language": self.config.language,
            "prompt_hash": item["decided_by"],
        }
        if not item["sidecar"] and item["said"] is None:
            why = "no_sidecar", f"{item['file']}: its folder has no source.yaml with `captions`, and none was given"
            return bad_row(item, why, status="skipped", **columns)
        said = [Span(**span) for span in item["said"] or ()]
        spans = self.spans[item["sidecar"]].get(item["file"], []) if item["sidecar"] else said
        text, share = best_caption(spans, item["start_s"], item["end_s"])
        if share < self.config.min_overlap:
            span = f"{item['file']} from {item['start_s']:.2f} to {item['end_s']:.2f} s"
            why = "no_caption", f"no caption covers {self.config.min_overlap:.0%} of {span} (best: {share:.0%})"
            return bad_row(item, why, status="skipped", **columns)
        return ok_row(item, text=text, **columns)


def _match(
    run: Run, config: CaptionsConfig, clips: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], StepResult]:
    """Captions that people wrote: what is wanted, and what was done."""
    files = _source_files(run, {clip["video_id"] for clip in clips}, config.sidecar)
    wanted = [_item(clip, files[clip["video_id"]], config) for clip in clips]
    todo = pending(run.root, "captions", [item["caption_id"] for item in wanted], run.retry_failed)
    work = PerItemWork(
        step="captions",
        version=VERSION,
        config=config,
        worker=CaptionMatcher,
        done_table="captions",
        worker_args={"config": config, "sidecars": sorted({item["sidecar"] for item in wanted} - {""})},
        block_size=config.block_size,
    )
    result = run_blocks(run, work, todo.items(wanted, "caption_id"), todo.num_done)
    return wanted, result


@dataclass(frozen=True)
class SourceFile:
    """Where the captions of a video stand: its name in the sidecar file, the file, and a hash of its bytes."""

    file: str
    sidecar: str = ""
    text_hash: str = ""
    annotations: str = ""  # JSON: what the list said that named the file; only where there is no sidecar file


def _said(annotations: str, start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Spans of a list that touch a stretch of the video; one without times is about all of it."""
    spans = [
        {
            "start_s": start_s if one["start_s"] is None else one["start_s"],
            "end_s": end_s if one["end_s"] is None else one["end_s"],
            "text": one["text"],
        }
        for one in json.loads(annotations)
    ]
    return [span for span in spans if span["text"] and span["start_s"] < end_s and span["end_s"] > start_s]


def _item(clip: Mapping[str, Any], source: SourceFile, config: CaptionsConfig) -> dict[str, Any]:
    # The bytes of the caption file are part of it: an edited file gives new captions.
    decided_by = content_id(source.text_hash, config.min_overlap, config.language) if source.text_hash else ""
    return {
        "caption_id": content_id(clip["clip_id"], HUMAN, decided_by, *filter(None, [source.annotations])),
        "clip_id": clip["clip_id"],
        "kind": HUMAN,
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "file": source.file,
        "sidecar": source.sidecar,
        "said": _said(source.annotations, clip["start_s"], clip["end_s"]) if source.annotations else None,
        "decided_by": decided_by,
    }


def _source_files(run: Run, video_ids: set[str], sidecar: str) -> dict[str, SourceFile]:
    """Per video, the copy of it (equal bytes may have several names) that a caption file can know."""
    if sidecar and not storage.exists(sidecar):
        raise StepError(f"there is no caption file {sidecar}: set captions.sidecar to a CSV, or leave it empty")
    names = ["video_id", "uri", "path", "card", "annotations", *ORDER]
    rows = read_table(run.root, "sources", names, where=pc.field("status") == "ok")
    rows = in_order(rows).to_pylist()  # of what two lists say of a video, the newer counts
    sidecars = {"": sidecar}  # by source.yaml
    hashes = {"": ""}
    found: dict[str, SourceFile] = {}
    for card, row in zip(cards_of(rows), rows, strict=True):
        if row["video_id"] not in video_ids or (row["video_id"] in found and found[row["video_id"]].sidecar):
            continue
        if card not in sidecars:
            sidecars[card] = sidecar or _named_sidecar(card)
        uri = sidecars[card]
        if uri not in hashes:
            hashes[uri] = content_id(storage.read_bytes(uri))
        said = "" if uri else row["annotations"] or ""
        before = found.get(row["video_id"])
        if said or not (before and before.annotations) or uri:
            # One hash for all lists: a later step names those captions that count by it.
            found[row["video_id"]] = SourceFile(row["path"], uri, "annotations" if said else hashes[uri], said)
    return {video_id: found.get(video_id, SourceFile(f"video {video_id}")) for video_id in video_ids}


def _named_sidecar(card: str) -> str:
    """The caption file that a source.yaml names; empty if it names none."""
    try:
        name = read_card(card).captions
    except FileNotFoundError:
        raise StepError(f"{card} is gone, which named the captions of its videos: put it back") from None
    uri = storage.join(os.path.dirname(card), name) if name else ""
    if uri and not storage.exists(uri):
        raise StepError(f"{card} names the caption file {name!r}, which is not there: correct `captions` in it")
    return uri
