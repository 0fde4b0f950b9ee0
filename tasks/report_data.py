"""What the report says about sources, clips, scores and errors: read from the tables, shaped for the page."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from tasks import storage
from tasks.clips import current_clip_ids
from tasks.manifest import clips_with_scores, table_facts, verdicts_of
from tasks.report_figures import Node, Threshold, histogram_figure
from tasks.report_media import MediaBudget
from tasks.schemas import COMMON, SCHEMAS
from tasks.source_card import SourceCard, read_card
from tasks.step import StepResult
from tasks.table_stats import compact, histograms
from tasks.tables import read_table

MAX_RUNS = 50  # newest runs whose step records are read

LABELS = {
    "sources": "source files",
    "videos": "videos",
    "clips": "clips",
    "scores": "scores",
    "selections": "selected",
    "captions": "captions",
    "text_features": "text features",
    "vae": "VAE",
    "latents": "latents",
    "dit": "DiT",
    "evaluations": "evaluations",
    "generations": "generated",
}


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page."""

    label: str
    value: str
    mood: str = ""  # "", "ok", "warn" or "bad"


def tiles(root: str, num_kept: int, num_judged: int) -> list[Tile]:
    """The figures that sum a run up, as far as it has come."""
    ok = pc.field("status") == "ok"
    seconds = read_table(root, "videos", ["duration_s"], where=ok)["duration_s"].drop_null().to_pylist()
    found = [Tile("footage", f"{sum(seconds):.0f} s" if sum(seconds) < 600 else f"{sum(seconds) / 3600:.1f} h")]
    if num_judged:
        found.append(Tile("clips kept", f"{num_kept} of {num_judged}"))
    for row in newest(read_table(root, "evaluations", where=ok).to_pylist())[:1]:
        metrics = loads(row["metrics"])
        for name, label, unit in (("vae_psnr", "held-out PSNR of the VAE", " dB"), ("val_loss", "validation loss", "")):
            if isinstance(value := metrics.get(name), int | float):
                untrained = metrics.get(f"{name}_untrained")
                beside = f", untrained {compact(untrained)}{unit}" if isinstance(untrained, int | float) else ""
                found.append(Tile(label + beside, compact(value) + unit))
        found.append(Tile("newest verdict of the gate", *(("passed", "ok") if row["passed"] else ("failed", "bad"))))
    num_bad = sum(line.count for line in error_lines(root) if line.status == "failed")
    return [*found, Tile("failed rows", compact(num_bad), "bad" if num_bad else "")]


Records = list[tuple[str, StepResult]]


def step_records(root: str) -> Records:
    """(run_id, result) of the newest runs, in the order of time, from `<root>/runs/<run_id>/<ms>-<step>.json`."""
    fs, path = storage.filesystem(storage.join(root, "runs"))
    folders = sorted(fs.ls(path, detail=False))[-MAX_RUNS:] if fs.exists(path) else []
    return [
        (folder.rsplit("/", 1)[-1], StepResult.model_validate_json(fs.cat_file(name)))
        for folder in folders
        for name in sorted(fs.glob(f"{folder}/*.json"))
    ]


def step_lines(records: Records) -> list[StepResult]:
    """The last run of each step that had work to do (or the last one, if none had), in the order of first runs."""
    by_step: dict[str, dict[str, list[StepResult]]] = defaultdict(lambda: defaultdict(list))
    for run_id, result in records:
        by_step[result.step][run_id].append(result)
    lines = []
    for step, runs in by_step.items():
        if step != "report":
            working = [found for found in runs.values() if any(one.num_new for one in found)] or list(runs.values())
            lines.append(together(working[-1]))
    return lines


def together(results: Sequence[StepResult]) -> StepResult:
    """Several calls of a step as one: counts and times added, the last one's words."""
    rows = sum((Counter(one.rows) for one in results), Counter())
    summed = ("num_in", "num_done", "num_ok", "num_failed", "num_skipped", "wall_s", "busy_s")
    totals = {name: sum(getattr(one, name) for one in results) for name in summed}
    words = {"step": results[-1].step, "note": results[-1].note}
    return StepResult.model_validate(totals | words | {"rows": dict(rows)})


