"""Views of a clip: other parts of its time and picture, so that a training sees more than one sample of each clip."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from pyramid_model.config import Config
from pyramid_model.train.buckets import Bucket

if TYPE_CHECKING:
    import numpy as np


class ViewsConfig(Config):
    """Further views of each training clip."""

    count: int = Field(
        default=0,
        ge=0,
        description="views of each training clip beside the clip itself: random parts of its time and picture",
    )
    max_zoom: float = Field(
        default=1.5, ge=1, description="a view shows at least 1 / max_zoom of the picture's height and width"
    )
    flip: bool = Field(
        default=True,
        description="mirror every other view; false where captions say left and right, or where writing is seen",
    )


@dataclass(frozen=True)
class View:
    """A part of a clip.

    zoom: the picture is enlarged by this factor before it is cropped. top, left, start: position of the crop and of the
    first frame, as shares (0 … 1) of the room that there is. flipped: mirrored left to right.
    """

    zoom: float = 1.0
    top: float = 0.5
    left: float = 0.5
    start: float = 0.0
    flipped: bool = False

    @classmethod
    def draw(cls, clip_id: str, number: int, config: ViewsConfig) -> View:
        """View `number` of a clip, from 1; the same in every run. Number 0 is the clip itself."""
        if not number:
            return cls()
        chance = random.Random(f"{clip_id}/{number}")
        zoom, top, left, start = chance.uniform(1, config.max_zoom), chance.random(), chance.random(), chance.random()
        return cls(zoom, top, left, start, config.flip and number % 2 == 0)

    def read(self, uri: str, bucket: Bucket, seconds: float) -> np.ndarray:
        """The frames of this view of one of our clips at the size of a bucket, uint8 RGB (t h w c).

        seconds: duration of the clip.

        Raises:
            ValueError: the clip is too short for the bucket.
            VideoError: the file is missing or cannot be read.
        """
        from pyramid_model.video.video import read_clip  # imports PyAV, which the driver of a step does not need

        height, width = round(bucket.height * self.zoom), round(bucket.width * self.zoom)
        room_s = max(0.0, seconds - bucket.num_frames / bucket.fps)
        frames = read_clip(
            uri,
            height=height,
            width=width,
            fps=bucket.fps,
            num_frames=bucket.num_frames,
            start_s=self.start * room_s,
        )
        top, left = round(self.top * (height - bucket.height)), round(self.left * (width - bucket.width))
        frames = frames[:, top : top + bucket.height, left : left + bucket.width]
        return (frames[:, :, ::-1] if self.flipped else frames).copy()
