"""The sections of the report on a run as a whole: key figures, steps, and the picture of the pipeline."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from tasks.inspecting.table_stats import compact
from tasks.report.curation import Curation, total_s
from tasks.report.figures import Node
from tasks.running.run import StepResult, merged
from tasks.running.steps import read_result
from tasks.tables import storage
from tasks.tables.delta import read_table
from tasks.tables.manifest import TableFacts
from tasks.tables.newest import newest_row
from tasks.tables.rows import EvaluationRow

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
    """The key figures of a root, from the steps that have run."""
    ok = pc.field("status") == "ok"
    seconds = read_table(root, "videos", ["duration_s"], where=ok)["duration_s"].drop_null().to_pylist()
    figures = [Tile("footage", length(sum(seconds)))]
    if curation.num_judged:
        figures.append(Tile("clips kept", f"{curation.num_kept:,} of {curation.num_judged:,}"))
        figures.append(Tile("footage kept", length(total_s(curation.kept_clips()))))
    if row := newest_row(read_table(root, "evaluations", where=ok), EvaluationRow):
        metrics = loads(row["metrics"])
        for name, label, unit in (("vae_psnr", "held-out PSNR of the VAE", " dB"), ("val_loss", "validation loss", "")):
            if isinstance(value := metrics.get(name), int | float):
                figures.append(Tile(label + _baseline(metrics, name, unit), compact(value) + unit))
        figures.append(Tile("newest verdict of the gate", *(("passed", "ok") if row["passed"] else ("failed", "bad"))))
    return [*figures, Tile("failed rows", compact(num_failed), "bad" if num_failed else "")]


def _baseline(metrics: Mapping[str, object], name: str, unit: str) -> str:
    """The figure of the linear codec, else of the untrained model, as text that follows a label; "" without both."""
    for other, label in (("linear", "linear codec"), ("untrained", "untrained")):
        if isinstance(figure := metrics.get(f"{name}_{other}"), int | float):
            return f", {label} {compact(figure)}{unit}"
    return ""


def length(seconds: float) -> str:
    """A length of footage as text, in s, min or h."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


Records = list[tuple[str, StepResult]]


def step_records(root: str) -> Records:
    """(run_id, result) of the newest runs, the oldest first, from `<root>/runs/<run_id>/<ms>-<step>.json`."""
    fs, path = storage.filesystem(storage.join(root, "runs"))
    folders = sorted(fs.ls(path, detail=False))[-MAX_RUNS:] if fs.exists(path) else []
    return [
        (folder.rsplit("/", 1)[-1], read_result(fs.cat_file(name)))
        for folder in folders
        for name in sorted(fs.glob(f"{folder}/*.json"))
    ]


def step_lines(records: Records) -> list[StepResult]:
    """Result of each step, from its last run that computed anything, else from its last run.

    Steps are in the order in which they first ran.
    """
    by_step: dict[str, dict[str, list[StepResult]]] = defaultdict(lambda: defaultdict(list))
    for run_id, result in records:
        by_step[result.step][run_id].append(result)
    lines = []
    for step, runs in by_step.items():
        if step != "report":
            all_runs = list(runs.values())
            working = [results for results in all_runs if any(result.num_new for result in results)] or all_runs
            lines.append(merged(working[-1], working[-1][-1].note))
    return lines


def pipeline_nodes(root: str, tables: Sequence[TableFacts], curation: Curation, records: Records) -> list[Node]:
    """Boxes of the pipeline picture with their counts; 0 for a step that ran without results, None before it ran."""
    ran = {result.step for _, result in records}
    by_table = {facts.table: facts for facts in tables}
    models = Counter((row["kind"], row["status"]) for row in read_table(root, "models", ["kind", "status"]).to_pylist())
    nodes = []
    for name, label in LABELS.items():
        if name in ("vae", "dit"):
            statuses = Counter({status: count for (kind, status), count in models.items() if kind == name})
        else:
            statuses = by_table[name].statuses if name in by_table else Counter()
        count = statuses["ok"] if statuses or name in by_table or name in ran else None
        if name == "selections" and count:
            nodes.append(Node(name, label, curation.num_kept, *_dropped(curation)))
        else:
            nodes.append(Node(name, label, count, *_detail(root, name, statuses)))
    return nodes


def _dropped(curation: Curation) -> tuple[str, str]:
    dropped = curation.num_judged - curation.num_kept
    return (f"{dropped:,} dropped", "") if dropped else ("", "")


def _detail(root: str, name: str, statuses: Counter[str]) -> tuple[str, str]:
    """(detail, mood) of a box."""
    if statuses["failed"]:
        return f"{statuses['failed']:,} failed", "bad"
    if statuses["skipped"]:
        return f"{statuses['skipped']:,} skipped", "warn"
    if name == "evaluations" and statuses["ok"]:
        passed = Counter(read_table(root, "evaluations", ["passed"])["passed"].to_pylist())
        return f"{passed[True]:,} passed", "" if passed[True] else "warn"
    return "", ""


def loads(text: str | None) -> Any:
    """Value of a JSON column; an empty dict when the column is empty or null."""
    return json.loads(text) if text else {}
