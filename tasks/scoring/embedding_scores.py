"""Scores that are computed from stored embeddings, without reading a video."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from pydantic import Field

from pyramid_model.config import CaptionsOfKind, Config, identity
from pyramid_model.metrics.facts import AESTHETIC, CONSISTENCY, TEXT_MATCH
from tasks.models.score_models import clip_dim, load_aesthetic_head, load_open_clip
from tasks.running.work import Produced
from tasks.scoring.embeddings import EmbeddingsConfig, embedding_rows
from tasks.scoring.frames import limit_torch_threads
from tasks.tables.content_ids import content_id
from tasks.tables.rows import EmbeddingRow, Row, bad_row, ok_row, skipped_row

if TYPE_CHECKING:
    from torch import Tensor

    from pyramid_model.metrics.open_clip_model import OpenCLIP

VERSION = "1"
BLOCK_SIZE = 256  # scores in a block; each takes a few products of small matrices


class ZeroShotConfig(Config):
    """A zero-shot classification of each frame by CLIP: `prompts` or `against`."""

    prompts: tuple[str, ...] = Field(min_length=1, description="texts for a high score, e.g. a photo with a watermark")
    against: tuple[str, ...] = Field(min_length=1, description="texts for a low score, e.g. a clean photo")


class EmbeddingScoresConfig(EmbeddingsConfig):
    """The CLIP model that embeds the clips, and the scores that are computed from its features."""

    consistency: bool = Field(
        default=True, description="compute the score `consistency`: similarity of neighbouring sampled frames"
    )
    aesthetic_head: str = Field(
        default="", description="path of LAION's head for this model, for the score `aesthetic`; empty: no such score"
    )
    text_match: bool = Field(
        default=False, description="compute the score `text_match`: similarity of a clip's caption and its frames"
    )
    captions: tuple[CaptionsOfKind, ...] = Field(
        default=(), description="captions for text_match, e.g. [{kind: dense}]; empty: the newest of each clip"
    )
    zero_shot: dict[str, ZeroShotConfig] = Field(default={}, description="one score for each entry, named by its key")

    @property
    def scorers(self) -> list[str]:
        """Names of the scores to compute."""
        enabled = ((CONSISTENCY, self.consistency), (AESTHETIC, self.aesthetic_head), (TEXT_MATCH, self.text_match))
        return [*(facts.name for facts, is_enabled in enabled if is_enabled), *self.zero_shot]

    @property
    def with_text(self) -> bool:
        """Whether a score compares frames with texts."""
        return self.text_match or bool(self.zero_shot)

    def embedding(self) -> EmbeddingsConfig:
        """The settings that the embeddings depend on."""
        return EmbeddingsConfig.model_validate(self.model_dump(include=set(EmbeddingsConfig.model_fields)))


class EmbeddingScoreItem(TypedDict):
    """Work item of `EmbeddingScorer`. text: caption of the clip, for `text_match`; "" otherwise."""

    score_id: str
    clip_id: str
    scorer: str
    embedding_id: str
    text: str


def wanted_scores(
    config: EmbeddingScoresConfig, embeddings: Mapping[str, str], head_hash: str, captions: Mapping[str, str]
) -> list[EmbeddingScoreItem]:
    """Items of the scores that the clips must have: one for each clip and scorer.

    Args:
        config: which scores.
        embeddings: clip id -> embedding id.
        head_hash: of the aesthetic head.
        captions: clip id -> text.
    """
    items: list[EmbeddingScoreItem] = []
    for clip_id, embedding_id in embeddings.items():
        for scorer in config.scorers:
            text = captions.get(clip_id, "") if scorer == TEXT_MATCH.name else ""
            decided_by = {AESTHETIC.name: head_hash, TEXT_MATCH.name: text}.get(scorer, "")
            if scorer in config.zero_shot:
                decided_by = identity(config.zero_shot[scorer])
            score_id = content_id(clip_id, scorer, embedding_id, decided_by, VERSION)
            items.append(
                {"score_id": score_id, "clip_id": clip_id, "scorer": scorer, "embedding_id": embedding_id, "text": text}
            )
    return items


class EmbeddingScorer:
    """Actor: reads stored features and computes scores from them.

    Args:
        root: where the tables are.
        uri: of the CLIP model; it is loaded only if texts have to be embedded.
        head: of the aesthetic head; empty for none.
        config: which scores.
    """

    def __init__(self, root: str, uri: str, head: str, config: EmbeddingScoresConfig):
        limit_torch_threads(config.num_threads)
        self.root = root
        self.head = load_aesthetic_head(head, clip_dim(uri)) if head else None
        self.model = load_open_clip(uri, with_text=True, **config.placement()) if config.with_text else None
        self.questions = {
            name: (self._clip.embed_texts(zero_shot.prompts), self._clip.embed_texts(zero_shot.against))
            for name, zero_shot in config.zero_shot.items()
        }

    def __call__(self, items: Sequence[EmbeddingScoreItem]) -> Produced:
        """One row of `scores` per item; without an embedding or a caption the row is failed or skipped."""
        embeddings = embedding_rows(self.root, (item["embedding_id"] for item in items))
        texts = self._embedded({item["text"] for item in items} - {""})
        rows = [self.row(item, embeddings[item["embedding_id"]], texts) for item in items]
        return Produced({"scores": rows})

    @property
    def _clip(self) -> "OpenCLIP":
        assert self.model, "the model is loaded if a score compares frames with texts"
        return self.model

    def _embedded(self, texts: set[str]) -> "dict[str, Tensor]":
        if not texts:
            return {}
        ordered = sorted(texts)
        return dict(zip(ordered, self._clip.embed_texts(ordered), strict=True))

    def row(self, item: EmbeddingScoreItem, embedding: EmbeddingRow, texts: "Mapping[str, Tensor]") -> Row:
        """Row of one score."""
        from tasks.tables.blobs import CorruptBlobError, embedding_of

        columns = {name: item[name] for name in ("score_id", "clip_id", "scorer")}
        if embedding["status"] != "ok":
            return bad_row(item, (embedding["error_type"], f"no embedding: {embedding['error']}"), **columns)
        if item["scorer"] == TEXT_MATCH.name and not item["text"]:
            reason = "no_caption", "the clip has no caption: run the captions step, then score again"
            return skipped_row(item, reason, **columns)
        try:
            value, details = self.score(item["scorer"], embedding_of(embedding), texts.get(item["text"]))
        except CorruptBlobError as err:
            return bad_row(item, err, **columns)
        return ok_row(item, **columns, value=value, details=json.dumps(details))

    def score(self, scorer: str, features: "Tensor", text: "Tensor | None") -> tuple[float, dict[str, float]]:
        """Value and details. features: of the sampled frames (n d); text: of the caption (d), for `text_match`."""
        from pyramid_model.metrics.open_clip_model import consistency, text_match, zero_shot

        if scorer == TEXT_MATCH.name:
            assert text is not None, "a clip without a caption is skipped before"
            return text_match(features, text), {"num_frames": len(features)}
        if scorer == CONSISTENCY.name:
            by_frame = consistency(features)
        elif scorer == AESTHETIC.name:
            assert self.head, "the head is loaded if its score is computed"
            by_frame = self.head(features)[:, 0]
        else:
            by_frame = zero_shot(features, *self.questions[scorer], self._clip.logit_scale)
        return float(by_frame.mean()), frame_details(by_frame.tolist(), len(features))


def frame_details(by_frame: Sequence[float], num_frames: int) -> dict[str, float]:
    """Details of a score that is computed for every sampled frame."""
    mean = sum(by_frame) / len(by_frame)
    return {"mean": mean, "min": min(by_frame), "max": max(by_frame), "num_frames": num_frames}
