"""Figures of the report as inline SVG; colours and fonts come from the style sheet of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from tasks.inspecting.table_stats import Histogram, compact

Side = Literal["above", "below"]


@dataclass(frozen=True)
class Node:
    """A box of the pipeline picture."""

    name: str
    label: str
    count: int | None  # None: the step has not run yet
    detail: str = ""
    mood: str = ""  # "", "warn" or "bad": colour of the detail


@dataclass(frozen=True)
class Threshold:
    """A limit drawn into a histogram."""

    value: float
    keeps: Side  # the side of the limit on which clips pass

    @property
    def words(self) -> str:
        """Relation and value as text, such as "≥ 1.25"."""
        return ("≥ " if self.keeps == "above" else "≤ ") + compact(self.value)


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: list[tuple[float, float]]
    kind: Literal["raw", "line", "dots"] = "line"  # raw: thin; dots: a line with its points
    colour: int = 1  # number of a colour in the style sheet, 1 to 3


# (column, row) of each box; row 1 is the middle line
PLACES: dict[str, tuple[int, int]] = {
    "sources": (0, 1),
    "videos": (1, 1),
    "clips": (2, 1),
    "scores": (3, 0),
    "duplicates": (3, 2),
    "selections": (4, 1),
    "captions": (5, 0),
    "text_features": (6, 0),
    "vae": (5, 2),
    "latents": (6, 2),
    "dit": (7, 1),
    "evaluations": (8, 1),
    "generations": (9, 1),
}
ARROWS = (
    *(("sources", "videos"), ("videos", "clips"), ("clips", "scores"), ("clips", "duplicates")),
    *(("scores", "selections"), ("duplicates", "selections")),
    *(("selections", "captions"), ("captions", "text_features"), ("text_features", "dit")),
    *(("selections", "vae"), ("vae", "latents"), ("latents", "dit")),
    *(("dit", "evaluations"), ("evaluations", "generations")),
)
BOX_W, BOX_H, GAP_X, ROW_H = 96, 66, 20, 46
# px: line height of a label in a histogram, width of one letter of it, width of the bar of a single value
LABEL_H, CHARACTER_W, POINT_W = 12, 6.6, 14


def pipeline_picture(nodes: Sequence[Node]) -> str:
    """Boxes from source files to generated clips, each with its count; boxes of steps that have not run are dashed."""
    width, height = 10 * BOX_W + 9 * GAP_X + 2, 2 * ROW_H + BOX_H + 2
    by_name = {node.name: node for node in nodes}
    parts = [_arrow(by_name[start], by_name[end]) for start, end in ARROWS] + [_box(node) for node in nodes]
    return (
        f'<svg class="pipeline" viewBox="0 0 {width} {height}" role="img" aria-label="the pipeline, with counts">'
        + "".join(parts)
        + "</svg>"
    )


def _corner(node: Node) -> tuple[int, int]:
    column, row = PLACES[node.name]
    return 1 + column * (BOX_W + GAP_X), 1 + row * ROW_H


def _arrow(start: Node, end: Node) -> str:
    (x0, y0), (x1, y1) = _corner(start), _corner(end)
    x0, y0, y1 = x0 + BOX_W, y0 + BOX_H // 2, y1 + BOX_H // 2
    middle = (x0 + x1) / 2
    state = " waiting" if end.count is None else ""
    path = f"M{x0} {y0}C{middle} {y0} {middle} {y1} {x1 - 5} {y1}"
    head = f"M{x1 - 6} {y1 - 4}L{x1 - 1} {y1}L{x1 - 6} {y1 + 4}"
    return f'<path class="edge{state}" d="{path}"/><path class="edge head{state}" d="{head}"/>'


def _box(node: Node) -> str:
    x, y = _corner(node)
    state = " waiting" if node.count is None else ""
    number = "–" if node.count is None else f"{node.count:,}"
    middle = x + BOX_W / 2
    detail = (
        f'<text class="detail {node.mood}" x="{middle}" y="{y + 57}">{escape(node.detail)}</text>'
        if node.detail
        else ""
    )
    label_y, count_y = (y + 17, y + 39) if node.detail else (y + 22, y + 47)
    return (
        f'<g class="node{state}"><rect x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="9"/>'
        f'<text class="label" x="{middle}" y="{label_y}">{escape(node.label)}</text>'
        f'<text class="count" x="{middle}" y="{count_y}">{number}</text>{detail}</g>'
    )


def histogram_figure(
    histogram: Histogram,
    num_kept: Sequence[int] = (),
    limits: Sequence[Threshold] = (),
    width: int = 300,
    height: int = 96,
) -> str:
    """Bars over an axis with its least and greatest value; limits are dashed lines. Equal values give one bar.

    Args:
        histogram: counts of all clips.
        num_kept: how many clips of each bin are kept; the rest of the bar is pale. Empty: all are kept.
        limits: of the score.
        width: of the figure, px.
        height: the same, with one row of labels.
    """
    low, high = _range_with(histogram, limits)
    ticks = [("", 1.0, low), (" end", width - 1.0, high)]
    if low == high:
        ticks = [(" middle", width / 2, low)]
        low, high = low - 0.5, high + 0.5
    scale = (width - 2) / (high - low)
    places = [1 + (limit.value - low) * scale for limit in limits]
    labels = _label_places(limits, places, width)
    num_rows = 1 + max((row for _, row in labels), default=0)
    height += (num_rows - 1) * LABEL_H
    top, base = 2 + num_rows * LABEL_H, height - 18
    edges = [1 + (edge - low) * scale for edge in histogram.edges]
    if histogram.edges[0] == histogram.edges[-1]:  # a single value: a bar of its own width
        bar_x = min(max(1.0, edges[0] - POINT_W / 2), width - 1 - POINT_W)
        edges = [bar_x, bar_x + POINT_W]
    marks = "".join(_limit_mark(*mark, base) for mark in zip(limits, places, labels, strict=True))
    numbers = "".join(
        f'<text class="tick{anchor}" x="{x:g}" y="{height - 4}">{compact(value)}</text>' for anchor, x, value in ticks
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="histogram of {escape(histogram.name)}">'
        + _bars(histogram, num_kept, edges, top, base)
        + f'<path class="axis" d="M0 {base + 0.5}H{width}"/>{marks}{numbers}</svg>'
    )


def _bars(histogram: Histogram, num_kept: Sequence[int], edges: Sequence[float], top: float, base: float) -> str:
    """One bar per bin, pale where clips are not kept. edges: of the bins in the figure, px."""
    tallest = max(histogram.counts)
    bars = []
    for i, (count, kept_here) in enumerate(zip(histogram.counts, num_kept or histogram.counts, strict=True)):
        x, bar_w = edges[i], max(1.5, edges[i + 1] - edges[i] - 1)
        span = " to ".join(dict.fromkeys(map(compact, histogram.edges[i : i + 2])))
        tip = f"{span}: {count:,}" + (f", {kept_here:,} kept" if num_kept else "")
        for number, mood in ((count, " dropped"), (kept_here, "")):
            if number and (number != kept_here or not mood):
                bar_h = (base - top) * number / tallest
                bars.append(
                    f'<rect class="bar{mood}" x="{x:.1f}" y="{base - bar_h:.1f}" width="{bar_w:.1f}" '
                    f'height="{bar_h:.1f}"><title>{tip}</title></rect>'
                )
    return "".join(bars)


def _range_with(histogram: Histogram, limits: Sequence[Threshold]) -> tuple[float, float]:
    """Range of the axis: the values and the limits lie inside."""
    ends = [histogram.edges[0], histogram.edges[-1], *(limit.value for limit in limits)]
    return min(ends), max(ends)


def _label_places(limits: Sequence[Threshold], places: Sequence[float], width: int) -> list[tuple[float, int]]:
    """(left edge in px, row) of the label of each limit, so that no label covers another one."""
    labels = [(0.0, 0)] * len(limits)
    ends: list[float] = []  # right edge of the last label in each row
    for number in sorted(range(len(limits)), key=lambda number: places[number]):
        x, length = places[number], _label_length(limits[number])
        begin = x + 4 if x + 4 + length <= width else x - 4 - length
        row = next((row for row, end in enumerate(ends) if end < begin), len(ends))
        ends[row:] = [begin + length, *ends[row + 1 :]]
        labels[number] = begin, row
    return labels


def _label_length(limit: Threshold) -> float:
    return CHARACTER_W * len(limit.words)


def _limit_mark(limit: Threshold, x: float, label: tuple[float, int], base: float) -> str:
    begin, row = label
    return (
        f'<path class="limit" d="M{x:.1f} {4 + LABEL_H * row}V{base}"/>'
        f'<text class="tick limit-label" x="{begin:.1f}" y="{LABEL_H * (row + 1)}" '
        f'textLength="{_label_length(limit):.1f}" lengthAdjust="spacingAndGlyphs">{limit.words}</text>'
    )


def line_chart(series: Sequence[Series], *, log: bool = False, width: int = 540, height: int = 220) -> str:
    """Lines over the training step, with round grid values; "" without points.

    log: logarithmic y axis, on which values of 0 and less are left out.
    """
    lines = [(line, [(x, y) for x, y in line.points if math.isfinite(y) and (y > 0 or not log)]) for line in series]
    points = [point for _, of_line in lines for point in of_line]
    if not points:
        return ""
    left, right, top, bottom = 52, 10, 8, 24
    x_high = max(1.0, *(x for x, _ in points))
    ticks, (low, high) = _y_ticks([y for _, y in points], log)
    measure = math.log10 if log else float
    y_scale = (height - top - bottom) / (measure(high) - measure(low))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / x_high * (width - left - right), height - bottom - (measure(y) - measure(low)) * y_scale

    grid = "".join(
        f'<path class="gridline" d="M{left} {place(0, t)[1]:.1f}H{width - right}"/>'
        f'<text class="tick end" x="{left - 7}" y="{place(0, t)[1] + 3.5:.1f}">{compact(t)}</text>'
        for t in ticks
    )
    steps = "".join(
        f'<text class="tick middle" x="{place(t, low)[0]:.1f}" y="{height - 7}">{compact(int(t))}</text>'
        for t in _round_ticks(0, x_high, 6)
    )
    paths = "".join(_line(line, [place(x, y) for x, y in of_line], of_line) for line, of_line in lines if of_line)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{grid}{steps}{paths}</svg>'


def _line(line: Series, places: list[tuple[float, float]], points: list[tuple[float, float]]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = ""
    if line.kind == "dots":
        dots = "".join(
            f'<circle class="dot c{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
            f"<title>{escape(line.name)} at step {compact(int(step))}: {compact(value)}</title></circle>"
            for (x, y), (step, value) in zip(places, points, strict=True)
        )
    return f'<path class="line {line.kind} c{line.colour}" d="{path}"/>{dots}'


def _y_ticks(values: Sequence[float], log: bool) -> tuple[list[float], tuple[float, float]]:
    """Grid values and the range of the axis."""
    low, high = min(values), max(values)
    if log and high / low > 3:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if high / low < 300 else (1,)
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        bounds = low / 1.05, high * 1.05
        return [tick for tick in ticks if bounds[0] <= tick <= bounds[1]], bounds
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    bounds = (low if log else low - margin, high + margin)
    return [tick for tick in _round_ticks(*bounds, 5) if tick > 0 or not log], bounds


def _round_ticks(low: float, high: float, num_ticks: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside a range, about `num_ticks` of them."""
    raw = (high - low) / num_ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def smoothed(points: Sequence[tuple[float, float]], weight: float = 0.8) -> list[tuple[float, float]]:
    """Exponential moving average of y, with the bias of its start corrected. weight: of the past, 0..1."""
    total = norm = 0.0
    averages = []
    for x, y in points:
        total, norm = weight * total + (1 - weight) * y, weight * norm + (1 - weight)
        averages.append((x, total / norm))
    return averages
