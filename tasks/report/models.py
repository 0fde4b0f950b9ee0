"""What the report says about text, training, evaluation and generation: read from the tables, shaped for the page."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from tasks.encoding.text_features import TextFeaturesResult
from tasks.models.registry import Champion, RegistryError, champion
from tasks.report.figures import Series, line_chart, smoothed
from tasks.report.media import MediaBudget
from tasks.report.run import Records, loads
from tasks.tables.delta import read_table
from tasks.tables.manifest import verdicts_of
from tasks.tables.newest import newest_first

CURVE_SIDE_COLUMNS = ("step", "lr", "grad_norm", "elapsed_s")
MAX_EVALUATIONS = 4
UNTRAINED = "_untrained"
SHORT_LIST = 8


@dataclass(frozen=True)
class TextFacts:
    """Captions and their features."""

    captions_by_kind: Counter[str]
    num_features: int
    encoders: list[dict[str, Any]] = field(default_factory=list)


def text_facts(root: str, records: Records) -> TextFacts:
    """Captions by kind, and the encoders behind the text features with what their folders say of them."""
    ok = pc.field("status") == "ok"
    kinds = Counter(read_table(root, "captions", ["kind"], where=ok)["kind"].to_pylist())
    rows = read_table(root, "text_features", ["encoder_hash", "shape"], where=ok).to_pylist()
    by_encoder = Counter(row["encoder_hash"] for row in rows)
    widths = {row["encoder_hash"]: row["shape"][-1] for row in rows if row["shape"]}
    results = {result.encoder_hash: result for _, result in records if isinstance(result, TextFeaturesResult)}
    encoders = [
        {"hash": hash_, "num_texts": count, "dim": widths.get(hash_), "about": encoder_about(results.get(hash_))}
        for hash_, count in by_encoder.most_common()
    ]
    return TextFacts(kinds, len(rows), encoders)


def encoder_about(result: TextFeaturesResult | None) -> str:
    """One sentence on a text encoder, from the result of the step that used it."""
    if result is None:
        return "no record of it under runs/"
    if result.random_init:
        return "random weights, made for this run: it tells texts apart and knows nothing of their meaning"
    return f"weights from {result.encoder}"


@dataclass(frozen=True)
class Chart:
    """A chart with its legend: (name, colour class) pairs."""

    title: str
    svg: str
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class Gain:
    """A figure before and after training."""

    name: str
    untrained: float | None
    trained: float | None


@dataclass(frozen=True)
class Training:
    """One trained model."""

    row: dict[str, Any]
    name: str
    charts: list[Chart]
    gains: list[Gain]
    figures: list[tuple[str, Any]]
    settings: list[tuple[str, Any]]


def trainings(root: str) -> list[Training]:
    """Every trained model, the newest first."""
    rows = newest_first(read_table(root, "models", where=pc.field("status") == "ok"))
    return [_training(row) for row in rows.to_pylist()]


def _training(row: dict[str, Any]) -> Training:
    metrics = {name: value for name, value in loads(row["metrics"]).items() if not isinstance(value, dict | list)}
    paired = [name for name in metrics if f"{name}{UNTRAINED}" in metrics]
    gains = [Gain(name, metrics[f"{name}{UNTRAINED}"], metrics[name]) for name in paired]
    rest = [(name, value) for name, value in metrics.items() if name.removesuffix(UNTRAINED) not in paired]
    name = {"vae": "VAE", "dit": "DiT"}.get(row["kind"]) or str(row["kind"])
    return Training(row, name, charts(row), gains, rest, flat_figures(loads(row["config"])))


def charts(row: dict[str, Any]) -> list[Chart]:
    """Loss with its validation, and one small chart a further column of the curve."""
    curve = loads(row["curve"]) or []
    found = []
    loss, val = _column(curve, "loss"), _column(curve, "val_loss")
    if loss or val:
        series = [
            Series("training loss", loss, "raw"),
            Series("training loss, smoothed", smoothed(loss)),
            Series("validation loss", val, "dots", 2),
        ]
        legend = [("training loss", "c1")] * bool(loss) + [("validation loss", "c2")] * bool(val)
        found.append(Chart("loss", line_chart(series, log=True), legend))
    names = dict.fromkeys(name for point in curve for name in point)
    for name in names:
        if name not in (*CURVE_SIDE_COLUMNS, "loss", "val_loss") and len(points := _column(curve, name)) > 1:
            kind = "dots" if len(points) <= 20 else "line"
            chart = line_chart([Series(name, points, kind, 2 if name.startswith("val_") else 1)], height=150, width=360)
            found.append(Chart(name, chart, []))
    return found


def _column(curve: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (point["step"], point[name])
        for point in curve
        if isinstance(point.get(name), int | float) and math.isfinite(point[name])
    ]


@dataclass(frozen=True)
class Sample:
    """A clip that an evaluation made or looked at, as a data URI, with the training clip it belongs to if any."""

    words: str
    video: str
    training_video: str = ""
    shape: str = ""  # CSS aspect ratio, "" where it does not matter


@dataclass(frozen=True)
class Evaluation:
    """A verdict of the gate with what it was based on."""

    row: dict[str, Any]
    candidate: str  # trained | untrained
    is_champion: bool
    checks: list[dict[str, Any]]
    figures: list[tuple[str, Any]]
    samples: list[Sample]
    reconstructions: list[Sample]
    psnr: float | None  # of the VAE on held-out clips, dB
    psnr_untrained: float | None


def evaluations(root: str, budget: MediaBudget) -> list[Evaluation]:
    """Every verdict, the newest first; videos for the newest few."""
    rows = newest_first(read_table(root, "evaluations", where=pc.field("status") == "ok")).to_pylist()
    if not rows:
        return []
    best, uri_of = known_champion(root), clip_uris(root)
    chosen = verdicts_of(root)
    buckets = dict(zip(chosen["clip_id"].to_pylist(), chosen["bucket"].to_pylist(), strict=True))
    found = []
    for number, row in enumerate(rows):
        metrics = loads(row["metrics"])
        with_videos = number < MAX_EVALUATIONS
        samples = [
            Sample(
                shown["prompt"],
                budget.video(shown["uri"]),
                optional_video(uri_of.get(shown["clip_id"]), budget),
                bucket_shape(buckets.get(shown["clip_id"]) or ""),
            )
            for shown in metrics.get("samples", ())
            if with_videos
        ]
        restored = [
            Sample(f"{shown['psnr']:.1f} dB", budget.video(shown["uri"]))
            for shown in metrics.get("reconstructions", ())
            if number == 0  # the same VAE in all of them, as a rule
        ]
        evaluation = Evaluation(
            row,
            metrics.get("candidate", ""),
            best is not None and best.evaluation_id == row["evaluation_id"],
            [check | {"sign": sign(check)} for check in loads(row["checks"]) or ()],
            flat_figures(metrics),
            samples,
            restored,
            metrics.get("vae_psnr"),
            metrics.get("vae_psnr_untrained"),
        )
        found.append(evaluation)
    return found


def bucket_shape(bucket: str) -> str:
    """`<height>x<width>x…` as a CSS aspect ratio."""
    height, _, rest = bucket.partition("x")
    return f"{rest.partition('x')[0]}/{height}" if rest else ""


def known_champion(root: str) -> Champion | None:
    """The champion; None also when this machine does not know where the registry of a remote root is."""
    try:
        return champion(root)
    except RegistryError:
        return None


def clip_uris(root: str) -> dict[str, str]:
    """Media URI by clip id."""
    rows = read_table(root, "clips", ["clip_id", "uri"], where=pc.field("status") == "ok")
    return dict(zip(rows["clip_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))


def optional_video(uri: str | None, budget: MediaBudget) -> str:
    """A video that may not be there at all, which is nothing to complain about."""
    return budget.video(uri) if uri else ""


def sign(check: dict[str, Any]) -> str:
    """Which side of its limit a value had to be on, told from the verdict."""
    value, limit = check.get("value"), check.get("limit")
    if value is None or limit is None:
        return ""
    return "≤" if (value <= limit) == bool(check.get("passed")) else "≥"


def flat_figures(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Numbers and texts of nested JSON as (dotted name, value), short lists in one line; longer ones are left out."""
    found: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += flat_figures(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            found.append((prefix + name, value))
        elif len(value) <= SHORT_LIST and not any(isinstance(one, dict | list) for one in value):
            found.append((prefix + name, ", ".join(map(str, value)) or "none"))
    return found


@dataclass(frozen=True)
class GenerationCard:
    """A generated clip, beside the training clip of the same prompt where there is one."""

    row: dict[str, Any]
    video: str
    settings: list[tuple[str, Any]]
    timings: list[tuple[str, Any]]
    training_clip: str  # clip id, "" when no caption equals the prompt
    training_video: str
    shape: str  # CSS aspect ratio


def generation_cards(root: str, budget: MediaBudget, max_media: int) -> tuple[list[GenerationCard], int]:
    """The newest generated clips, those that have a training clip beside them first, and how many there are."""
    rows = newest_first(read_table(root, "generations", where=pc.field("status") == "ok")).to_pylist()
    if not rows:
        return [], 0
    ok = pc.field("status") == "ok"
    captions = read_table(root, "captions", ["clip_id", "text"], where=ok).to_pylist()
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
