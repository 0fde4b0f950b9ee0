"""Results of a run as short Markdown pages with their pictures inside, which Prefect shows beside the run."""

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from tasks.inspecting.table_stats import compact
from tasks.report.curation import bucket_lines, read_curation, split_lines
from tasks.report.funnel import funnel, read_intake
from tasks.report.models import charts, checks_of
from tasks.report.run import length, step_records
from tasks.report.selection import ScoreFigure, newest_select_result, score_figures, thresholds_of
from tasks.selecting.splits import SPLITS
from tasks.tables import storage
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, newest_first
from tasks.tables.plain_text import Markdown, code_span, markdown
from tasks.tables.root_paths import inside
from tasks.tables.rows import EvaluationRow, GenerationRow, ModelRow, as_rows

if TYPE_CHECKING:
    import numpy as np

MAX_CLIPS, SHEET_COLUMNS = 24, 6
THUMB_H, THUMB_W = 72, 128
STRIP_FRAMES = 6
STYLE = """<style>
svg { background: #fff; font: 11px sans-serif } text { fill: #555 }
svg .limit { stroke: #d9622b; stroke-dasharray: 4 3 } .bar { fill: #3b7dd8 } .bar.dropped { fill: #c9d8ee }
.axis, .gridline { stroke: #ddd; fill: none }
.line { fill: none; stroke-width: 1.8 } .raw { stroke-width: .8; opacity: .35 }
.c1 { stroke: #3b7dd8 } .c2 { stroke: #d9622b } .dot.c1 { fill: #3b7dd8 } .dot.c2 { fill: #d9622b }
.end { text-anchor: end } .middle { text-anchor: middle }
</style>"""


def curation_page(root: str) -> str:
    """Counts of files and clips, drop reasons, splits, buckets, histograms of scores, and frames of kept clips."""
    curation, intake = read_curation(root), read_intake(root)
    thresholds = thresholds_of(newest_select_result(curation, step_records(root)))
    lines = (
        (line.label, line.count, f"-{line.lost}" if line.lost else "", line.reason) for line in funnel(intake, curation)
    )
    rules = ((rule.reason, rule.alone, rule.in_order, rule.only) for rule in curation.rules)
    splits = ((line.split, line.num_videos, line.num_clips, length(line.seconds)) for line in split_lines(curation))
    buckets = ((line.bucket, line.aspect, *line.splits.values()) for line in bucket_lines(curation))
    figures = [_score_section(figure) for figure in score_figures(curation, thresholds)]
    kept_clips = curation.kept_clips()
    uris = kept_clips["uri"].slice(0, MAX_CLIPS).to_pylist()
    sheet = picture("kept clips", sheet_uri([[frame] for uri in uris for frame in frames_of(uri, 1)], SHEET_COLUMNS))
    parts = [
        f"# {curation.num_kept} of {curation.num_judged} clips kept",
        table(("after", "remaining", "lost", "why"), lines),
        table(("dropped because", "clips", "not by a rule above", "no other reason"), rules) if curation.rules else "",
        table(("split", "videos", "clips", "length"), splits) if uris else "",
        table(("bucket", "aspect", *SPLITS), buckets) if uris else "",
    ]
    heading = f"## Kept clips ({len(uris)} of {kept_clips.num_rows})"
    return page([*parts, "## Scores", *figures, heading, sheet if uris else "none"])


def _score_section(score: ScoreFigure) -> str:
    limits = "".join(f"; {limit.words}: drops {limit.num_dropped}" for limit in score.limits)
    return f"**{markdown(score.name)}** (mean {score.mean}{limits})\n\n{picture(score.name, svg_uri(score.svg))}"


def training_page(root: str, model_id: str) -> str:
    """Curves and final figures of a trained model."""
    rows = as_rows(read_table(root, "models", where=pc.field("model_id") == model_id), ModelRow)
    if not rows:
        return f"There is no model {model_id}."
    row = rows[0]
    figures = [f"**{markdown(chart.title)}**\n\n{picture(chart.title, svg_uri(chart.svg))}" for chart in charts(row)]
    metrics = [(name, figure(value)) for name, value in json.loads(row["metrics"] or "{}").items()]
    heading = f"# {row['kind']} {row['weights_hash'][:8]}, {row['num_steps']} steps"
    return page([heading, table(("figure", "value"), metrics), *figures, f"Weights: {code_span(row['uri'])}"])


