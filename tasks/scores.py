"""Scores of clips. The decode pass of the clips step writes them; this step adds those that are missing."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pyramid_model.config import Config
from pyramid_model.metrics.frames import FRAME_SCORES
from tasks.pipeline import run_blocks
from tasks.step import Run, StepResult, step
from tasks.tables import bad_row, content_id, ok_row, pending

VERSION = "1"
LONGER_SIDE = 256  # px of the frames that are scored; the same as for shot detection

Scorer = Literal["motion", "sharpness", "brightness"]


class ScoresConfig(Config):
    """Which scores every clip must have."""

    scorers: tuple[Scorer, ...] = Field(tuple(FRAME_SCORES), description="motion, sharpness, brightness")  # type: ignore[arg-type]
    block_size: int = Field(32, ge=1, description="scores a block")


def score_id(clip_id: str, scorer: str) -> str:
    """Identity of a clip's score: the same for the same frames, scorer and settings of it."""
    return content_id(clip_id, scorer, {"longer_side": LONGER_SIDE}, VERSION)


def score_rows(clip_id: str, frames: np.ndarray, scorers: Sequence[str] = tuple(FRAME_SCORES)) -> list[dict[str, Any]]:
    """Rows of `scores` for one clip. frames: uint8, (t h w) or RGB (t h w 3), the longer side LONGER_SIDE px."""
    details = json.dumps({"num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2]})
    return [
        ok_row(
            {},
            score_id=score_id(clip_id, scorer),
            clip_id=clip_id,
            scorer=scorer,
            value=FRAME_SCORES[scorer](frames),
            details=details,
        )
        for scorer in scorers
    ]


class ClipScorer:
    """Actor: reads each clip once and gives it the scores that it lacks."""

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Rows of `scores`, one an item; the items of one clip follow each other."""
        groups = [list(group) for _, group in itertools.groupby(items, key=lambda item: item["clip_id"])]
        return {"scores": [row for group in groups for row in self._score(group)]}

    def _score(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from pyramid_model.video import VideoError, read_clip

        clip = items[0]
        height, width = scored_size(clip)
        try:
            frames = read_clip(clip["uri"], height=height, width=width)
        except VideoError as err:
            kept = ("score_id", "clip_id", "scorer")
            return [bad_row(item, err, **{name: item[name] for name in kept}) for item in items]
        rows = score_rows(clip["clip_id"], frames, [item["scorer"] for item in items])
        return [row | {"attempt": item["attempt"]} for row, item in zip(rows, items, strict=True)]


def scored_size(clip: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) at which a clip is scored."""
    scale = min(1.0, LONGER_SIDE / max(clip["height"], clip["width"]))
    return max(16, round(clip["height"] * scale)), max(16, round(clip["width"] * scale))


@step
def scores(run: Run, config: ScoresConfig) -> StepResult:
    """Compute the scores that current clips lack."""
    from tasks.clips import current_clips

    clips = current_clips(run, ["clip_id", "uri", "height", "width"]).to_pylist()
    wanted = [
        {"score_id": score_id(clip["clip_id"], scorer), "scorer": scorer} | clip
        for clip in clips
        for scorer in config.scorers
    ]
    todo = pending(run.root, "scores", [row["score_id"] for row in wanted], run.retry_failed)
    return run_blocks(
        run,
        config,
        step="scores",
        step_version=VERSION,
        items=todo.items(wanted, "score_id"),
        worker=ClipScorer,
        worker_args={},
        num_done=todo.num_done,
        block_size=config.block_size,
    )
