"""Which clips to train on: limits on their scores, one of each group of duplicates, quotas, a bucket and a split each.

Only rows are read and written here, so another threshold costs seconds and recomputes no score.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import pyarrow.compute as pc

from tasks.running.run import Run, lineage, params_hash
from tasks.running.step import step
from tasks.scoring.newest import score_arrays
from tasks.selecting.duplicates import groups_by_method
from tasks.selecting.judging import CLIP_COLUMNS, VERSION, Judged, Material, Verdict, clip_figures, judge
from tasks.selecting.select_config import SelectConfig, SelectResult
from tasks.selecting.splits import SPLITS, splits_of
from tasks.sources.card import SplitPin, cards_of, read_card
from tasks.tables.appending import append_block
from tasks.tables.current import current_clips
from tasks.tables.delta import content_id, ok_row, read_table, table_version
from tasks.tables.manifest import newest_selection, verdicts_of
from tasks.tables.rows import ClipRow, SelectionColumns, SelectionRow, as_rows
from tasks.tables.schemas import CLIP_FIGURES

# Copies link videos in the draw of splits. Clips that are merely alike to a model would in time link all of them.
LINKING = ("exact", "phash")


@step
def select(run: Run, config: SelectConfig) -> SelectResult:
    """Judge every current clip; a row in `selections` for each whose verdict is new.

    Each of nested sets is a selection of its own; that of `train_set` is the newest.

    Raises:
        ValueError: there is no clip, or a threshold names a score, or a share a source, that no clip has. Too few
            clips to train on are no error here: `shortage` and the note say so, and a flow that goes on to training
            stops.
    """
    started = time.time()
    clips = as_rows(current_clips(run.root, CLIP_COLUMNS, config.clips), ClipRow)
    if not clips:
        raise ValueError(_no_clips(run))
    material = _material(run, clips, config)
    judged: list[Judged] = []
    for nested in config.nested():
        judged.append(judge(material, nested, params_hash(nested), judged[-1] if judged else None))
    trained = judged[config.place_to_train]
    changed: set[str] = set()
    num_rows = 0
    for one in sorted(judged, key=lambda one: one is trained):
        new, count = _write(run, one, is_trained=one is trained)
        changed |= new
        num_rows += count
    shortage = _shortage(trained.rows, config)
    return SelectResult(
        step="select",
        num_in=len(clips),
        num_done=len(clips) - len(changed),
        num_ok=len(changed),
        rows={"selections": num_rows} if num_rows else {},
        versions={"selections": table_version(run.root, "selections")},
        selection=trained.selection,
        sets={one.name: one.selection for one in judged if one.name},
        thresholds=trained.limits,
        shortage=shortage,
        errors=dict(Counter(reason for row in trained.rows for reason in row["drop_reasons"])),
        note=_note(judged, trained) + (f"; {shortage}" if shortage else ""),
        busy_s=time.time() - started,
    )


def _material(run: Run, clips: Sequence[ClipRow], config: SelectConfig) -> Material:
    """What is known of the clips."""
    clip_ids = [clip["clip_id"] for clip in clips]
    place = {clip_id: at for at, clip_id in enumerate(clip_ids)}
    scores = score_arrays(run.root, clip_ids) | clip_figures(clips)
    _check_known(config, scores)
    # Groups are those of the last search; clips that came since are in none yet, and those that are gone do not count.
    groups = {
        method: [members for group in found if len(members := [place[one] for one in group if one in place]) > 1]
        for method, found in groups_by_method(run.root, config.clips).items()
    }
    copies = [group for method in LINKING for group in groups[method]]
    splits = splits_of(clips, copies, _pins(run, clips), config.val_fraction, config.test_fraction)
    return Material(clips, scores, groups, splits, _sources(run, clips, config))


def check_limited(run: Run, config: SelectConfig, computed: Collection[str]) -> None:
    """Refuse limits on a score that no clip can have, before any video is cut.

    Args:
        run: where scores of earlier runs are.
        config: the limits.
        computed: scores that the run itself computes.

    Raises:
        ValueError: a limit is on none of them, on no figure of the clip, and on no score of earlier runs.
    """
    known = {*CLIP_FIGURES, *computed}
    if not known.issuperset(config.limited):
        known.update(read_table(run.root, "scores", ["scorer"])["scorer"].unique().to_pylist())
    _check_known(config, known)


def _check_known(config: SelectConfig, scores: Collection[str]) -> None:
    """Refuse limits on a score that no clip has."""
    if unknown := [name for name in config.limited if name not in scores]:
        by = f"the preset {config.preset} or select.thresholds" if config.preset else "select.thresholds"
        raise ValueError(
            f"no clip has a score {unknown}, which {by} limits (there are {', '.join(sorted(scores))}): correct the "
            "name, have it computed by the scores step (section scores), or lift the limit with {}, as in "
            f"select.thresholds.{unknown[0]}={{}}"
        )


def _sources(run: Run, clips: Sequence[ClipRow], config: SelectConfig) -> list[str]:
    """The source of each clip's video.

    Raises:
        ValueError: a share is given to a source that no clip comes from.
    """
    columns = read_table(run.root, "videos", ["video_id", "source"])
    source = dict(zip(*(columns[name].to_pylist() for name in ("video_id", "source")), strict=True))
    sources = [source.get(clip["video_id"]) or "" for clip in clips]
    if unknown := sorted(set(config.sources) - set(sources)):
        raise ValueError(
            f"no clip comes from a source {unknown}, which select.sources gives a share: there are "
            f"{sorted(set(sources))} (the name of each is that of its folder, or stands in its source.yaml)"
        )
    return sources


def _note(judged: Sequence[Judged], trained: Judged) -> str:
    """What was kept, for people."""
    kept = Counter(row["split"] for row in trained.rows if row["keep"])
    splits = ", ".join(f"{split} {kept[split]}" for split in SPLITS if kept[split])
    note = f"{kept.total()} of {len(trained.rows)} clips kept ({splits})"
    if trained.name:
        note += f" in set {trained.name}; " + ", ".join(f"{one.name} {one.kept.sum()}" for one in judged)
    for scorer, limits in trained.config.rules().thresholds.items():
        if limits.min_percentile is not None or limits.max_percentile is not None:
            bounds = trained.limits[scorer]
            low, high = ("…" if bound is None else f"{bound:.4g}" for bound in (bounds.min, bounds.max))
            note += f"; {scorer} from {low} to {high}"
    return note


def _no_clips(run: Run) -> str:
    """Why there is nothing to select from."""
    videos = read_table(run.root, "videos", ["error_type"])["error_type"].to_pylist()
    if not videos:
        return f"there are no videos in {run.root}: ingest some and cut them first (pyramid curate --source …)"
    why = ", ".join(f"{kind or 'ok'} {count}" for kind, count in Counter(videos).most_common())
    return f"none of the {len(videos)} videos in {run.root} gave a clip ({why}): pyramid manifest show videos says more"


def _pins(run: Run, clips: Sequence[ClipRow]) -> dict[str, list[SplitPin]]:
    """video id -> split pins of all its files, from the source.yaml that described each at ingest."""
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
                f"{uri} is gone, which described videos when they were ingested: their splits may be pinned there. "
                "Put it back"
            ) from None
    pins: dict[str, list[SplitPin]] = {}
    for uri, row in described:
        found = pins.setdefault(row["video_id"], [])
        found += [pin for pin in cards[uri].pins_of(row["path"]) if pin not in found]
    return {video_id: found for video_id, found in pins.items() if found}


def _shortage(verdicts: Sequence[SelectionColumns], config: SelectConfig) -> str:
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


def _write(run: Run, judged: Judged, is_trained: bool) -> tuple[set[str], int]:
    """Append verdicts that are new, and for the selection to train on whatever makes it the newest.

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
    rows = judged.rows[:1] if again else changed  # one row again makes an earlier selection the newest
    if rows:
        attempts = _attempts(run)
        rows = [ok_row({"attempt": attempts.get(row["selection_id"], 0) + 1}, **row) for row in rows]
        block_id = content_id("selections", sorted((row["selection_id"], row["attempt"]) for row in rows))
        append_block(run.root, "selections", rows, block_id, lineage(run, "select", VERSION, judged.config))
    return {row["clip_id"] for row in changed if row["drop_reasons"] != ["not_current"]}, len(rows)


def _attempts(run: Run) -> dict[str, int]:
    """selection id -> attempts so far."""
    rows = read_table(run.root, "selections", ["selection_id", "attempt"])
    return dict(zip(rows["selection_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True))


def _withdrawn(newest: Mapping[str, SelectionRow], judged: Judged) -> list[SelectionColumns]:
    """Verdicts on clips that were kept and are no longer made by the clips step."""
    current = {row["clip_id"] for row in judged.rows}
    verdict: Verdict = {"keep": False, "drop_reasons": ["not_current"], "bucket": "", "split": ""}
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
