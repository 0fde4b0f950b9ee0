"""The sections of the report on text, training, evaluation and generation, made from rows of the tables."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from tasks.encoding.text_features import TextFeaturesResult
from tasks.models.gate import Check
from tasks.models.registry import Champion, champion
from tasks.models.tracking import RegistryError
from tasks.report.figures import Series, line_chart, smoothed
from tasks.report.media import MediaBudget
from tasks.report.run import Records, loads
from tasks.tables.delta import read_table
from tasks.tables.manifest import verdicts_of
from tasks.tables.newest import newest_first
from tasks.tables.root_paths import inside
from tasks.tables.rows import CaptionRow, EvaluationRow, GenerationRow, ModelRow, TextFeatureRow, as_rows

Figure = tuple[str, object]  # name and value, as the page lists them
Curve = Sequence[Mapping[str, float]]  # points of a training: step, loss and other columns
CURVE_SIDE_COLUMNS = ("step", "lr", "grad_norm", "elapsed_s")
MAX_EVALUATIONS = 4
UNTRAINED = "_untrained"
BASELINES = {"_linear": "linear predictor", "_no_text": "empty text", "_shuffled_text": "captions of other clips"}
BIN = re.compile(r"_stage(\d+)_bin(\d+)")  # in the name of a validation figure, see `dit_validation`
ROLLOUT = re.compile(r"val_loss_unit(\d+)(?:_rollout)?$")
SHORT_LIST = 8


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with features in the table."""

    hash: str
    num_texts: int
    dim: int | None  # width of its features; None: no row has a shape
    about: str


@dataclass(frozen=True)
class TextFacts:
    """Captions and their features."""

    captions_by_kind: Counter[str]
    num_features: int
    encoders: list[TextEncoder] = field(default_factory=list)


def text_facts(root: str, records: Records) -> TextFacts:
    """Number of captions by kind, and of text features by encoder. records: results of the steps that encoded them."""
    ok = pc.field("status") == "ok"
    kinds = Counter(read_table(root, "captions", ["kind"], where=ok)["kind"].to_pylist())
    rows = as_rows(read_table(root, "text_features", ["encoder_hash", "shape"], where=ok), TextFeatureRow)
    by_encoder = Counter(row["encoder_hash"] for row in rows)
    widths = {row["encoder_hash"]: row["shape"][-1] for row in rows if row["shape"]}
    results = {result.encoder_hash: result for _, result in records if isinstance(result, TextFeaturesResult)}
    encoders = [
        TextEncoder(hash_, count, widths.get(hash_), encoder_about(results.get(hash_)))
        for hash_, count in by_encoder.most_common()
    ]
    return TextFacts(kinds, len(rows), encoders)


def encoder_about(result: TextFeaturesResult | None) -> str:
    """Origin of the weights of a text encoder, by the result of the step that used it."""
    if result is None:
        return "no record of it under runs/"
    if result.random_init:
        return "random weights, made for this run: features differ between texts and carry no meaning"
    return f"weights from {result.encoder}"


@dataclass(frozen=True)
class Chart:
    """A chart with its legend: (name, colour class) pairs."""

    title: str
    svg: str
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class Gain:
    """A figure before and after training, and of what a trained model should beat: (name, value) pairs."""

    name: str
    untrained: float | None
    trained: float | None
    baselines: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """One trained model."""

    row: ModelRow
    name: str
    charts: list[Chart]
    gains: list[Gain]
    figures: list[Figure]
    settings: list[Figure]


def trainings(root: str) -> list[Training]:
    """Every trained model, the newest first."""
    rows = newest_first(read_table(root, "models", where=pc.field("status") == "ok"))
    return [_training(row) for row in as_rows(rows, ModelRow)]


def _training(row: ModelRow) -> Training:
    metrics = {name: value for name, value in loads(row["metrics"]).items() if not isinstance(value, dict | list)}
    drawn = [name for name in metrics if BIN.search(name) or ROLLOUT.match(name)]
    paired = [name for name in metrics if f"{name}{UNTRAINED}" in metrics and name not in drawn]
    gains = [Gain(name, metrics[f"{name}{UNTRAINED}"], metrics[name], baselines_of(name, metrics)) for name in paired]
    shown = {f"{name}{ending}" for name in paired for ending in ("", UNTRAINED, *BASELINES)}
    rest = [(name, value) for name, value in metrics.items() if name not in shown and name not in drawn]
    name = {"vae": "VAE", "dit": "DiT"}.get(row["kind"]) or str(row["kind"])
    every_chart = [*charts(row), *validation_charts(metrics)]
    return Training(row, name, every_chart, gains, rest, flat_figures(loads(row["config"])))


