"""Captions of clips: sentences that people wrote for spans of the source videos, matched to clips by time, and those
that a model writes (`tasks.captioning.writing`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.captioning.config import HUMAN, REWRITTEN, VERSION, CaptionsConfig, CaptionsResult, Usage
from tasks.captioning.human import _match
from tasks.captioning.writing import CLIP_COLUMNS, Parent, find_writer, wanted_items, write_captions
from tasks.running.run import Run, StepResult, lineage, merged
from tasks.running.step import step
from tasks.tables.appending import append_again
from tasks.tables.current import selected_clips
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, in_order, newest_by


@step
def captions(run: Run, config: CaptionsConfig) -> CaptionsResult:
    """Give every selected clip its captions; a clip that gets none becomes a skipped or failed row.

    Raises:
        StepError: a caption file is named and missing, or cannot be read; a model or endpoint is not there.
    """
    columns = ("clip_id", "video_id", "start_s", "end_s", *(CLIP_COLUMNS if config.by_model else ()))
    clips = selected_clips(run.root, config.selection, columns=columns).to_pylist()
    results: list[StepResult] = []
    wanted: list[dict[str, Any]] = []
    if HUMAN in config.kinds:
        items, result = _match(run, config, clips)
        wanted, results = [*wanted, *items], [*results, result]
    if config.by_model:
        items, found = _write(run, config, clips)
        wanted, results = [*wanted, *items], [*results, *found]
    named = {kind: sorted({item["decided_by"] for item in wanted if item["kind"] == kind}) for kind in config.kinds}
    written = ";".join(f"{kind}:{','.join(filter(None, hashes))}" for kind, hashes in named.items())
    together = results[0] if len(results) == 1 else merged(results)
    usage = _usage(run, wanted) if config.by_model else None
    note = together.note
    if usage and together.num_new:
        tokens = f"{usage.num_prompt_tokens} prompt and {usage.num_completion_tokens} answer tokens"
        note = f"{tokens}, {usage.cost_usd:.4g} USD"
    back = 0
    for overruled in _overruled(run, sorted(wanted, key=lambda item: config.kinds.index(item["kind"]))):
        back += append_again(run.root, "captions", overruled, lineage(run, "captions", VERSION, config))
    if back and note == together.note:
        note = f"{back} clips are back to captions that were made before"
    return CaptionsResult(**dict(together, note=note), captions=written, usage=usage)


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
    rows = read_table(run.root, "captions", ["clip_id", "caption_id", "text", *ORDER], where=good)
    here = {item["caption_id"] for item in written}
    return {
        row["clip_id"]: Parent(row["caption_id"], row["text"])
        for row in in_order(rows).to_pylist()
        if config.rewrite_from not in config.by_model or row["caption_id"] in here
    }


def _usage(run: Run, wanted: Iterable[Mapping[str, Any]]) -> Usage:
    """What the captions that this run made have cost, whoever paid; those of earlier runs count nothing."""
    ids = pa.array([item["caption_id"] for item in wanted], pa.string())
    names = ("quality", "num_prompt_tokens", "num_completion_tokens", "cost_usd")
    made = pc.field("caption_id").isin(ids) & (pc.field("run_id") == run.run_id)
    rows = [row for row in read_table(run.root, "captions", names, where=made).to_pylist() if row["quality"]]
    facts = [json.loads(row["quality"]) for row in rows]
    asked = sum(fact["num_asked"] for fact in facts)
    return Usage(
        num_asked=asked,
        num_kept=sum(fact["num_answers"] for fact in facts) - asked,
        num_prompt_tokens=sum(row["num_prompt_tokens"] or 0 for row in rows),
        num_completion_tokens=sum(row["num_completion_tokens"] or 0 for row in rows),
        cost_usd=sum(row["cost_usd"] or 0 for row in rows),
    )


def _overruled(run: Run, wanted: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Ids of captions to append again so that they count: first as newest of their kind, then as newest of their clip.

    Per clip one caption shall be the newest of all kinds: the first in `wanted`, but a good one before failed ones.
    """
    rows = read_table(run.root, "captions", ["clip_id", "kind", "caption_id", "status", *ORDER])
    good = set(rows.filter(pc.field("status") == "ok")["caption_id"].to_pylist())
    newest_of_kind, newest_of_clip = (
        set(newest_by(rows, keys)["caption_id"].to_pylist()) for keys in (["clip_id", "kind"], ["clip_id"])
    )
    preferred: dict[str, str] = {}
    for item in sorted(wanted, key=lambda item: item["caption_id"] not in good):  # equals keep their order
        preferred.setdefault(item["clip_id"], item["caption_id"])
    of_kind = {item["caption_id"]: item["clip_id"] for item in wanted if item["caption_id"] not in newest_of_kind}
    back = set(of_kind.values())
    of_clip = [
        caption_id for clip_id, caption_id in preferred.items() if clip_id in back or caption_id not in newest_of_clip
    ]
    return [caption_id for caption_id in of_kind if caption_id not in of_clip], of_clip
