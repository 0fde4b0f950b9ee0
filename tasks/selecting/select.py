"""Step select: choose the clips to train on by limits on scores, duplicates and quotas; each gets a bucket and a split.

The step reads and writes rows only: a new threshold takes seconds and recomputes no score.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tasks.running.run import Run, lineage, params_hash
from tasks.running.step import step
from tasks.scoring.newest import score_arrays
from tasks.selecting.duplicates import groups_by_method
from tasks.selecting.judging import CLIP_COLUMNS, VERSION, Judged, Material, Verdict, judge
from tasks.selecting.select_config import SelectConfig, SelectResult
from tasks.selecting.splits import SPLITS, splits_of
from tasks.sources.card import SplitPin, cards_of, read_card
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import clip_figures, current_clips
from tasks.tables.delta import read_table, table_version
from tasks.tables.drop_reasons import NOT_CURRENT
from tasks.tables.manifest import newest_selection, verdicts_of
from tasks.tables.rows import ClipRow, SelectionColumns, SelectionRow, as_rows, ok_row
from tasks.tables.schemas import CLIP_FIGURES, DUPLICATE_METHODS

# Groups of these methods link videos in the draw of splits. Semantic groups would link almost all videos of a root.
LINKING = tuple(method for method in DUPLICATE_METHODS if method != "semantic")


@step
def select(run: Run, config: SelectConfig) -> SelectResult:
    """Judge every current clip, and append a row to `selections` for each new verdict.

    Each nested set is a selection of its own; the one named by `train_set` becomes the newest.

    Raises:
        ValueError: there is no clip; or `thresholds` names a score, or `sources` a source, that no clip has. Too few
            clips to train on are not an error here: `shortage` and the note say so, and a flow stops before training.
    """
    started = time.time()
    clips = current_clips(run.root, CLIP_COLUMNS, config.clips)
    if not clips.num_rows:
        raise ValueError(_no_clips(run))
    material = _material(run, clips, config)
    judged: list[Judged] = []
    for nested in config.nested():
        judged.append(judge(material, nested, params_hash(nested), judged[-1] if judged else None))
    trained = judged[config.place_to_train]
    changed: set[str] = set()
    num_rows = 0
    for of_set in sorted(judged, key=lambda of_set: of_set is trained):
        new, count = _write(run, of_set, is_trained=of_set is trained)
        changed |= new
        num_rows += count
    shortage = _shortage(trained.rows, config)
    return SelectResult(
        step="select",
        num_in=clips.num_rows,
        num_done=clips.num_rows - len(changed),
        num_ok=len(changed),
        rows={"selections": num_rows} if num_rows else {},
        versions={"selections": table_version(run.root, "selections")},
        selection=trained.selection,
        sets={of_set.name: of_set.selection for of_set in judged if of_set.name},
        thresholds=trained.limits,
        shortage=shortage,
        errors=dict(Counter(reason for row in trained.rows for reason in row["drop_reasons"])),
        note=_note(judged, trained) + (f"; {shortage}" if shortage else ""),
        busy_s=time.time() - started,
    )


def _material(run: Run, table: pa.Table, config: SelectConfig) -> Material:
    """The clips and the data that the rules read. table: CLIP_COLUMNS of the current clips."""
    clips = as_rows(table, ClipRow)
    clip_ids = [clip["clip_id"] for clip in clips]
    positions = {clip_id: position for position, clip_id in enumerate(clip_ids)}
    scores = score_arrays(run.root, clip_ids, config.versions.get("scores"))
    scores |= {name: column.to_numpy() for name, column in clip_figures(table).items()}
    _check_limits(config, scores)
    # Groups of the last search: newer clips are not in them, and clips that are no longer current are left out.
    groups: dict[str, list[list[int]]] = {}
    for method, by_ids in groups_by_method(run.root, config.clips, config.versions.get("duplicates")).items():
        current = ([positions[clip_id] for clip_id in group if clip_id in positions] for group in by_ids)
        groups[method] = [group for group in current if len(group) > 1]
    copies = [group for method in LINKING for group in groups[method]]
    splits = splits_of(clips, copies, _pins(run, clips), config.val_fraction, config.test_fraction)
    return Material(clips, scores, groups, splits, _sources(run, clips, config))


def check_limited(run: Run, config: SelectConfig, computed: Collection[str]) -> None:
    """Raise an error for limits on a score that no clip will have, before any video is cut.

    Args:
        run: its root holds the scores of earlier runs.
        config: the limits.
        computed: scores that the run itself computes.

    Raises:
        ValueError: a limit names neither one of them, nor a figure of the clip, nor a score of earlier runs.
    """
    scores = {*CLIP_FIGURES, *computed}
    if not scores.issuperset(config.limited):
        scores.update(read_table(run.root, "scores", ["scorer"])["scorer"].unique().to_pylist())
    _check_limits(config, scores)


def _check_limits(config: SelectConfig, scores: Collection[str]) -> None:
    """Raise an error for limits on a score that is not in `scores`."""
    if unknown := [name for name in config.limited if name not in scores]:
        by = f"the preset {config.preset} or select.thresholds" if config.preset else "select.thresholds"
        raise ValueError(
            f"no clip has a score {unknown}, which {by} limits (there are {', '.join(sorted(scores))}): correct the "
            "name, let the scores step compute it (section scores), or remove the limit with {}, as in "
            f"select.thresholds.{unknown[0]}={{}}"
        )


def _sources(run: Run, clips: Sequence[ClipRow], config: SelectConfig) -> list[str]:
    """The source of each clip's video.

    Raises:
        ValueError: `sources` names a source that no clip comes from.
    """
    columns = read_table(run.root, "videos", ["video_id", "source"])
    source = dict(zip(*(columns[name].to_pylist() for name in ("video_id", "source")), strict=True))
    sources = [source.get(clip["video_id"]) or "" for clip in clips]
    if unknown := sorted(set(config.sources) - set(sources)):
        raise ValueError(
            f"no clip comes from a source {unknown}, which select.sources gives a share: there are "
            f"{sorted(set(sources))} (a source is named by its source.yaml, or like its folder)"
        )
    return sources


def _note(judged: Sequence[Judged], trained: Judged) -> str:
    """Note of the result: kept clips by split and set, and percentile limits as values."""
    by_split = Counter(row["split"] for row in trained.rows if row["keep"])
    splits = ", ".join(f"{split} {by_split[split]}" for split in SPLITS if by_split[split])
    note = f"{by_split.total()} of {len(trained.rows)} clips kept ({splits})"
    if trained.name:
        note += f" in set {trained.name}; " + ", ".join(f"{of_set.name} {of_set.kept.sum()}" for of_set in judged)
    for scorer, limits in trained.config.rules().thresholds.items():
        if limits.min_percentile is not None or limits.max_percentile is not None:
            bounds = trained.limits[scorer]
            low, high = ("…" if bound is None else f"{bound:.4g}" for bound in (bounds.min, bounds.max))
            note += f"; {scorer} from {low} to {high}"
    return note


def _no_clips(run: Run) -> str:
    """Error message: why there are no clips."""
    videos = read_table(run.root, "videos", ["error_type"])["error_type"].to_pylist()
    if not videos:
        return f"there are no videos in {run.root}: ingest some and cut them first (pyramid curate --source …)"
    counts = ", ".join(f"{kind or 'ok'} {count}" for kind, count in Counter(videos).most_common())
    return f"none of the {len(videos)} videos in {run.root} gave a clip ({counts}): see pyramid manifest show videos"


def _pins(run: Run, clips: Sequence[ClipRow]) -> dict[str, list[SplitPin]]:
    """Video id -> split pins of all its files, from the source.yaml that described each file at ingest."""
    videos = {clip["video_id"] for clip in clips}
    rows = read_table(run.root, "sources", ["video_id", "uri", "path", "card"], where=pc.field("status") == "ok")
    rows = [row for row in rows.to_pylist() if row["video_id"] in videos]
    described = [(uri, row) for uri, row in zip(cards_of(rows), rows, strict=True) if uri]
    cards = {}
    for uri in sorted({uri for uri, _ in described}):
        try:
            cards[uri] = read_card(uri)
        except FileNotFoundError:
            raise ValueError(
                f"{uri} is missing. It described videos when they were ingested, and may pin their splits: put it back"
            ) from None
    pins: dict[str, list[SplitPin]] = {}
    for uri, row in described:
        of_video = pins.setdefault(row["video_id"], [])
        of_video += [pin for pin in cards[uri].pins_of(row["path"]) if pin not in of_video]
    return {video_id: of_video for video_id, of_video in pins.items() if of_video}


def _shortage(verdicts: Sequence[SelectionColumns], config: SelectConfig) -> str:
    """Why this selection cannot be trained on, and what to change; empty when it can."""
    by_split = Counter(row["split"] for row in verdicts if row["keep"])
    reasons = Counter(reason for row in verdicts for reason in row["drop_reasons"])
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none dropped"
    if not by_split["train"]:
        return (
            f"no clip is left to train on: {by_split.total()} of {len(verdicts)} kept ({counts}). Relax "
            "select.thresholds, select.min_frames or select.max_upscale, or choose smaller or shorter select.buckets"
        )
    if by_split["val"] < config.min_val_clips:
        return (
            f"too few validation clips for a training: {by_split['val']}, select.min_val_clips asks for "
            f"{config.min_val_clips} ({by_split['train']} clips to train on; {counts}). Raise select.val_fraction "
            f"({config.val_fraction:g}; whole videos are drawn, so a few videos need a large one), or pin a file or a "
            "span of time in source.yaml: splits: [{file: …, start_s: …, end_s: …, split: val}]"
        )
    return ""


def _write(run: Run, judged: Judged, is_trained: bool) -> tuple[set[str], int]:
    """Append new verdicts. Of the selection to train on at least one row is appended unless it is the newest already.

    Returns:
        (clips whose verdict is new, how many rows were appended).
    """
    before = verdicts_of(run.root, judged.selection).select(["clip_id", "selection_id", "keep"])
    newest = {row["clip_id"]: row for row in as_rows(before, SelectionRow)}
    changed = [
        row
        for row in [*judged.rows, *_withdrawn(newest, judged)]
        if row["clip_id"] not in newest or newest[row["clip_id"]]["selection_id"] != row["selection_id"]
    ]
    again = is_trained and not changed and newest_selection(run.root) != judged.selection
    rows = judged.rows[:1] if again else changed  # one row appended again makes an earlier selection the newest
    if rows:
        attempts = _attempts(run)
        rows = [ok_row({"attempt": attempts.get(row["selection_id"], 0) + 1}, **row) for row in rows]
        block_id = content_id("selections", sorted((row["selection_id"], row["attempt"]) for row in rows))
        append_block(run.root, "selections", rows, block_id, lineage(run, "select", VERSION, judged.config))
    return {row["clip_id"] for row in changed if row["drop_reasons"] != [NOT_CURRENT]}, len(rows)


def _attempts(run: Run) -> dict[str, int]:
    """Selection id -> its newest attempt."""
    rows = read_table(run.root, "selections", ["selection_id", "attempt"])
    return dict(zip(rows["selection_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True))


def _withdrawn(newest: Mapping[str, SelectionRow], judged: Judged) -> list[SelectionColumns]:
    """Verdicts that drop the clips that were kept and that the clips step no longer makes."""
    current = {row["clip_id"] for row in judged.rows}
    verdict: Verdict = {"keep": False, "drop_reasons": [NOT_CURRENT], "bucket": "", "split": ""}
    return [
        {
            "selection_id": content_id(clip_id, judged.selection, VERSION, verdict),
            "clip_id": clip_id,
            "subset": judged.name,
            **verdict,
        }
        for clip_id, row in newest.items()
        if row["keep"] and clip_id not in current
    ]
