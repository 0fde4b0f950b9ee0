"""Step report: everything in the tables on one HTML page, self-contained, readable from disk without a network."""

import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from pyramid_model.config import Config
from tasks import report_data, report_models, storage
from tasks.manifest import overview
from tasks.report_figures import pipeline_picture
from tasks.report_media import MediaBudget
from tasks.schemas import SCHEMAS
from tasks.step import Run, StepResult, code_version, params_hash, report_progress, step
from tasks.table_stats import compact, drop_reasons, file_size
from tasks.tables import table_version

VERSION = "2"
TEMPLATES = Path(__file__).parent / "templates"
FACTS = re.compile(rb'<script type="application/json" id="made-from">(.*?)</script>', re.DOTALL)


class ReportConfig(Config):
    """What the page shows."""

    title: str = Field("Pyramid run", description="heading of the page")
    max_media: int = Field(60, ge=0, description="clips shown at most; the same limit for generated ones")
    max_bytes: int = Field(15_000_000, ge=100_000, description="size of the page; videos that do not fit are left out")


@step
def report(run: Run, config: ReportConfig) -> StepResult:
    """Write `<root>/report.html`, unless the page there was made from the same versions, clip files and settings."""
    uri = storage.join(run.root, "report.html")
    versions = {table: version for table in SCHEMAS if (version := table_version(run.root, table)) >= 0}
    shown = report_data.shown_clips(run.root, config.max_media)
    made_from = {
        "versions": versions,
        "params_hash": params_hash(config),
        "report_version": VERSION,
        "damaged_clips": shown.damage,
    }
    if page_facts(uri) == made_from:
        return StepResult(step="report", num_in=1, num_done=1, note="nothing new", outputs={"report": uri})
    report_progress("report", 0, 1)
    page = render(run, config, made_from, shown)
    storage.write_bytes(uri, page)
    report_progress("report", 1, 1)
    return StepResult(
        step="report",
        num_in=1,
        num_ok=1,
        versions=versions,
        outputs={"report": uri},
        note=f"report.html, {file_size(len(page))}",
    )


def page_facts(uri: str) -> dict[str, Any] | None:
    """What an existing page was made from; None when there is none or it is not ours."""
    try:
        found = FACTS.search(storage.read_bytes(uri))
        return json.loads(found[1]) if found else None
    except (FileNotFoundError, ValueError):
        return None


def render(run: Run, config: ReportConfig, made_from: dict[str, Any], shown: report_data.ShownClips) -> bytes:
    """The page. Videos are taken in the order of their worth: generated, evaluated, then clips."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    root = run.root
    budget = MediaBudget(config.max_bytes * 9 // 10)  # the rest is text and figures
    generations, num_generations = report_models.generation_cards(root, budget, config.max_media)
    evaluations = report_models.evaluations(root, budget)
    clips = report_data.clip_cards(root, shown, budget)
    records = report_data.step_records(root)
    limits = report_data.selection_limits(root, records)
    reasons, num_kept, num_judged = drop_reasons(root)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=shown_number, size=file_size, short=lambda text: text[:8])
    page = environment.get_template("report.html.j2").render(
        config=config,
        root=root,
        made_from=json.dumps(made_from),
        style=(TEMPLATES / "report.css").read_text(),
        written=datetime.now(UTC),
        code_version=code_version(),
        tables=overview(root),
        tiles=report_data.tiles(root, num_kept, num_judged),
        pipeline=pipeline_picture(report_data.pipeline_nodes(root)),
        steps=report_data.step_lines(records),
        sources=report_data.sources(root),
        clips=clips,
        clip_groups=list(dict.fromkeys(name for card in clips for name in card.groups)),
        num_clips=shown.num_clips,
        damaged=Counter(shown.damage.values()),
        score_figures=report_data.score_figures(root, limits),
        reasons=reasons,
        num_kept=num_kept,
        num_judged=num_judged,
        errors=report_data.error_lines(root),
        text=report_models.text_facts(root, records),
        trainings=report_models.trainings(root),
        evaluations=evaluations,
        generations=generations,
        num_generations=num_generations,
        budget=budget,
    )
    return page.encode()


def shown_number(value: Any) -> str:
    """A figure for the page; texts and truth values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return compact(value)
