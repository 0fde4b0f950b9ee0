"""Kinds of captions, and which captions of a kind are used."""

from typing import Literal

from pydantic import Field

from pyramid_model.config import Config

Kind = Literal["human", "short", "dense", "structured", "rewritten"]


class CaptionsOfKind(Config):
    """The captions of one kind that are used. Several in order, the preferred one first, say which captions count."""

    kind: Kind
    hashes: tuple[str, ...] | None = Field(
        default=None,
        description="of the settings and files that determine the captions (`captions.prompt_hash`); null: the newest "
        "caption of each clip, whatever determined it",
    )
