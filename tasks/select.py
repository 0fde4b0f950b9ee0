"""Which clips to train on: thresholds on their scores, a bucket each, and a split that does not leak.

Only rows are read and written here, so another threshold costs seconds and recomputes no score.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from pyramid_model.config import Config
from tasks.buckets import fitting_bucket, parse_bucket
from tasks.clips import current_clips
from tasks.manifest import newest_selection, verdicts_of
from tasks.scores import score_id
from tasks.source_card import SplitPin, read_card
from tasks.splits import SPLITS, split_of
from tasks.step import Run, StepResult, lineage, params_hash, step
from tasks.tables import append_block, content_id, ok_row, read_table, table_version

VERSION = "1"


class Limits(Config):
    """Bounds of a score, both included; an empty one does not bind."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "Limits":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no clip could pass")
        return self


class SelectConfig(Config):
    """What makes a clip worth training on."""

    thresholds: dict[str, Limits] = Field({}, description="limits by scorer, e.g. {motion: {min: 1}}")
    min_frames: int = Field(2, ge=1, description="frames of the clip at its own rate")
    buckets: tuple[str, ...] = Field(("384x640x121@24",), min_length=1, description="<height>x<width>x<frames>@<fps>")
    max_upscale: float = Field(1.0, gt=0, description="a bucket may be so many times larger than the clip")
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the videos that no pin puts elsewhere")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="the same for the test split")
    min_val_clips: int = Field(1, ge=0, description="with fewer, a run that goes on to training stops here")

    @field_validator("buckets")
    @classmethod
    def _parse(cls, buckets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_bucket(text)) for text in buckets)


@step
def select(run: Run, config: SelectConfig) -> StepResult:
    """Judge every current clip; a row in `selections` for each whose verdict is new. `outputs.selection` names the lot.

    Raises:
        ValueError: there is no clip, or a threshold names a score that no clip has. Too few clips to train on are no
            error here: `outputs.shortage` and the note say so, and a flow that goes on to training stops.
    """
    started = time.time()
    clips = current_clips(run).to_pylist()
    params = params_hash(config)
    if not clips:
        raise ValueError(_no_clips(run))
    verdicts = judge(clips, _scores(run, config, clips), _pins(run, clips), config, params)
    newest = {row["clip_id"]: row for row in verdicts_of(run.root, params).to_pylist()}
    changed = [
        row
        for row in [*verdicts, *_withdrawn(newest, clips, params)]
        if newest.get(row["clip_id"], {}).get("selection_id") != row["selection_id"]
    ]
    is_newest = changed or newest_selection(run.root) == params
    attempts = _attempts(run)
    rows = [
        ok_row({"attempt": attempts.get(row["selection_id"], 0) + 1}, **row)
        for row in (changed if is_newest else verdicts[:1])  # one row again makes an earlier selection the newest
    ]
    block_id = content_id("selections", sorted((row["selection_id"], row["attempt"]) for row in rows))
    append_block(run.root, "selections", rows, block_id, lineage(run, "select", VERSION, config))
    kept = Counter(row["split"] for row in verdicts if row["keep"])
    splits = ", ".join(f"{split} {kept[split]}" for split in SPLITS if kept[split])
    shortage = _shortage(verdicts, config)
    num_new = sum(row["drop_reasons"] != ["not_current"] for row in changed)
    return StepResult(
        step="select",
        num_in=len(clips),
        num_done=len(clips) - num_new,
        num_ok=num_new,
        rows={"selections": len(rows)} if rows else {},
        versions={"selections": table_version(run.root, "selections")},
        outputs={
            "selection": params,
            "thresholds": json.dumps(config.model_dump(mode="json")["thresholds"]),
            "shortage": shortage,
        },
        errors=dict(Counter(reason for row in verdicts for reason in row["drop_reasons"])),
        note=f"{kept.total()} of {len(clips)} clips kept ({splits})" + (f"; {shortage}" if shortage else ""),
        busy_s=time.time() - started,
    )


