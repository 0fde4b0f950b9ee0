"""Captions of clips: sentences that people wrote for spans of the source videos, matched to clips by time, and those
that a model writes (`tasks.captioning.writing`).
"""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pyramid_model.captioning.question import FrameSampling
from pyramid_model.config import Config, without_unused
from tasks.captioning.endpoint import EndpointConfig
from tasks.captioning.writing import CLIP_COLUMNS, REWRITTEN, Parent, find_writer, wanted_items, write_captions
from tasks.models.vision_models import VisionModelConfig
from tasks.running.pipeline import StepError, run_blocks
from tasks.running.step import Run, StepResult, lineage, step
from tasks.selecting.select import selected_clips
from tasks.sources.card import cards_of, read_card
from tasks.tables import storage
from tasks.tables.delta import append_again, bad_row, content_id, ok_row, pending, read_table

VERSION = "1"
COLUMNS = ("file", "start_s", "end_s", "text")


Kind = Literal["human", "short", "dense", "structured", "rewritten"]
HUMAN = "human"
# Came after human captions. Written down only where they are used, so that the settings of before hash the same.
ADDED = ("local", "endpoint", "frames", "instructions", "rewrite_from", "max_repetition")


class CaptionsConfig(Config):
    """Where captions come from."""

    selection: str = Field("", description="which selection; empty: the newest")
    kind: Kind | tuple[Kind, ...] = Field(
        "human",
        description="human: from the sidecar file that source.yaml names; short, dense, structured: by a model that "
        "sees the clip; rewritten: by a model, from another caption. Several as a list, the preferred one first",
    )
    sidecar: str = Field("", description="CSV with file, start_s, end_s, text; empty: `captions` of each source.yaml")
    min_overlap: float = Field(0.3, gt=0, le=1, description="share of a clip's duration that its caption must cover")
    language: str = Field("en", description="two letters; what a model writes in another one fails. Empty: any")
    block_size: int = Field(64, ge=1, description="clips a block")
    local: VisionModelConfig | None = Field(None, description="the model that writes, in Ray actors; null: none")
    endpoint: EndpointConfig | None = Field(None, description="the model that writes, behind a server; null: none")
    frames: FrameSampling = Field(FrameSampling(), description="what a model sees of a clip")
    instructions: dict[Kind, str] = Field({}, description="one's own words for a model, by kind, in place of ours")
    rewrite_from: Kind = Field("human", description="kind of caption that `rewritten` starts from")
    max_repetition: float = Field(
        0.3, ge=0, le=1, description="largest share of repeated 4-word sequences; more is a failed caption"
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are asked for, the preferred one first."""
        return (self.kind,) if isinstance(self.kind, str) else self.kind

    @property
    def by_model(self) -> tuple[str, ...]:
        """Those that a model writes."""
        return tuple(kind for kind in self.kinds if kind != HUMAN)

    @model_validator(mode="after")
    def _check(self) -> "CaptionsConfig":
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kind {list(self.kinds)}: name at least one kind, and each once")
        if self.by_model and (self.local is None) == (self.endpoint is None):
            raise ValueError(
                f"{', '.join(self.by_model)} captions are written by a model: set one of captions.local.name (in Ray "
                "actors) and captions.endpoint with base_url and model (an OpenAI-compatible server)"
            )
        if self.rewrite_from == REWRITTEN:
            raise ValueError("rewrite_from 'rewritten': name the kind of caption that is rewritten, such as dense")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump, ADDED)


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

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """One row a clip."""
        return {"captions": [self.caption(item) for item in items]}

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


@step
def captions(run: Run, config: CaptionsConfig) -> StepResult:
    """Give every selected clip its captions; a clip that gets none becomes a skipped or failed row.

    Returns:
        outputs `captions` (which ones, for later steps) and, where a model wrote some, `usage` (JSON: tokens, cost_usd,
        how many answers were asked for and how many had been kept from an earlier run).

    Raises:
        StepError: a caption file is named and missing, or cannot be read; a model or endpoint is not there.
    """
    columns = ("clip_id", "video_id", "start_s", "end_s", *(CLIP_COLUMNS if config.by_model else ()))
    clips = selected_clips(run, config.selection, columns=columns).to_pylist()
    results: list[StepResult] = []
    wanted: list[dict[str, Any]] = []
    if HUMAN in config.kinds:
        items, result = _match(run, config, clips)
        wanted, results = [*wanted, *items], [*results, result]
    if config.by_model:
        items, found = _write(run, config, clips)
        wanted, results = [*wanted, *items], [*results, *found]
    named = {kind: sorted({item["decided_by"] for item in wanted if item["kind"] == kind}) for kind in config.kinds}
    outputs = {"captions": ";".join(f"{kind}:{','.join(filter(None, hashes))}" for kind, hashes in named.items())}
    changes: dict[str, Any] = {"outputs": outputs}
    together = _together(results)
    if config.by_model:
        used = _usage(run, wanted)
        outputs["usage"] = json.dumps(used)
        if together.num_new:
            tokens = f"{used['num_prompt_tokens']} prompt and {used['num_completion_tokens']} answer tokens"
            changes["note"] = f"{tokens}, {used['cost_usd']:.4g} USD"
    back = 0
    for overruled in _overruled(run, sorted(wanted, key=lambda item: config.kinds.index(item["kind"]))):
        back += append_again(run.root, "captions", overruled, lineage(run, "captions", VERSION, config))
    if back:
        changes.setdefault("note", f"{back} clips are back to captions that were made before")
    return together.model_copy(update=changes)


def _match(
    run: Run, config: CaptionsConfig, clips: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], StepResult]:
    """Captions that people wrote: what is wanted, and what was done."""
    files = _source_files(run, {clip["video_id"] for clip in clips}, config.sidecar)
    wanted = [_item(clip, files[clip["video_id"]], config) for clip in clips]
    todo = pending(run.root, "captions", [item["caption_id"] for item in wanted], run.retry_failed)
    result = run_blocks(
        run,
        config,
        step="captions",
        step_version=VERSION,
        items=todo.items(wanted, "caption_id"),
        worker=CaptionMatcher,
        worker_args={"config": config, "sidecars": sorted({item["sidecar"] for item in wanted} - {""})},
        num_done=todo.num_done,
        block_size=config.block_size,
    )
    return wanted, result


def _write(
    run: Run, config: CaptionsConfig, clips: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[StepResult]]:
    """Captions that a model writes: what is wanted, and what was done. Rewritten ones need the others first."""
    writer = find_writer(run, config)
    wanted: list[dict[str, Any]] = []
    results = []
    seeing = [kind for kind in config.by_model if kind != REWRITTEN]
    for kinds in filter(None, (seeing, [REWRITTEN] if REWRITTEN in config.by_model else [])):
        parents = _parents(run, config, wanted) if kinds == [REWRITTEN] else {}
        items = wanted_items(config, kinds, writer, clips, parents)
        results.append(write_captions(run, config, items, writer))
        wanted += items
    return wanted, results


def _parents(run: Run, config: CaptionsConfig, written: Sequence[Mapping[str, Any]]) -> dict[str, Parent]:
    """By clip id, the newest good caption to rewrite: of this very run, if it makes that kind."""
    good = (pc.field("status") == "ok") & (pc.field("kind") == config.rewrite_from)
    rows = read_table(run.root, "captions", ["clip_id", "caption_id", "text", "created_at"], where=good)
    here = {item["caption_id"] for item in written}
    return {
        row["clip_id"]: Parent(row["caption_id"], row["text"])
        for row in rows.sort_by("created_at").to_pylist()
        if config.rewrite_from not in config.by_model or row["caption_id"] in here
    }


def _together(results: Sequence[StepResult]) -> StepResult:
    """One result for all kinds."""
    if len(results) == 1:
        return results[0]
    return StepResult(
        step="captions",
        num_in=sum(one.num_in for one in results),
        num_done=sum(one.num_done for one in results),
        num_ok=sum(one.num_ok for one in results),
        num_failed=sum(one.num_failed for one in results),
        num_skipped=sum(one.num_skipped for one in results),
        busy_s=sum(one.busy_s for one in results),
        rows=_added(one.rows for one in results),
        errors=_added(one.errors for one in results),
        timings=_added(one.timings for one in results),
        versions={table: version for one in results for table, version in one.versions.items()},
        note="" if any(one.num_new for one in results) else "nothing new",
    )


def _added(tallies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Values by name, those of equal names added."""
    total: dict[str, Any] = {}
    for tally in tallies:
        for name, value in tally.items():
            total[name] = total.get(name, 0) + value
    return total


def _usage(run: Run, wanted: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the captions that this run made have cost, whoever paid; those of earlier runs count nothing."""
    ids = pa.array([item["caption_id"] for item in wanted], pa.string())
    names = ("quality", "num_prompt_tokens", "num_completion_tokens", "cost_usd")
    made = pc.field("caption_id").isin(ids) & (pc.field("run_id") == run.run_id)
    rows = [row for row in read_table(run.root, "captions", names, where=made).to_pylist() if row["quality"]]
    facts = [json.loads(row["quality"]) for row in rows]
    asked = sum(fact["num_asked"] for fact in facts)
    return {
        "num_asked": asked,
        "num_kept": sum(fact["num_answers"] for fact in facts) - asked,
        **{name: sum(row[name] or 0 for row in rows) for name in names[1:]},
    }


def _overruled(run: Run, wanted: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Of the captions that are wanted, those that have to become the newest of their kind, then those of their clip.

    The latter are the preferred ones: of a clip the first in `wanted`, but a good one before those that failed.
    """
    columns = ["clip_id", "kind", "caption_id", "status", "created_at"]
    rows = read_table(run.root, "captions", columns).sort_by("created_at").to_pylist()
    good = {row["caption_id"] for row in rows if row["status"] == "ok"}
    newest_of_kind, newest, newest_at = {}, {}, {}
    for row in rows:
        clip_id, written_at = row["clip_id"], row["created_at"]
        newest_of_kind[clip_id, row["kind"]] = row["caption_id"]
        # Those of a block were written in one moment: none of them is the newest then.
        newest[clip_id] = "" if newest_at.get(clip_id) == written_at else row["caption_id"]
        newest_at[clip_id] = written_at
    preferred: dict[str, str] = {}
    for item in sorted(wanted, key=lambda item: item["caption_id"] not in good):  # equals keep their order
        preferred.setdefault(item["clip_id"], item["caption_id"])
    of_kind = {
        item["caption_id"]: item["clip_id"]
        for item in wanted
        if newest_of_kind[item["clip_id"], item["kind"]] != item["caption_id"]
    }
    back = set(of_kind.values())
    of_clip = [one for clip_id, one in preferred.items() if clip_id in back or newest[clip_id] != one]
    return [one for one in of_kind if one not in of_clip], of_clip


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
    names = ["video_id", "uri", "path", "card", "annotations", "created_at"]
    rows = read_table(run.root, "sources", names, where=pc.field("status") == "ok")
    rows = rows.sort_by("created_at").to_pylist()  # of what two lists say of a video, the newer counts
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


def captions_of(run: Run, clip_ids: Sequence[str], captions: str = "", version: int | None = None) -> dict[str, str]:
    """Text by clip id: of several kinds, the first that a clip has; see `captions_by_kind`."""
    found = captions_by_kind(run, clip_ids, captions, version)
    return {clip_id: next(iter(texts.values())) for clip_id, texts in found.items()}


def captions_by_kind(
    run: Run, clip_ids: Sequence[str], captions: str = "", version: int | None = None
) -> dict[str, dict[str, str]]:
    """Text by clip id and kind. Clips for which the last word is that they have no caption are left out.

    Args:
        run: where the tables are.
        clip_ids: which clips.
        captions: the `captions` of a run of the step (`dense:HASH,…;short:HASH`), or kinds alone (`dense;short`), which
            take the newest of each; kinds come in this order. Empty: of each clip the newest, of whatever kind.
        version: of the table; None: the newest.
    """
    columns = ["clip_id", "kind", "prompt_hash", "text", "status", "created_at"]
    wanted = pc.field("clip_id").isin(pa.array(clip_ids, pa.string()))
    rows = read_table(run.root, "captions", columns, version, wanted).sort_by("created_at").to_pylist()
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