def pipeline_nodes(root: str) -> list[Node]:
    """Counts for the pipeline picture."""
    nodes = []
    kinds = read_table(root, "models", ["kind", "status"]).to_pylist()
    for name, label in LABELS.items():
        if name in ("vae", "dit"):
            statuses = Counter(row["status"] for row in kinds if row["kind"] == name)
            count = statuses["ok"] if statuses else None
        else:
            facts = table_facts(root, name)
            statuses = facts.statuses if facts else Counter()
            count = statuses["ok"] if facts else None
            count = num_kept(root) if name == "selections" and facts else count
        nodes.append(Node(name, label, count, *_detail(root, name, statuses)))
    return nodes


def num_kept(root: str) -> int:
    """Clips that the newest selection keeps."""
    return sum(bool(keep) for keep in verdicts_of(root)["keep"].to_pylist())


def _detail(root: str, name: str, statuses: Counter[str]) -> tuple[str, str]:
    """Small print of a box, and its mood."""
    if name == "selections" and statuses["ok"]:
        dropped = verdicts_of(root).num_rows - num_kept(root)
        return (f"{dropped} dropped", "") if dropped else ("", "")
    if statuses["failed"]:
        return f"{statuses['failed']} failed", "bad"
    if statuses["skipped"]:
        return f"{statuses['skipped']} skipped", "warn"
    if name == "evaluations" and statuses["ok"]:
        passed = Counter(read_table(root, "evaluations", ["passed"])["passed"].to_pylist())
        return f"{passed[True]} passed", "" if passed[True] else "warn"
    return "", ""


@dataclass(frozen=True)
class Source:
    """Files that share a name and, if they have one, a source.yaml."""

    name: str
    attribution: str
    url: str
    files: list[dict[str, Any]] = field(default_factory=list)


def sources(root: str) -> list[Source]:
    """Source files by source, each with what decoding found and what its source.yaml says of it."""
    own = [name for name in SCHEMAS["videos"].names if name not in COMMON and name not in ("uri", "path", "license")]
    videos = {row["video_id"]: row for row in read_table(root, "videos", [*own, "status", "error"]).to_pylist()}
    blank = dict.fromkeys([*own, "status", "error"])
    found: dict[tuple[str, str], Source] = {}
    cards = {"": SourceCard(name="")}
    for row in read_table(root, "sources").to_pylist():
        uri = row["card"] or ""
        if uri not in cards:
            cards[uri] = readable_card(uri)
        card, key = cards[uri], (row["source"] or "(no name)", uri)
        # A link must not run anything, whatever a source.yaml says.
        url = card.url if card.url.startswith(("https://", "http://")) else ""
        source = found.setdefault(key, Source(key[0], card.attribution, url))
        video = videos.get(row["video_id"], blank)
        status = video["status"] or ("waiting" if row["status"] == "ok" else row["status"])
        facts = {"status": status, "error": video["error"] or row["error"], "card": card.file(row["path"])}
        source.files.append(video | {name: row[name] for name in ("path", "license")} | facts)
    return list(found.values())


def readable_card(uri: str) -> SourceCard:
    """The source.yaml at `uri`; an empty one when it is not there any more or not right any more."""
    try:
        return read_card(uri)
    except (OSError, ValueError):
        return SourceCard(name="")


@dataclass(frozen=True)
class ClipCard:
    """A clip with everything known of it."""

    row: dict[str, Any]
    video: str  # data URI, "" when left out
    damage: str  # "", "missing" or "truncated"
    scores: list[tuple[str, float]]
    path: str

    @property
    def groups(self) -> list[str]:
        """Words by which the page can pick clips: kept or dropped, the split, and each drop reason."""
        kept = {True: ["kept"], False: ["dropped"], None: []}[self.row["keep"]]
        split = [self.row["split"]] if self.row["split"] and self.row["keep"] else []
        return kept + split + [reason.replace(" ", "-") for reason in self.row["drop_reasons"] or []]


@dataclass(frozen=True)
class ShownClips:
    """The clips that go on the page, and what is wrong with their files."""

    rows: list[dict[str, Any]]
    scorers: list[str]
    num_clips: int  # in all
    damage: dict[str, str]  # by clip id: missing | truncated


