"""Rows of every table: as they are read, and as steps make them.

Rows that are read are TypedDicts with the columns and types of `schemas` (a test compares them). A row has only the
columns that were read. In a failed row the columns that could not be computed are null.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict, TypeVar, cast

import pyarrow as pa

from tasks.tables.plain_text import cut, visible
from tasks.tables.url_secrets import text_without_secrets

Row = dict[str, object]  # a row of a table, without the columns of lineage


class CommonRow(TypedDict):
    """Columns that every table has."""

    status: str
    error_type: str
    error: str
    attempt: int
    run_id: str
    step: str
    step_version: str
    params_hash: str
    code_version: str
    created_at: datetime
    commit_order: int


class SourceColumns(TypedDict):
    """Columns of `sources` that are known before the file is read."""

    source_id: str
    uri: str
    path: str
    size_bytes: int
    mtime_ns: int
    source: str
    license: str
    card: str
    annotations: str


class SourceRow(SourceColumns, CommonRow):
    """A row of `sources`."""

    video_id: str
    copy: str


class VideoRow(CommonRow):
    """A row of `videos`."""

    video_id: str
    uri: str
    path: str
    size_bytes: int
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    fps_num: int
    fps_den: int
    is_vfr: bool
    num_frames_header: int
    num_frames: int
    num_frames_corrupt: int
    num_shots: int
    num_clips: int
    duration_s: float
    start_pts: int
    time_base_num: int
    time_base_den: int
    color_transfer: str
    color_primaries: str
    color_matrix: str
    color_range: str
    is_hdr: bool
    has_audio: bool
    bit_rate: int
    source: str
    license: str
    clip_ids: list[str]


class ClipFile(TypedDict):
    """Columns of `clips` that are needed to read its frames."""

    clip_id: str
    uri: str
    height: int
    width: int
    num_frames: int
    fps_num: int
    fps_den: int


class ClipRow(ClipFile, CommonRow):
    """A row of `clips`."""

    video_id: str
    shot: int
    start_frame: int
    end_frame: int
    start_pts: int
    end_pts: int
    start_s: float
    end_s: float
    size_bytes: int
    crc32: int
    cut_method: str
    crop: list[int]


class SelectedClipRow(ClipRow):
    """A row of `tasks.tables.current.selected_clips`: a clip with its newest verdict."""

    bucket: str
    split: str


class ScoreRow(CommonRow):
    """A row of `scores`."""

    score_id: str
    clip_id: str
    scorer: str
    value: float
    details: str


class EmbeddingRow(CommonRow):
    """A row of `embeddings`."""

    embedding_id: str
    clip_id: str
    model: str
    model_hash: str
    sampling: str
    shape: list[int]
    dtype: str
    embedding: bytes
    crc32: int


class DuplicateColumns(TypedDict):
    """A row of `duplicates` without the common columns, as its step makes it."""

    duplicate_id: str
    clip_id: str
    method: str
    group_id: str
    keeper: bool
    rank: int
    num_clips: int
    similarity: float
    clips: str


class DuplicateRow(DuplicateColumns, CommonRow):
    """A row of `duplicates`."""


class SelectionColumns(TypedDict):
    """A row of `selections` without the common columns, as its step makes it."""

    selection_id: str
    clip_id: str
    keep: bool
    drop_reasons: list[str]
    bucket: str
    split: str
    subset: str


class SelectionRow(SelectionColumns, CommonRow):
    """A row of `selections`."""


class CaptionRow(CommonRow):
    """A row of `captions`."""

    caption_id: str
    clip_id: str
    kind: str
    text: str
    json: str
    language: str
    model: str
    model_revision: str
    prompt_hash: str
    parent_caption_id: str
    settings: str
    quality: str
    num_prompt_tokens: int
    num_completion_tokens: int
    cost_usd: float


class LatentRow(CommonRow):
    """A row of `latents`."""

    latent_id: str
    clip_id: str
    vae_hash: str
    bucket: str
    view: int
    shape: list[int]
    dtype: str
    parts: str
    latent_norm: str
    latent: bytes
    crc32: int


class TextFeatureRow(CommonRow):
    """A row of `text_features`."""

    text_feature_id: str
    text: str
    encoder_hash: str
    shape: list[int]
    dtype: str
    embeds: bytes
    pooled: bytes
    crc32: int


class ModelRow(CommonRow):
    """A row of `models`."""

    model_id: str
    kind: str
    weights_hash: str
    uri: str
    line_id: str
    parent_id: str
    data_id: str
    first_step: int
    num_steps: int
    config: str
    metrics: str
    curve: str
    mlflow_run_id: str
    prefect_flow_run: str
    ray_job: str


class EvaluationRow(CommonRow):
    """A row of `evaluations`."""

    evaluation_id: str
    model_id: str
    weights_hash: str
    vae_hash: str
    metrics: str
    checks: str
    passed: bool
    media: list[str]
    crc32: list[int]


class GenerationRow(CommonRow):
    """A row of `generations`."""

    generation_id: str
    prompt: str
    prompt_rewritten: str
    seed: int
    settings: str
    weights_hash: str
    uri: str
    size_bytes: int
    crc32: int
    timings: str
    notes: list[str]
    peak_memory_bytes: int


R = TypeVar("R")  # a TypedDict of this module


def as_rows(rows: pa.Table, kind: type[R]) -> list[R]:
    """The rows as dicts of a type of this module. kind: the type for their table."""
    return cast("list[R]", rows.to_pylist())


@dataclass(frozen=True)
class Lineage:
    """Run, step, settings and code that made a row: common columns of every appended row."""

    run_id: str
    step: str
    step_version: str
    params_hash: str
    code_version: str


def ok_row(item: Mapping[str, object], **columns: object) -> Row:
    """A row with status ok and the attempt of its item. item: input of the step."""
    return {"status": "ok", "attempt": item.get("attempt", 1)} | columns


def bad_row(item: Mapping[str, object], error: Exception | tuple[str, str], **columns: object) -> Row:
    """A failed row for an item that could not be computed, with its attempt.

    error: (error_type, sentence), or an exception, whose `kind` (without one: class name) is the error_type.
    """
    if isinstance(error, Exception):
        kind, text = getattr(error, "kind", type(error).__name__), str(error)
    else:
        kind, text = error
    message = cut(visible(text_without_secrets(text)))
    return {"status": "failed", "error_type": kind, "error": message, "attempt": item.get("attempt", 1)} | columns


def skipped_row(item: Mapping[str, object], error: Exception | tuple[str, str], **columns: object) -> Row:
    """A row like `bad_row` for an item that is left out on purpose; a retry of failed rows does not try it again."""
    return bad_row(item, error, **columns) | {"status": "skipped"}
