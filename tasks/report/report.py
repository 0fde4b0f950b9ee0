"""Step report: one HTML page about all tables, self-contained, readable from disk without a network."""

import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from pydantic import Field

from pyramid_model.config import Config
from tasks.inspecting.table_stats import compact, file_size, labels
from tasks.report import models as report_models
from tasks.report import run as report_data
from tasks.report.clips import FileState, Listing, file_states, is_unchanged, listing, preview_clips, script_json
from tasks.report.curation import Curation, bucket_lines, read_curation, set_lines, split_lines
from tasks.report.duplicates import MAX_MEMBERS, read_duplicates
from tasks.report.errors import error_lines
from tasks.report.figures import pipeline_picture
from tasks.report.funnel import accounts, funnel, largest, read_intake
from tasks.report.media import MediaBudget
from tasks.report.selection import (
    label_figures,
    newest_select_result,
    rule_examples,
    score_figures,
    thresholds_of,
)
from tasks.report.sources import MAX_FILES, MAX_SOURCES, sources
from tasks.running.run import Run, StepResult, code_version, params_hash, report_progress
from tasks.running.step import step
from tasks.tables import storage
from tasks.tables.delta import table_version
from tasks.tables.manifest import overview
from tasks.tables.plain_text import visible
from tasks.tables.schemas import SCHEMAS

if TYPE_CHECKING:
    from jinja2 import Environment

VERSION = "6"
TEXT_BYTES = 80_000  # for style, script and sections without rows
TEMPLATES = Path(__file__).parent / "templates"
FACTS = re.compile(rb'<script type="application/json" id="made-from">(.*?)</script>', re.DOTALL)


class ReportConfig(Config):
    """Content of the report page."""

    title: str = Field(default="Pyramid run", description="heading of the page")
    max_media: int = Field(
        default=120, ge=0, description="most clips with a preview; also the limit for generated clips"
    )
    max_listed: int = Field(default=10_000, ge=0, description="most clips in the search of the page")
    max_bytes: int = Field(
        default=15_000_000, ge=250_000, description="most bytes of the page; videos that do not fit are left out"
    )


class MadeFrom(TypedDict):
    """Table versions, settings and clip files that a page was made from; the page contains them as JSON."""

    versions: dict[str, int]
    params_hash: str
    report_version: str
    files: NotRequired[dict[str, FileState]]


class ReportResult(StepResult):
    """Result of the report step."""

    uri: str = Field(description="path of the page")


@step
def report(run: Run, config: ReportConfig) -> ReportResult:
    """Write `<root>/report.html`, unless the existing page was made from the same versions, clip files and settings."""
    uri = storage.join(run.root, "report.html")
    versions = {table: version for table in SCHEMAS if (version := table_version(run.root, table)) >= 0}
    made_from: MadeFrom = {"versions": versions, "params_hash": params_hash(config), "report_version": VERSION}
    before = page_facts(uri)
    # The page lists its own clips, so their files are checked without reading a table.
    if before and before == {**made_from, "files": (files := before.get("files", {}))} and is_unchanged(files):
        return ReportResult(step="report", num_in=1, num_done=1, note="nothing new", uri=uri)
    report_progress("report", 0, 1)
    page = render(run.root, config, made_from)
    storage.write_bytes(uri, page)
    report_progress("report", 1, 1)
    return ReportResult(
        step="report",
        num_in=1,
        num_ok=1,
        versions=versions,
        uri=uri,
        note=f"report.html, {file_size(len(page))}",
    )


def page_facts(uri: str) -> MadeFrom | None:
    """What an existing page was made from; None if the page is missing, or was written by another program."""
    try:
        match = FACTS.search(storage.read_bytes(uri))
        return json.loads(match[1]) if match else None
    except (FileNotFoundError, ValueError):
        return None


