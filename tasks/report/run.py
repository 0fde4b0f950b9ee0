"""What the report says of a run as a whole: its figures, its steps, its place in the pipeline."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from tasks.encoding.text_features import TextFeaturesResult
from tasks.inspecting.table_stats import compact
from tasks.report.curation import Curation, total_s
from tasks.report.figures import Node
from tasks.running.run import StepResult, merged
from tasks.selecting.select_config import SelectResult
from tasks.tables import storage
from tasks.tables.delta import read_table
from tasks.tables.manifest import TableFacts
from tasks.tables.newest import newest_first

MAX_RUNS = 50  # newest runs whose step records are read

LABELS = {
    "sources": "source files",
    "videos": "videos",
    "clips": "clips",
    "scores": "scores",
    "duplicates": "duplicates",
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


def tiles(root: str, curation: Curation, num_failed: int) -> list[Tile]:
    """The figures that sum a run up, as far as it has come."""
    ok = pc.field("status") == "ok"
    seconds = read_table(root, "videos", ["duration_s"], where=ok)["duration_s"].drop_null().to_pylist()
    found = [Tile("footage", length(sum(seconds)))]
    if curation.num_judged:
        found.append(Tile("clips kept", f"{curation.num_kept:,} of {curation.num_judged:,}"))
        found.append(Tile("footage kept", length(total_s(curation.kept()))))
    for row in newest_first(read_table(root, "evaluations", where=ok)).slice(0, 1).to_pylist():
        metrics = loads(row["metrics"])
        for name, label, unit in (("vae_psnr", "held-out PSNR of the VAE", " dB"), ("val_loss", "validation loss", "")):
            if isinstance(value := metrics.get(name), int | float):
                untrained = metrics.get(f"{name}_untrained")
                beside = f", untrained {compact(untrained)}{unit}" if isinstance(untrained, int | float) else ""
                found.append(Tile(label + beside, compact(value) + unit))
        found.append(Tile("newest verdict of the gate", *(("passed", "ok") if row["passed"] else ("failed", "bad"))))
    return [*found, Tile("failed rows", compact(num_failed), "bad" if num_failed else "")]


def length(seconds: float) -> str:
    """A length of footage for people."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


Records = list[tuple[str, StepResult]]
# Steps of whose results the report says more than the counts; of all others it reads the counts alone.
RESULTS: dict[str, type[StepResult]] = {"select": SelectResult, "text_features": TextFeaturesResult}


def step_records(root: str) -> Records:
    """(run_id, result) of the newest runs, in the order of time, from `<root>/runs/<run_id>/<ms>-<step>.json`."""
    fs, path = storage.filesystem(storage.join(root, "runs"))
    folders = sorted(fs.ls(path, detail=False))[-MAX_RUNS:] if fs.exists(path) else []
    return [
        (folder.rsplit("/", 1)[-1], _read_result(fs.cat_file(name)))
        for folder in folders
        for name in sorted(fs.glob(f"{folder}/*.json"))
    ]


def _read_result(record: str | bytes) -> StepResult:
    """The result that a record holds."""
    counts = StepResult.model_validate_json(record, extra="ignore")
    return RESULTS[counts.step].model_validate_json(record) if counts.step in RESULTS else counts


def step_lines(records: Records) -> list[StepResult]:
    """The last run of each step that had work to do (or the last one, if none had), in the order of first runs."""
    by_step: dict[str, dict[str, list[StepResult]]] = defaultdict(lambda: defaultdict(list))
    for run_id, result in records:
        by_step[result.step][run_id].append(result)
    lines = []
    for step, runs in by_step.items():
        if step != "report":
            working = [found for found in runs.values() if any(one.num_new for one in found)] or list(runs.values())
            lines.append(merged(working[-1], working[-1][-1].note))
    return lines


def pipeline_nodes(root: str, tables: Sequence[TableFacts], curation: Curation, records: Records) -> list[Node]:
    """Counts for the pipeline picture; 0 for a step that ran and found nothing."""
    ran = {result.step for _, result in records}
    facts = {one.table: one for one in tables}
    models = Counter((row["kind"], row["status"]) for row in read_table(root, "models", ["kind", "status"]).to_pylist())
    nodes = []
    for name, label in LABELS.items():
        if name in ("vae", "dit"):
            statuses = Counter({status: count for (kind, status), count in models.items() if kind == name})
        else:
            statuses = facts[name].statuses if name in facts else Counter()
        count = statuses["ok"] if statuses or name in facts or name in ran else None
        if name == "selections" and count:
            nodes.append(Node(name, label, curation.num_kept, *_dropped(curation)))
        else:
            nodes.append(Node(name, label, count, *_detail(root, name, statuses)))
    return nodes


def _dropped(curation: Curation) -> tuple[str, str]:
    dropped = curation.num_judged - curation.num_kept
    return (f"{dropped:,} dropped", "") if dropped else ("", "")


def _detail(root: str, name: str, statuses: Counter[str]) -> tuple[str, str]:
    """Small print of a box, and its mood."""
    if statuses["failed"]:
        return f"{statuses['failed']:,} failed", "bad"
    if statuses["skipped"]:
        return f"{statuses['skipped']:,} skipped", "warn"
    if name == "evaluations" and statuses["ok"]:
        passed = Counter(read_table(root, "evaluations", ["passed"])["passed"].to_pylist())
        return f"{passed[True]:,} passed", "" if passed[True] else "warn"
    return "", ""


def loads(text: str | None) -> Any:
    """A JSON column; empty when the row has none."""
    return json.loads(text) if text else {}
