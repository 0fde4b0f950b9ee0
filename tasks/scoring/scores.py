"""Scores of clips. The decode pass of the clips step writes scores; this step adds the missing ones."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow.compute as pc
from pydantic import Field, field_validator

from pyramid_model.config import NOT_IDENTITY
from pyramid_model.metrics.scorers import IN_DECODE_PASS, SCORERS, ClipView
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult, lineage, merged
from tasks.running.step import step
from tasks.running.work import PerItemWork, Produced
from tasks.scoring import model_scores
from tasks.scoring.model_scores import ModelScoresConfig
from tasks.scoring.newest import make_newest, replaced_scores
from tasks.tables.appending import append_again
from tasks.tables.content_ids import content_id
from tasks.tables.delta import table_version
from tasks.tables.pending import pending
from tasks.tables.rows import ClipFile, Row, as_rows, bad_row, ok_row

VERSION = "1"
LONGER_SIDE = 256  # px of the frames that are scored; the same as for shot detection


class ScoresConfig(ModelScoresConfig):
    """Scores that every clip must have: `scorers` lists those without a model; each with a model has a section."""

    clips: str = Field(
        default="", description="clips to use, as an output of the clips step; empty: the newest clips of each video"
    )
    scorers: tuple[str, ...] = Field(
        default=IN_DECODE_PASS, description=f"scorers without a model: {', '.join(SCORERS)}"
    )
    block_size: int = Field(
        default=32,
        ge=1,
        description="scores in a block, which is computed and committed together",
        json_schema_extra=NOT_IDENTITY,
    )

    @field_validator("scorers")
    @classmethod
    def _known(cls, scorers: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in scorers if name not in SCORERS]:
            names = ", ".join(SCORERS)
            raise ValueError(f"no scorer is called {', '.join(unknown)}: there are {names} (scores.scorers)")
        return tuple(dict.fromkeys(scorers))

    @property
    def computed(self) -> set[str]:
        """Names of all scores that new clips get."""
        return {*IN_DECODE_PASS, *self.scorers, *self.by_models}


def score_id(clip_id: str, scorer: str) -> str:
    """Id of a score: a hash of the clip, the scorer and its settings."""
    return content_id(clip_id, scorer, {"longer_side": LONGER_SIDE}, VERSION)


def score_rows(clip_id: str, clip: ClipView, scorers: Sequence[str] = IN_DECODE_PASS) -> list[Row]:
    """Rows of `scores` for one clip."""
    num_frames, height, width = clip.frames.shape
    rows = []
    for scorer in scorers:
        value, details = SCORERS[scorer](clip)
        details = json.dumps({"num_frames": num_frames, "height": height, "width": width, **details})
        ids = {"score_id": score_id(clip_id, scorer), "clip_id": clip_id, "scorer": scorer}
        rows.append(ok_row({}, **ids, value=value, details=details))
    return rows


class ScoreItem(ClipFile):
    """Work item of `ClipScorer`: a clip and the id of its score."""

    score_id: str
    scorer: str
    attempt: int


class ClipScorer:
    """Actor: reads each clip once and computes its missing scores."""

    def __call__(self, items: Sequence[ScoreItem]) -> Produced:
        """Rows of `scores`, one per item; the items of one clip follow each other."""
        groups = [list(group) for _, group in itertools.groupby(items, key=lambda item: item["clip_id"])]
        return Produced({"scores": [row for group in groups for row in self._score(group)]})

    def _score(self, items: Sequence[ScoreItem]) -> list[Row]:
        from pyramid_model.video.video import VideoError

        clip = items[0]
        try:
            view = clip_view(clip)
        except VideoError as err:
            columns = ("score_id", "clip_id", "scorer")
            return [bad_row(item, err, **{name: item[name] for name in columns}) for item in items]
        rows = score_rows(clip["clip_id"], view, [item["scorer"] for item in items])
        return [row | {"attempt": item["attempt"]} for row, item in zip(rows, items, strict=True)]


def clip_view(clip: ClipFile) -> ClipView:
    """Input of the scorers, read from the file of a clip.

    Raises:
        VideoError: the file is missing, or is not a clip that this pipeline cut.
    """
    import cv2
    import numpy as np

    from pyramid_model.video.video import read_clip

    height, width = scored_size(clip["height"], clip["width"])
    frames = read_clip(clip["uri"], height=height, width=width)
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    return ClipView(gray, clip["fps_num"] / clip["fps_den"], clip["uri"])


def scored_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a clip of that size is scored."""
    scale = min(1.0, LONGER_SIDE / max(height, width))
    return max(16, round(height * scale)), max(16, round(width * scale))


@step
def scores(run: Run, config: ScoresConfig) -> StepResult:
    """Compute the scores that current clips lack.

    Raises:
        StepError: weights of a model are missing or do not fit its settings; raised before anything is computed.
    """
    from tasks.tables.current import current_clips

    clips = as_rows(current_clips(run.root, list(ClipFile.__annotations__), config.clips), ClipFile)
    todo = _pending(run, config, clips)
    plan = model_scores.planned(run, config, clips)
    work = PerItemWork(
        step="scores",
        version=VERSION,
        config=config,
        worker=ClipScorer,
        done_table="scores",
        since={"scores": todo.version},
        block_size=config.block_size,
    )
    without_models = run_blocks(run, work, todo.items, todo.num_done)
    by_models, versions = model_scores.run_planned(run, plan)
    results = [without_models, *by_models]
    settings = lineage(run, "scores", VERSION, config)
    num_again = append_again(run.root, "scores", todo.replaced, settings)
    clip_ids = [clip["clip_id"] for clip in clips]
    num_back, versions["scores"] = make_newest(run, model_scores.planned_score_ids(plan), clip_ids, settings)
    note = f"{num_again + num_back} scores are back to those of earlier settings" if num_again + num_back else ""
    result = merged(results, note) if note or len(results) > 1 else results[0]
    # Another run may add scores at any time; the duplicates and select steps of this run read these versions.
    return type(result).model_validate(dict(result, versions=result.versions | versions))


@dataclass
class Todo:
    """Scores without a model of the current clips.

    Args:
        items: those that have no row; the items of a clip follow each other.
        replaced: ids of those that have a row which is not the newest of its clip and scorer.
        num_done: number of those that have a row.
        version: of the table that was read.
    """

    items: list[ScoreItem] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    num_done: int = 0
    version: int = -1


def _pending(run: Run, config: ScoresConfig, clips: Sequence[ClipFile]) -> Todo:
    """What has to be computed and appended again. Memory holds the ids of one scorer at a time."""
    todo = Todo(version=table_version(run.root, "scores"))
    clip_ids = [clip["clip_id"] for clip in clips]
    for scorer in config.scorers:
        ids = {score_id(clip["clip_id"], scorer): clip for clip in clips}
        missing = pending(run.root, "scores", ids, run.retry_failed, pc.field("scorer") == scorer)
        todo.num_done += missing.num_done
        items: list[ScoreItem] = [
            {**ids[new_id], "score_id": new_id, "scorer": scorer, "attempt": attempt}
            for new_id, attempt in missing.attempts.items()
        ]
        todo.items += items
        replaced = replaced_scores(run.root, scorer, list(ids))
        todo.replaced += [row_id for row_id in replaced if row_id not in missing.attempts]
    place = {clip_id: number for number, clip_id in enumerate(clip_ids)}
    todo.items.sort(key=lambda item: place[item["clip_id"]])
    return todo