def render(root: str, config: ReportConfig, made_from: MadeFrom) -> bytes:
    """The page as HTML. The byte budget goes to generated videos, then to evaluations, then to clips."""
    curation = read_curation(root)
    records = report_data.step_records(root)
    facts, clip_listing, files = curation_facts(root, config, curation, records)
    # A tenth and TEXT_BYTES are for figures and text, including style and script.
    budget = MediaBudget(config.max_bytes * 9 // 10 - len(clip_listing.text.encode()) - TEXT_BYTES)
    generations, num_generations = report_models.generation_cards(root, budget, config.max_media)
    evaluations = report_models.evaluations(root, budget)
    damage = {clip_id: damage for clip_id, (_, _, damage) in files.items() if damage}
    thumbnails = budget.thumbnails({clip_id: uri for clip_id, (uri, _, damage) in files.items() if not damage})
    errors = error_lines(root)
    tables = overview(root)
    num_failed = sum(line.count for line in errors if line.status == "failed")
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            facts,
            listing=clip_listing,
            config=config,
            root=root,
            made_from=script_json({**made_from, "files": files}),
            style=(TEMPLATES / "report.css").read_text(),
            script=(TEMPLATES / "report.js").read_text(),
            written=datetime.now(UTC),
            code_version=code_version(),
            tables=tables,
            tiles=report_data.tiles(root, curation, num_failed),
            pipeline=pipeline_picture(report_data.pipeline_nodes(root, tables, curation, records)),
            steps=report_data.step_lines(records),
            thumbnails=thumbnails,
            thumbnails_json=script_json(
                {
                    "thumbnails": {name: video for name, (video, _) in thumbnails.items()},
                    "stills": {name: picture for name, (_, picture) in thumbnails.items()},
                    "damage": damage,
                }
            ),
            damage=damage,
            damaged=Counter(damage.values()),
            errors=errors,
            text=report_models.text_facts(root, records),
            trainings=report_models.trainings(root),
            evaluations=evaluations,
            generations=generations,
            num_generations=num_generations,
            budget=budget,
        )
    )
    return page.encode()


def curation_facts(
    root: str, config: ReportConfig, curation: Curation, records: report_data.Records
) -> tuple[dict[str, object], Listing, dict[str, FileState]]:
    """Values for the template about clips and their selection, by name; the listing; states of the files of clips."""
    result = newest_select_result(curation, records)
    thresholds = thresholds_of(result)
    duplicates = read_duplicates(root, curation)
    examples = rule_examples(curation, thresholds, duplicates)
    groups = [[member.clip["clip_id"] for member in group.members[:MAX_MEMBERS]] for group in duplicates.on_page]
    sides = [[clip.clip_id for clip in side] for example in examples for side in (example.dropped, example.kept)]
    previewed = preview_clips(curation, [*groups, *sides], config.max_media)
    label_by_clip = labels(root)
    intake = read_intake(root)
    facts = {
        "curation": curation,
        "funnel": funnel(intake, curation),
        "accounts": accounts(intake, curation),
        "sets": set_lines(root, curation, result.sets if result else {}),
        "splits": split_lines(curation),
        "buckets": bucket_lines(curation),
        "sources": sources(root, curation),
        "score_figures": score_figures(curation, thresholds),
        "label_figures": label_figures(curation, label_by_clip),
        "examples": examples,
        "duplicates": duplicates,
    }
    clip_listing = listing(curation, previewed, label_by_clip, config.max_listed, config.max_bytes // 2)
    return facts, clip_listing, file_states(curation, previewed)


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number_text, size=file_size, short=lambda text: text[:8], length_s=report_data.length, largest=largest
    )
    environment.globals.update(max_sources=MAX_SOURCES, max_files=MAX_FILES, max_members=MAX_MEMBERS)
    return environment


def _without_controls(value: object) -> object:
    """A value of the page, with control characters of its text written as `\\x1b`; other values are unchanged."""
    from markupsafe import Markup

    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def number_text(value: object) -> str:
    """A number as compact text, "–" for None; other values as `str` gives them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return compact(value)
