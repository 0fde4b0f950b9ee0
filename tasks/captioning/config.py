"""Settings, work items and result of the captions step."""

from typing import TypedDict

from pydantic import Field, model_validator

from pyramid_model.captioning.question import FrameSampling
from pyramid_model.config import NOT_IDENTITY, CaptionsOfKind, Config, Kind
from tasks.captioning.endpoint import EndpointConfig
from tasks.models.vision_models import VisionModelConfig
from tasks.running.run import StepResult

VERSION = "1"
HUMAN: Kind = "human"
REWRITTEN: Kind = "rewritten"
STRUCTURED: Kind = "structured"


class CaptionItem(TypedDict):
    """A caption that a run wants, as the step's work item; each way to get captions adds keys of its own.

    decided_by: hash of the settings and files that determine the caption, besides the clip.
    """

    caption_id: str
    clip_id: str
    kind: Kind
    decided_by: str


class CaptionsConfig(Config):
    """Kinds of captions, and the files or models that they come from."""

    selection: str = Field(default="", description="id of the selection; empty: the newest")
    kind: Kind | tuple[Kind, ...] = Field(
        default="human",
        description="human: from a caption file; short, dense, structured: by a model that sees the clip; rewritten: "
        "by a model, from another caption. For several give a list, the preferred one first",
    )
    sidecar: str = Field(
        default="",
        description="caption file, a CSV with file, start_s, end_s, text; empty: `captions` of each source.yaml",
    )
    min_overlap: float = Field(
        default=0.3, gt=0, le=1, description="share of a clip's duration that its caption must cover"
    )
    language: str = Field(
        default="en",
        description="language of captions, two letters; a model's text in another language fails; empty: any",
    )
    block_size: int = Field(
        default=64,
        ge=1,
        description="clips in a block, which is computed and committed together",
        json_schema_extra=NOT_IDENTITY,
    )
    local: VisionModelConfig | None = Field(
        default=None, description="model that writes captions in Ray actors; null: none"
    )
    endpoint: EndpointConfig | None = Field(
        default=None, description="model that writes captions, on a server; null: none"
    )
    frames: FrameSampling = Field(default=FrameSampling(), description="which frames of a clip the model gets")
    instructions: dict[Kind, str] = Field(
        default={}, description="your instructions for the model, by kind, in place of the default ones"
    )
    rewrite_from: Kind = Field(
        default="human", description="kind of caption that is rewritten for the kind `rewritten`"
    )
    max_repetition: float = Field(
        default=0.3, ge=0, le=1, description="largest share of repeated 4-word sequences; a caption with more fails"
    )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The wanted kinds, the preferred one first."""
        return (self.kind,) if isinstance(self.kind, str) else self.kind

    @property
    def by_model(self) -> tuple[Kind, ...]:
        """The wanted kinds that a model writes."""
        return tuple(kind for kind in self.kinds if kind != HUMAN)

    @model_validator(mode="after")
    def _check(self) -> "CaptionsConfig":
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kind {list(self.kinds)}: give at least one kind, and each kind once")
        if self.by_model and (self.local is None) == (self.endpoint is None):
            raise ValueError(
                f"{', '.join(self.by_model)} captions are written by a model: set one of captions.local.name (in Ray "
                "actors) and captions.endpoint with base_url and model (an OpenAI-compatible server)"
            )
        if self.rewrite_from == REWRITTEN:
            raise ValueError("rewrite_from 'rewritten': give the kind of the captions to rewrite, such as dense")
        return self


class Usage(Config):
    """Answers, tokens and cost of the captions that a run made with a model."""

    num_asked: int = Field(description="answers that were requested")
    num_reused: int = Field(description="answers of an earlier run that were used again")
    num_prompt_tokens: int
    num_completion_tokens: int
    cost_usd: float


class CaptionsResult(StepResult):
    """Result of the captions step."""

    captions: tuple[CaptionsOfKind, ...] = Field(description="which captions, as `captions` of later steps takes it")
    usage: Usage | None = Field(default=None, description="None if no model writes captions")