def verdict_page(root: str, evaluation_id: str) -> str:
    """The checks of the gate, and frames of the clips that the model sampled."""
    rows = as_rows(read_table(root, "evaluations", where=pc.field("evaluation_id") == evaluation_id), EvaluationRow)
    if not rows or rows[0]["status"] != "ok":
        return f"There is no evaluation {evaluation_id}."
    row = rows[0]
    lines = [
        ("passed" if check.passed else Markdown("**failed**"), check.rule, figure(check.value), figure(check.limit))
        for check in checks_of(row)
    ]
    samples = json.loads(row["metrics"]).get("samples", [])
    clips = [clip_section(sample["prompt"], inside(root, sample["uri"])) for sample in samples]
    heading = "# Passed the gate" if row["passed"] else "# Refused by the gate"
    return page([heading, table(("", "rule", "value", "limit"), lines), *clips])


def generations_page(root: str, weights_hash: str) -> str:
    """The newest clips generated with these weights: prompt, frames, path."""
    where = (pc.field("weights_hash") == weights_hash) & (pc.field("status") == "ok")
    rows = read_table(root, "generations", ["prompt", "uri", "seed", *ORDER], where=where)
    newest = as_rows(newest_first(rows).slice(0, MAX_CLIPS), GenerationRow)
    sections = [clip_section(row["prompt"], row["uri"], f"seed {row['seed']}") for row in newest]
    return page([f"# Clips of model {weights_hash[:8]}", *sections])


def clip_section(prompt: str, uri: str, remark: str = "") -> str:
    """A clip as a strip of frames under its prompt."""
    strip = sheet_uri([frames_of(uri, STRIP_FRAMES)], 1)
    return f"**{markdown(prompt)}** {remark}\n\n{picture(prompt, strip)}\n\n{code_span(uri)}"


def frames_of(uri: str, num: int) -> "list[np.ndarray]":
    """`num` frames spread over a clip, or the one picture of a PNG, uint8 (h w c), of thumbnail size.

    An empty list if the file is missing or cannot be decoded.
    """
    from pyramid_model.video.video import VideoError, clip_length, read_clip

    if uri.endswith(".png"):
        return [_thumbnail(uri)] if storage.exists(uri) else []
    try:
        length = clip_length(uri)
        every = max(1, length // num)
        return list(read_clip(uri, height=THUMB_H, width=THUMB_W)[every // 2 :: every][:num])
    except (VideoError, ValueError):
        return []


def _thumbnail(uri: str) -> "np.ndarray":
    """A picture at thumbnail size, uint8 (h w c)."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
        return np.array(ImageOps.fit(image.convert("RGB"), (THUMB_W, THUMB_H)))


def sheet_uri(cells: "Sequence[Sequence[np.ndarray]]", columns: int) -> str:
    """Frames side by side as one JPEG data URI, `columns` cells per row; "" without frames."""
    from PIL import Image

    tiles = [frame for cell in cells for frame in cell]
    if not tiles:
        return ""
    across = columns * max(len(cell) for cell in cells)
    sheet = Image.new("RGB", (across * THUMB_W, math.ceil(len(tiles) / across) * THUMB_H), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (i % across * THUMB_W, i // across * THUMB_H))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def svg_uri(svg: str) -> str:
    """A figure of the report as an SVG data URI that contains its own style."""
    head, rest = svg.split(">", 1)
    width, height = head.split('viewBox="0 0 ')[1].split('"')[0].split()
    head = head.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"', 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(f'{head}>{STYLE}{rest}'.encode()).decode()}"


def picture(name: str, uri: str) -> str:
    """A Markdown image; if the URI is empty, a remark."""
    return f"![{markdown(name)}]({uri})" if uri else "(no picture)"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_table_cell, line)) + " |" for line in lines)


def _table_cell(cell: object) -> str:
    return cell if isinstance(cell, Markdown) else markdown(str(cell))


def figure(value: object) -> str:
    """A finite number as compact text, any other value as `str` gives it."""
    return compact(value) if isinstance(value, int | float) and math.isfinite(value) else str(value)


def page(parts: Iterable[str]) -> str:
    """The parts that are not empty, with a blank line between them."""
    return "\n\n".join(part for part in parts if part) + "\n"
