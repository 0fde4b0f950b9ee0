"""Step `captions`: captions by people, matched to clips by time (`human`), and captions by a model (`writing`)."""

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pyramid_model.config import CaptionsOfKind, Kind
from tasks.captioning.config import HUMAN, REWRITTEN, VERSION, CaptionItem, CaptionsConfig, CaptionsResult, Usage
from tasks.captioning.human import match_captions
from tasks.captioning.writing import CLIP_COLUMNS, Parent, find_writer, wanted_items, write_captions
from tasks.running.run import Run, StepResult, lineage, merged
from tasks.running.step import step
from tasks.tables.appending import append_again
from tasks.tables.current import selected_clips
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, newest_by
from tasks.tables.rows import CaptionRow, ClipRow, as_rows


@step
def captions(run: Run, config: CaptionsConfig) -> CaptionsResult:
    """Give every selected clip its captions; a clip without a caption gets a skipped or failed row.

    Raises:
        StepError: a caption file is missing or cannot be read; a model or an endpoint is not available.
    """
    columns = ("clip_id", "video_id", "start_s", "end_s", *(CLIP_COLUMNS if config.by_model else ()))
    clips = as_rows(selected_clips(run.root, config.selection, columns=columns), ClipRow)
    results: list[StepResult] = []
    all_items: list[CaptionItem] = []
    if HUMAN in config.kinds:
        items, result = match_captions(run, config, clips)
        all_items, results = [*all_items, *items], [*results, result]
    if config.by_model:
        items, of_models = _write(run, config, clips)
        all_items, results = [*all_items, *items], [*results, *of_models]
    hashes = [{item["decided_by"] for item in all_items if item["kind"] == kind} - {""} for kind in config.kinds]
    used = tuple(
        CaptionsOfKind(kind=kind, hashes=tuple(sorted(of_kind)))
        for kind, of_kind in zip(config.kinds, hashes, strict=True)
    )
    total = results[0] if len(results) == 1 else merged(results)
    usage = _usage(run, all_items) if config.by_model else None
    note = total.note
    if usage and total.num_new:
        tokens = f"{usage.num_prompt_tokens} prompt and {usage.num_completion_tokens} answer tokens"
        note = f"{tokens}, {usage.cost_usd:.4g} USD"
    num_restored = 0
    for caption_ids in _captions_to_restore(run, sorted(all_items, key=lambda item: config.kinds.index(item["kind"]))):
        num_restored += append_again(run.root, "captions", caption_ids, lineage(run, "captions", VERSION, config))
    if num_restored and note == total.note:
        note = f"{num_restored} clips use captions of an earlier run again"
    return CaptionsResult(**dict(total, note=note), captions=used, usage=usage)


def _write(run: Run, config: CaptionsConfig, clips: Sequence[ClipRow]) -> tuple[list[CaptionItem], list[StepResult]]:
    """Write captions by a model; returns the items and the results. Rewritten captions come last.

    A rewritten caption is made from a caption of another kind, which may come from this run.
    """
    writer = find_writer(run, config)
    all_items: list[CaptionItem] = []
    results = []
    from_frames: list[Kind] = [kind for kind in config.by_model if kind != REWRITTEN]
    rewritten: list[Kind] = [kind for kind in config.by_model if kind == REWRITTEN]
    for kinds in filter(None, (from_frames, rewritten)):
        parents = _parents(run, config, all_items) if kinds is rewritten else {}
        items = wanted_items(config, kinds, writer, clips, parents)
        results.append(write_captions(run, config, items, writer))
        all_items += items
    return all_items, results


def _parents(run: Run, config: CaptionsConfig, written: Sequence[CaptionItem]) -> dict[str, Parent]:
    """By clip id, the newest ok caption to rewrite; only those among `written`, if this run writes that kind.

    A failed caption of other settings that is newer does not matter: an older text can still be rewritten.
    """
    to_rewrite = (pc.field("status") == "ok") & (pc.field("kind") == config.rewrite_from)
    if config.rewrite_from in config.by_model:
        written_ids = pa.array([item["caption_id"] for item in written], pa.string())
        to_rewrite &= pc.field("caption_id").isin(written_ids)
    rows = read_table(run.root, "captions", ["clip_id", "caption_id", "text", *ORDER], where=to_rewrite)
    newest = as_rows(newest_by(rows, ["clip_id"]), CaptionRow)
    return {row["clip_id"]: Parent(row["caption_id"], row["text"]) for row in newest}


def _usage(run: Run, items: Iterable[CaptionItem]) -> Usage:
    """Tokens and cost of the captions that this run made, also of answers that an earlier run paid for."""
    ids = pa.array([item["caption_id"] for item in items], pa.string())
    names = ("quality", "num_prompt_tokens", "num_completion_tokens", "cost_usd")
    of_run = pc.field("caption_id").isin(ids) & (pc.field("run_id") == run.run_id)
    rows = [row for row in as_rows(read_table(run.root, "captions", names, where=of_run), CaptionRow) if row["quality"]]
    qualities = [json.loads(row["quality"]) for row in rows]
    num_asked = sum(quality["num_asked"] for quality in qualities)
    return Usage(
        num_asked=num_asked,
        num_reused=sum(quality["num_answers"] for quality in qualities) - num_asked,
        num_prompt_tokens=sum(row["num_prompt_tokens"] or 0 for row in rows),
        num_completion_tokens=sum(row["num_completion_tokens"] or 0 for row in rows),
        cost_usd=sum(row["cost_usd"] or 0 for row in rows),
    )


def _captions_to_restore(run: Run, items: Sequence[CaptionItem]) -> tuple[list[str], list[str]]:
    """Ids of captions to append again so that they count: first those of a kind, then one per clip.

    Of each clip and kind, the caption in `items` must be the newest row. Of all captions of a clip, the newest must be
    the first one in `items` that is good; if none is good, the first one.
    """
    rows = read_table(run.root, "captions", ["clip_id", "kind", "caption_id", "status", *ORDER])
    good = set(rows.filter(pc.field("status") == "ok")["caption_id"].to_pylist())
    newest_of_kind, newest_of_clip = (
        set(newest_by(rows, keys)["caption_id"].to_pylist()) for keys in (["clip_id", "kind"], ["clip_id"])
    )
    preferred: dict[str, str] = {}
    for item in sorted(items, key=lambda item: item["caption_id"] not in good):  # a stable sort
        preferred.setdefault(item["clip_id"], item["caption_id"])
    of_kind = {item["caption_id"]: item["clip_id"] for item in items if item["caption_id"] not in newest_of_kind}
    changed_clips = set(of_kind.values())
    of_clip = [
        caption_id
        for clip_id, caption_id in preferred.items()
        if clip_id in changed_clips or caption_id not in newest_of_clip
    ]
    return [caption_id for caption_id in of_kind if caption_id not in of_clip], of_clip