def judge(
    clips: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, float]],
    pins: Mapping[str, Sequence[SplitPin]],
    config: SelectConfig,
    params: str,
) -> list[dict[str, Any]]:
    """Verdicts on clips, one row each without the common columns.

    Args:
        clips: rows of `clips`.
        scores: clip id -> scorer -> value.
        pins: video id -> pins of its files.
        config: the rules.
        params: their hash, part of the ids.
    """
    buckets = [parse_bucket(text) for text in config.buckets]
    rows = []
    for clip in clips:
        values = scores.get(clip["clip_id"], {})
        reasons = _threshold_reasons(values, config.thresholds)
        if clip["num_frames"] < config.min_frames:
            reasons.append("too_few_frames")
        fps = Fraction(clip["fps_num"], clip["fps_den"])
        bucket, why = fitting_bucket(
            clip["height"], clip["width"], clip["num_frames"], fps, buckets, config.max_upscale
        )
        split = split_of(clip, pins.get(clip["video_id"], ()), config.val_fraction, config.test_fraction)
        reasons += [reason for reason in (why, "" if split else "straddles_splits") if reason]
        verdict = {"keep": not reasons, "drop_reasons": reasons, "bucket": str(bucket or ""), "split": split}
        used = {scorer: values.get(scorer) for scorer in sorted(config.thresholds)}
        selection_id = content_id(clip["clip_id"], params, VERSION, used, verdict)
        rows.append({"selection_id": selection_id, "clip_id": clip["clip_id"]} | verdict)
    return rows


def _threshold_reasons(values: Mapping[str, float], thresholds: Mapping[str, Limits]) -> list[str]:
    reasons = []
    for scorer, limits in thresholds.items():
        value = values.get(scorer)
        if value is None:
            reasons.append(f"{scorer}_missing")
        elif limits.min is not None and value < limits.min:
            reasons.append(f"{scorer}_low")
        elif limits.max is not None and value > limits.max:
            reasons.append(f"{scorer}_high")
    return reasons


def _no_clips(run: Run) -> str:
    """Why there is nothing to select from."""
    videos = read_table(run.root, "videos", ["error_type"])["error_type"].to_pylist()
    if not videos:
        return f"there are no videos in {run.root}: ingest some and cut them first (pyramid curate --source …)"
    why = ", ".join(f"{kind or 'ok'} {count}" for kind, count in Counter(videos).most_common())
    return f"none of the {len(videos)} videos in {run.root} gave a clip ({why}): pyramid manifest show videos says more"


