"""Settings of a selection: limits, presets, nested sets, quotas, buckets and splits."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pyramid_model.config import NOT_IDENTITY, Config
from pyramid_model.metrics.facts import SCORER_FACTS
from pyramid_model.train.buckets import expand_buckets
from tasks.running.run import StepResult
from tasks.tables.schemas import DUPLICATE_METHODS, DuplicateMethod

# Limits of each `preset`; a recipe may replace each of them, or remove it with `{}`.
PRESETS: dict[str, dict[str, dict[str, float]]] = {
    "pretrain": {
        "duration_s": {"min": 2, "max": 16},
        "motion": {"min_percentile": 2, "max_percentile": 98},
        "aesthetic": {"min": 4.5},
        "text_area": {"max": 0.05},
        "nsfw": {"max": 0.8},
    },
    "finetune": {
        "duration_s": {"min": 4, "max": 10},
        "motion": {"min_percentile": 2, "max_percentile": 98},
        "aesthetic": {"min": 5.0},
        "text_area": {"max": 0.01},
        "nsfw": {"max": 0.8},
    },
}

Preset = Literal["", "pretrain", "finetune"]


class Limits(Config):
    """Bounds of a score, both included. An empty bound has no effect; of two bounds on one side the stricter holds."""

    # In JSON infinity is null: an infinite bound would have the hash, and the selection ids, of no bound.
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    min_percentile: float | None = Field(
        default=None, ge=0, le=100, description="lower bound, as a percentile of all current clips that have the score"
    )
    max_percentile: float | None = Field(default=None, ge=0, le=100, description="upper bound, as such a percentile")

    @model_validator(mode="after")
    def _in_order(self) -> "Limits":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no clip could pass")
        low, high = self.min_percentile, self.max_percentile
        if low is not None and high is not None and low >= high:
            raise ValueError(f"min_percentile {low:g} is not below max_percentile {high:g}: no clip could pass")
        return self

    def check_possible(self, scorer: str) -> None:
        """Raise an error for a bound outside of the range of the scorer; scorers that a recipe defines have no range.

        Raises:
            ValueError: no clip can have such a score, for instance a percentage in place of a share.
        """
        facts = SCORER_FACTS.get(scorer)
        for bound in (self.min, self.max):
            if facts and bound is not None and not facts.can_be(bound):
                raise ValueError(
                    f"thresholds.{scorer}: {bound:g} is outside of its range: {facts.name} is {facts.measures} "
                    f"({facts.range_text})"
                )

    @property
    def binds(self) -> bool:
        """Whether any bound is set."""
        return self != Limits()

    def within(self, wider: "Limits") -> "Limits":
        """Limits with the stricter of each pair of bounds. wider: limits of the next wider set.

        Raises:
            ValueError: one of these bounds is looser than that of the wider set, so that it would have no effect.
        """
        bounds = {}
        for name, sign in (("min", 1), ("max", -1), ("min_percentile", 1), ("max_percentile", -1)):
            bound, wider_bound = getattr(self, name), getattr(wider, name)
            if bound is not None and wider_bound is not None and sign * bound < sign * wider_bound:
                raise ValueError(f"{name} {bound:g} is looser than the {wider_bound:g} of the set before")
            bounds[name] = wider_bound if bound is None else bound
        return Limits(**bounds)


def possible(thresholds: dict[str, Limits]) -> dict[str, Limits]:
    """Return the thresholds after a check that each bound is a possible value of its scorer.

    Raises:
        ValueError: a bound is not a possible value.
    """
    for scorer, limits in thresholds.items():
        limits.check_possible(scorer)
    return thresholds


Thresholds = Annotated[dict[str, Limits], AfterValidator(possible)]  # by scorer
Buckets = Annotated[tuple[str, ...], AfterValidator(expand_buckets)]


class Bounds(Config):
    """Limits of a score as values, both included, percentiles resolved; None: no limit."""

    min: float | None = None
    max: float | None = None


class SelectResult(StepResult):
    """Result of the select step."""

    selection: str = Field(description="id of the selection to train on: the only one, or that of select.train_set")
    sets: dict[str, str] = Field(default={}, description="id of the selection of each nested set, by name")
    thresholds: dict[str, Bounds] = Field(default={}, description="by scorer; percentiles are resolved to values")
    shortage: str = Field(
        default="",
        description="why the selection has too few clips for a training, and what to change; empty: it has enough",
    )


class SetConfig(Config):
    """One of several nested sets: clips of the set before it that also pass these limits, in buckets of its own."""

    name: str = Field(min_length=1, description="name of the set, e.g. 768p")
    buckets: Buckets = Field(min_length=1, description="as in select.buckets")
    thresholds: Thresholds = Field(default={}, description="stricter than those of the set before, which also apply")
    min_frames: int = Field(
        default=1, ge=1, description="frames of the clip at its own rate; select.min_frames also applies"
    )
    max_clips: int | None = Field(default=None, ge=1, description="most training clips")


class SelectConfig(Config):
    """Which clips are selected for training, and their buckets and splits."""

    clips: str = Field(
        default="",
        description="which clips: output of the clips step, part of the id of the selection; empty: the newest clips "
        "of each video",
    )
    versions: dict[str, int] = Field(
        default={},
        description="versions of the tables scores and duplicates to read, as the steps before state them; empty: the "
        "newest",
        json_schema_extra=NOT_IDENTITY,
    )
    preset: Preset = Field(
        default="", description="pretrain or finetune: limits for scores that thresholds does not limit"
    )
    thresholds: Thresholds = Field(
        default={},
        description="limits by scorer, or by duration_s, fps, height, width or aspect of the clip: min, max, "
        "min_percentile, max_percentile, e.g. {motion: {min: 1}}",
    )
    min_frames: int = Field(default=2, ge=1, description="least frames of a clip at its own rate")
    buckets: Buckets = Field(
        default=("384x640x121@24",),
        min_length=1,
        description="training sizes: <height>x<width>x<frames>@<fps>, or all aspect ratios of a size, e.g. 384px121@24",
    )
    max_upscale: float = Field(
        default=1.0, gt=0, description="largest factor by which a clip may be scaled up to its bucket"
    )
    drop_duplicates: tuple[DuplicateMethod, ...] = Field(
        default=DUPLICATE_METHODS,
        description="methods of the duplicates step; of each of their groups one clip is kept",
    )
    sets: tuple[SetConfig, ...] = Field(
        default=(),
        description="nested sets with increasing limits, each with name, buckets, thresholds, min_frames, max_clips",
    )
    train_set: str = Field(default="", description="name of the set that later steps use; empty: the last one")
    sources: dict[str, float] = Field(
        default={},
        description="share of each source in the clips to train on, e.g. {films: 3, phones: 1}; other "
        "sources are dropped",
    )
    max_per_video: int | None = Field(default=None, ge=1, description="most training clips of one video")
    max_clips: int | None = Field(default=None, ge=1, description="most training clips")
    val_fraction: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of the videos without a pinned split that go to the validation split",
    )
    test_fraction: float = Field(default=0.0, ge=0, lt=1, description="the same share for the test split")
    min_val_clips: int = Field(
        default=1, ge=0, description="least validation clips; with fewer, a run stops before training"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        """Add the limits of the preset for scorers that the given thresholds do not name."""
        if not isinstance(given, Mapping) or not PRESETS.get(given.get("preset", "")):
            return given
        return dict(given) | {"thresholds": PRESETS[given["preset"]] | dict(given.get("thresholds") or {})}

    @field_validator("drop_duplicates")
    @classmethod
    def _order_of_methods(cls, methods: tuple[DuplicateMethod, ...]) -> tuple[DuplicateMethod, ...]:
        return tuple(method for method in DUPLICATE_METHODS if method in methods)

    @field_validator("sources")
    @classmethod
    def _positive(cls, sources: dict[str, float]) -> dict[str, float]:
        if bad := {name: weight for name, weight in sources.items() if not 0 < weight < math.inf}:
            wrong = f"weights must be above 0 and finite, and {bad} are not"
            raise ValueError(f"{wrong}: remove a source from select.sources to use none of its clips")
        return sources

    @model_validator(mode="after")
    def _consistent(self) -> "SelectConfig":
        if self.val_fraction + self.test_fraction >= 1:
            both = f"val_fraction {self.val_fraction:g} and test_fraction {self.test_fraction:g}"
            raise ValueError(f"{both} leave no video for training: their sum must be below 1")
        names = [nested.name for nested in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of sets must differ, and they are {names}")
        if self.train_set and self.train_set not in names:
            raise ValueError(f"train_set {self.train_set!r} is none of the sets {names}")
        thresholds = dict(self.thresholds)
        for nested in self.sets:
            try:
                thresholds |= _tightened(thresholds, nested.thresholds)
            except ValueError as err:
                raise ValueError(f"set {nested.name!r}: {err}: each set is part of the set before it") from None
        return self

    def nested(self) -> "list[SelectConfig]":
        """The config of each selection, from the widest set to the strictest; without sets only this config.

        Each config has the sets up to its own and no later ones, so that a change of a stricter set changes no id of a
        wider set.
        """
        settings = self.model_dump() | {"train_set": ""}
        return [
            type(self).model_validate(settings | {"sets": settings.get("sets", ())[:count]})
            for count in range(1, max(1, len(self.sets)) + 1)
        ]

    def rules(self) -> "Rules":
        """The rules of the last set, or of a selection without sets."""
        thresholds = dict(self.thresholds)
        for nested in self.sets:
            thresholds |= _tightened(thresholds, nested.thresholds)
        last = self.sets[-1] if self.sets else None
        return Rules(
            name=last.name if last else "",
            thresholds={name: limits for name, limits in thresholds.items() if limits.binds},
            min_frames=max(self.min_frames, *(nested.min_frames for nested in self.sets), 1),
            buckets=last.buckets if last else self.buckets,
            max_clips=min(
                (most for most in (self.max_clips, *(nested.max_clips for nested in self.sets)) if most), default=None
            ),
        )

    @property
    def limited(self) -> list[str]:
        """Scores and figures of the clip that have a limit in any set."""
        return sorted({name for config in self.nested() for name in config.rules().thresholds})

    @property
    def place_to_train(self) -> int:
        """Index into `nested()` of the selection that later steps use."""
        names = [nested.name for nested in self.sets]
        return names.index(self.train_set) if self.train_set else max(0, len(names) - 1)


class Rules(Config):
    """The rules of one set, including those of the sets before it."""

    name: str
    thresholds: dict[str, Limits]
    min_frames: int
    buckets: tuple[str, ...]
    max_clips: int | None


def _tightened(before: Mapping[str, Limits], of_set: Mapping[str, Limits]) -> dict[str, Limits]:
    """Limits of a set, combined with those of the set before."""
    tighter = {}
    for scorer, limits in of_set.items():
        try:
            tighter[scorer] = limits.within(before.get(scorer, Limits()))
        except ValueError as err:
            raise ValueError(f"{scorer}: {err}") from None
    return tighter