def shown_clips(root: str, max_media: int) -> ShownClips:
    """Kept clips, then dropped ones (a quarter of the room at least is theirs); only their files are looked at."""
    rows = clips_with_scores(root)
    own = {*SCHEMAS["clips"].names, "keep", "drop_reasons", "bucket", "split", "caption"}
    scorers = [name for name in rows.column_names if name not in own]
    current = set(current_clip_ids(root).to_pylist())
    clips = [row for row in rows.to_pylist() if row["status"] == "ok" and row["clip_id"] in current]
    ordered = _kept_then_dropped(clips)
    num_dropped = sum(row["keep"] is False for row in clips)
    room_for_dropped = min(num_dropped, max_media // 4)
    kept = ordered[: len(clips) - num_dropped][: max_media - room_for_dropped]
    shown = kept + ordered[len(clips) - num_dropped :][: max_media - len(kept)]
    damage = {row["clip_id"]: found for row in shown if (found := file_damage(row["uri"], row["size_bytes"]))}
    return ShownClips(shown, scorers, len(clips), damage)


def file_damage(uri: str, size_bytes: int | None) -> str:
    """What is wrong with a file by its size alone: "", "missing" (or out of reach) or "truncated" (another size)."""
    try:
        fs, path = storage.filesystem(uri)
        size = fs.info(path)["size"]
    except OSError:
        return "missing"
    return "" if size_bytes in (None, size) else "truncated"


def clip_cards(root: str, shown: ShownClips, budget: MediaBudget) -> list[ClipCard]:
    """Each clip with its video, unless the file is damaged."""
    paths = {row["video_id"]: row["path"] for row in read_table(root, "sources", ["video_id", "path"]).to_pylist()}
    return [
        ClipCard(
            row,
            "" if row["clip_id"] in shown.damage else budget.video(row["uri"]),
            shown.damage.get(row["clip_id"], ""),
            [(name, row[name]) for name in shown.scorers if row[name] is not None],
            paths.get(row["video_id"], ""),
        )
        for row in shown.rows
    ]


def _kept_then_dropped(clips: Sequence[dict]) -> list[dict]:
    """Clips that are kept or not yet judged, then the dropped ones, reasons taking turns."""
    by_reason: dict[str, list[dict]] = defaultdict(list)
    for row in clips:
        if row["keep"] is False:
            by_reason[(row["drop_reasons"] or [""])[0]].append(row)
    turns = itertools.zip_longest(*by_reason.values())
    return [row for row in clips if row["keep"] is not False] + [row for turn in turns for row in turn if row]


@dataclass(frozen=True)
class ScoreFigure:
    """Histogram of one scorer."""

    name: str
    svg: str
    mean: str
    count: int


def score_figures(root: str, limits: dict[str, list[Threshold]]) -> list[ScoreFigure]:
    """A histogram a scorer, with the limits of the selection."""
    return [
        ScoreFigure(one.name, histogram_figure(one, limits.get(one.name, ())), compact(one.mean), sum(one.counts))
        for one in histograms(root, "scores")
    ]


@dataclass(frozen=True)
class ErrorLine:
    """Rows of a table that failed or were skipped for one reason."""

    table: str
    status: str
    error_type: str
    count: int
    example: str


def error_lines(root: str) -> list[ErrorLine]:
    """Every kind of failure in every table, the most frequent first."""
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for table in SCHEMAS:
        bad = read_table(root, table, ["status", "error_type", "error"], where=pc.field("status") != "ok")
        for row in bad.to_pylist():
            found[table, row["status"], row["error_type"]].append(row["error"])
    lines = [ErrorLine(*key, len(texts), texts[0]) for key, texts in found.items()]
    return sorted(lines, key=lambda line: -line.count)


def loads(text: str | None) -> Any:
    """A JSON column; empty when the row has none."""
    return json.loads(text) if text else {}


def newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, the last written first."""
    return sorted(rows, key=lambda row: row["created_at"], reverse=True)


def selection_limits(root: str, records: Records) -> dict[str, list[Threshold]]:
    """Thresholds of the newest selection by scorer, from the record of the step that made it."""
    made = verdicts_of(root)["params_hash"].unique().to_pylist()
    texts = [result.outputs["thresholds"] for _, result in records if result.outputs.get("selection") in made]
    sides = (("min", "above"), ("max", "below"))
    return {
        scorer: [Threshold(limits[side], keeps) for side, keeps in sides if limits.get(side) is not None]
        for scorer, limits in loads(texts[-1] if texts else None).items()
    }