def _scores(run: Run, config: SelectConfig, clips: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """clip id -> scorer -> value, for the scorers that have thresholds."""
    wanted = {score_id(clip["clip_id"], scorer) for clip in clips for scorer in config.thresholds}
    found: dict[str, dict[str, float]] = {}
    if wanted:
        rows = read_table(
            run.root, "scores", ["score_id", "clip_id", "scorer", "value"], where=pc.field("status") == "ok"
        )
        for row in rows.to_pylist():
            if row["score_id"] in wanted:
                found.setdefault(row["clip_id"], {})[row["scorer"]] = row["value"]
    known = {scorer for values in found.values() for scorer in values}
    if unknown := set(config.thresholds) - known:
        raise ValueError(
            f"no clip has a score {sorted(unknown)}, which select.thresholds limits: correct the name, or add it to "
            "scores.scorers and run the scores step"
        )
    return found


def _pins(run: Run, clips: Sequence[Mapping[str, Any]]) -> dict[str, list[SplitPin]]:
    """video id -> split pins of all its files, from the source.yaml that described each at ingest."""
    videos = {clip["video_id"] for clip in clips}
    described = (pc.field("status") == "ok") & (pc.field("card") != "")
    rows = read_table(run.root, "sources", ["video_id", "path", "card"], where=described).to_pylist()
    rows = [row for row in rows if row["video_id"] in videos]
    cards = {}
    for uri in sorted({row["card"] for row in rows}):
        try:
            cards[uri] = read_card(uri)
        except FileNotFoundError:
            raise ValueError(
                f"{uri} is gone, which described videos when they were ingested: their splits may be pinned there. "
                "Put it back"
            ) from None
    pins: dict[str, list[SplitPin]] = {}
    for row in rows:
        found = pins.setdefault(row["video_id"], [])
        found += [pin for pin in cards[row["card"]].pins_of(row["path"]) if pin not in found]
    return {video_id: found for video_id, found in pins.items() if found}


def _shortage(verdicts: Sequence[Mapping[str, Any]], config: SelectConfig) -> str:
    """Why this selection cannot be trained on, and what to change; empty when it can."""
    kept = Counter(row["split"] for row in verdicts if row["keep"])
    reasons = Counter(reason for row in verdicts for reason in row["drop_reasons"])
    why = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none dropped"
    if not kept["train"]:
        return (
            f"no clip is left to train on: {kept.total()} of {len(verdicts)} kept ({why}). Relax select.thresholds, "
            "select.min_frames or select.max_upscale, or choose smaller or shorter select.buckets"
        )
    if kept["val"] < config.min_val_clips:
        return (
            f"too few validation clips for a training: {kept['val']}, select.min_val_clips asks for "
            f"{config.min_val_clips} ({kept['train']} clips to train on; {why}). Raise select.val_fraction "
            f"({config.val_fraction:g}; whole videos are drawn, so a few videos need a large one), or pin a file or a "
            "span of time in source.yaml: splits: [{file: …, start_s: …, end_s: …, split: val}]"
        )
    return ""


def _attempts(run: Run) -> dict[str, int]:
    """selection id -> attempts so far."""
    rows = read_table(run.root, "selections", ["selection_id", "attempt"]).to_pylist()
    return {row["selection_id"]: row["attempt"] for row in rows}


def _withdrawn(
    newest: Mapping[str, Mapping[str, Any]], clips: Sequence[Mapping[str, Any]], params: str
) -> list[dict[str, Any]]:
    """Verdicts on clips that were kept and are no longer made by the clips step."""
    current = {clip["clip_id"] for clip in clips}
    verdict = {"keep": False, "drop_reasons": ["not_current"], "bucket": "", "split": ""}
    return [
        {"selection_id": content_id(clip_id, params, VERSION, verdict), "clip_id": clip_id} | verdict
        for clip_id, row in newest.items()
        if row["keep"] and clip_id not in current
    ]


def selected_clips(
    run: Run,
    selection: str = "",
    split: str = "",
    columns: Sequence[str] | None = None,
    versions: Mapping[str, int] | None = None,
) -> pa.Table:
    """Clips to work on, with the columns `bucket` and `split`, in the order of (video_id, start_frame).

    Args:
        run: where the tables are.
        selection: `outputs["selection"]` of the select step; empty: the newest selection.
        split: train, val or test; empty: all.
        columns: of `clips`; None: all of them.
        versions: of the tables `selections` and `clips`; None: the newest.

    Raises:
        ValueError: there is no such selection.
    """
    versions = versions or {}
    verdicts = verdicts_of(run.root, selection, versions.get("selections"))
    if not verdicts.num_rows:
        which = f"selection {selection!r}" if selection else "selection"
        raise ValueError(f"there is no {which} in {run.root}: run the select step (pyramid curate)")
    asked = pc.field("keep") & (pc.field("split") == split) if split else pc.field("keep")
    chosen = verdicts.filter(asked).select(["clip_id", "bucket", "split"])
    of_chosen = pc.field("clip_id").isin(chosen["clip_id"].combine_chunks())
    names = None if columns is None else [*dict.fromkeys(["clip_id", *columns, "video_id", "start_frame"])]
    clips = read_table(run.root, "clips", names, versions.get("clips"), of_chosen)
    joined = clips.join(chosen, "clip_id", join_type="inner")
    joined = joined.sort_by([("video_id", "ascending"), ("start_frame", "ascending")])
    return joined if columns is None else joined.select([*columns, "bucket", "split"])