def validation_charts(metrics: Mapping[str, Any]) -> list[Chart]:
    """Held-out loss of the trained DiT along the path of each stage, and of each unit with both kinds of history."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, value in sorted(metrics.items()):
        if (match := BIN.search(name)) and not name.endswith(UNTRAINED):
            lines.setdefault(f"stage {match[1]}", []).append((float(match[2]), value))
    charts = []
    if lines:
        series = [Series(name, points, "dots", 1 + index % 3) for index, (name, points) in enumerate(lines.items())]
        legend = [(name, f"c{1 + index % 3}") for index, name in enumerate(lines)]
        title = "held-out loss by quarter of each stage's path, from noise (0) to data (3)"
        charts.append(Chart(title, line_chart(series, height=150, width=360), legend))
    units = sorted({int(match[1]) for name in metrics if (match := ROLLOUT.match(name))})
    if units:
        true, made = ([(float(u), metrics[f"val_loss_unit{u}{end}"]) for u in units] for end in ("", "_rollout"))
        series = [Series("true history", true, "dots", 1), Series("history of its own", made, "dots", 2)]
        title = "held-out loss by unit, with the true history and with one that the model made"
        legend = [("true history", "c1"), ("history of its own", "c2")]
        charts.append(Chart(title, line_chart(series, height=150, width=360), legend))
    return charts


def baselines_of(name: str, metrics: Mapping[str, object]) -> list[Figure]:
    """Baselines of a figure by what they are, such as ("linear predictor", 0.29)."""
    words = BASELINES | {"_linear": "linear codec"} if name == "val_psnr" else BASELINES
    return [(word, metrics[name + ending]) for ending, word in words.items() if name + ending in metrics]


def charts(row: ModelRow) -> list[Chart]:
    """A chart of training and validation loss, and one small chart for each further column of the curve."""
    curve: Curve = loads(row["curve"]) or []
    drawn = []
    loss, val = _column(curve, "loss"), _column(curve, "val_loss")
    if loss or val:
        series = [
            Series("training loss", loss, "raw"),
            Series("training loss, smoothed", smoothed(loss)),
            Series("validation loss", val, "dots", 2),
        ]
        legend = [("training loss", "c1")] * bool(loss) + [("validation loss", "c2")] * bool(val)
        drawn.append(Chart("loss", line_chart(series, log=True), legend))
    names = dict.fromkeys(name for point in curve for name in point)
    for name in names:
        if name in (*CURVE_SIDE_COLUMNS, "loss", "val_loss") or BIN.search(name):
            continue
        if len(points := _column(curve, name)) > 1:
            kind = "dots" if len(points) <= 20 else "line"
            chart = line_chart([Series(name, points, kind, 2 if name.startswith("val_") else 1)], height=150, width=360)
            drawn.append(Chart(name, chart, []))
    return drawn


def _column(curve: Curve, name: str) -> list[tuple[float, float]]:
    """(step, value) of the points of a curve that have a finite value."""
    pairs = ((point["step"], point.get(name)) for point in curve)
    return [(step, value) for step, value in pairs if isinstance(value, int | float) and math.isfinite(value)]


@dataclass(frozen=True)
class Sample:
    """A clip of an evaluation as a data URI, with the training clip of the same caption if there is one."""

    words: str
    video: str
    training_video: str = ""
    shape: str = ""  # CSS aspect ratio; "": not set


@dataclass(frozen=True)
class Evaluation:
    """A verdict of the gate, with its checks, figures and clips."""

    row: EvaluationRow
    candidate: str  # trained | untrained
    is_champion: bool
    checks: list[tuple[Check, str]]  # with the relation to the limit, see `sign`
    figures: list[Figure]
    samples: list[Sample]
    reconstructions: list[Sample]
    psnr: float | None  # of the VAE on held-out clips, dB
    psnr_untrained: float | None
    psnr_linear: float | None  # of the linear codec with as many numbers
    summary: str  # what the model has learnt, in a sentence; "" without figures


def evaluations(root: str, budget: MediaBudget) -> list[Evaluation]:
    """Every verdict, the newest first; videos for the newest few."""
    rows = as_rows(newest_first(read_table(root, "evaluations", where=pc.field("status") == "ok")), EvaluationRow)
    if not rows:
        return []
    best, uri_of = reachable_champion(root), clip_uris(root)
    verdicts = verdicts_of(root)
    buckets = dict(zip(verdicts["clip_id"].to_pylist(), verdicts["bucket"].to_pylist(), strict=True))
    lines = []
    for number, row in enumerate(rows):
        metrics = loads(row["metrics"])
        with_videos = number < MAX_EVALUATIONS
        samples = [
            Sample(
                sample["prompt"],
                budget.video(inside(root, sample["uri"])),
                optional_video(uri_of.get(sample["clip_id"]), budget),
                bucket_shape(buckets.get(sample["clip_id"]) or ""),
            )
            for sample in metrics.get("samples", ())
            if with_videos
        ]
        restored = [
            Sample(f"{pair['psnr']:.1f} dB", budget.video(inside(root, pair["uri"])))
            for pair in metrics.get("reconstructions", ())
            if number == 0  # all evaluations usually have the same VAE
        ]
        evaluation = Evaluation(
            row,
            metrics.get("candidate", ""),
            best is not None and best.evaluation_id == row["evaluation_id"],
            [(check, sign(check)) for check in checks_of(row)],
            flat_figures(metrics),
            samples,
            restored,
            metrics.get("vae_psnr"),
            metrics.get("vae_psnr_untrained"),
            metrics.get("vae_psnr_linear"),
            summary(metrics),
        )
        lines.append(evaluation)
    return lines


def summary(metrics: Mapping[str, Any]) -> str:
    """What a model has learnt, beside what chance, linear algebra and the model without text reach."""
    parts = []
    if metrics.get("retrieval") is not None:
        parts.append(
            f"{metrics['retrieval']:.0%} of the clips sampled from training captions are nearest to the training clip "
            f"of their caption ({metrics['retrieval_chance']:.0%} by chance), at {metrics['sample_psnr']:.1f} dB PSNR"
        )
    if metrics.get("val_loss_linear") and metrics.get("val_loss_no_text"):
        parts.append(
            f"the loss on held-out clips is {metrics['val_loss']:.3g}, that of a linear predictor "
            f"{metrics['val_loss_linear']:.3g}, without text {metrics['val_loss_no_text']:.3g}"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def bucket_shape(bucket: str) -> str:
    """`<height>x<width>x…` as a CSS aspect ratio."""
    height, _, rest = bucket.partition("x")
    return f"{rest.partition('x')[0]}/{height}" if rest else ""


def reachable_champion(root: str) -> Champion | None:
    """The champion; None without one, or if the registry of a remote root cannot be reached from this machine."""
    try:
        return champion(root)
    except RegistryError:
        return None


def clip_uris(root: str) -> dict[str, str]:
    """URI of the media file by clip id."""
    rows = read_table(root, "clips", ["clip_id", "uri"], where=pc.field("status") == "ok")
    return dict(zip(rows["clip_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))


def optional_video(uri: str | None, budget: MediaBudget) -> str:
    """A video as a data URI; "" without a URI, which is not counted as a missing file."""
    return budget.video(uri) if uri else ""


def checks_of(row: EvaluationRow) -> list[Check]:
    """The checks of a verdict."""
    return [Check.model_validate(check) for check in loads(row["checks"]) or ()]


def sign(check: Check) -> str:
    """The relation that a check requires, "≤" or "≥", derived from its verdict; "" without a value."""
    if check.value is None:
        return ""
    return "≤" if (check.value <= check.limit) == check.passed else "≥"


def flat_figures(figures: Mapping[str, object], prefix: str = "") -> list[Figure]:
    """Numbers and texts of nested JSON as (dotted name, value); lists of up to SHORT_LIST values as one text.

    Longer lists and lists of objects are left out.
    """
    flat: list[Figure] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            flat += flat_figures(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            flat.append((prefix + name, value))
        elif len(value) <= SHORT_LIST and not any(isinstance(entry, dict | list) for entry in value):
            flat.append((prefix + name, ", ".join(map(str, value)) or "none"))
    return flat


@dataclass(frozen=True)
class GenerationCard:
    """A generated clip, with the training clip whose caption equals its prompt if there is one."""

    row: GenerationRow
    video: str
    settings: list[Figure]
    timings: list[Figure]
    training_clip: str  # clip id, "" when no caption equals the prompt
    training_video: str
    shape: str  # CSS aspect ratio


def generation_cards(root: str, budget: MediaBudget, max_media: int) -> tuple[list[GenerationCard], int]:
    """The newest generated clips, at most `max_media`, those with a training clip first; the number of all."""
    rows = as_rows(newest_first(read_table(root, "generations", where=pc.field("status") == "ok")), GenerationRow)
    if not rows:
        return [], 0
    ok = pc.field("status") == "ok"
    captions = as_rows(read_table(root, "captions", ["clip_id", "text"], where=ok), CaptionRow)
    clip_of = {row["text"].strip(): row["clip_id"] for row in captions}
    uri_of = clip_uris(root)
    cards = []
    for row in sorted(rows[:max_media], key=lambda row: row["prompt"].strip() not in clip_of):
        clip_id = clip_of.get(row["prompt"].strip(), "")
        settings = loads(row["settings"])
        cards.append(
            GenerationCard(
                row,
                budget.video(row["uri"]),
                flat_figures(settings),
                flat_figures(loads(row["timings"])),
                clip_id,
                optional_video(uri_of.get(clip_id), budget),
                bucket_shape("{height}x{width}x".format_map(settings)) if {"height", "width"} <= set(settings) else "",
            )
        )
    return cards, len(rows)
