"""Input of `VideoPipeline.generate`: prompts, seeds, settings, start of the clips, output files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from pyramid_model.generate.offload import Offload
from pyramid_model.generate.prompt import check_prompts
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.text import TextFeatures

Output = Literal["frames", "tensor", "latents"]
MIN_SEED = -(2**63)
RELEASED_384P = GenerationRequest()


@dataclass(frozen=True)
class PromptFeatures:
    """cond: features of the prompts, one row per clip. uncond: of the negative prompt, one row for all clips."""

    cond: TextFeatures
    uncond: TextFeatures


@dataclass(frozen=True)
class ClipBatch:
    """Clips that are generated together, one per prompt; none depends on the others.

    Attributes:
        prompts: what the clips show.
        request: size, length, steps, guidance; default: those of the released 384p model. One latent frame
            gives a picture.
        seeds: one per prompt; empty: 0, 1, 2, …
        image: the first frame of every clip; resized to cover the requested size, then cropped around its centre.
        video: every clip begins with the end of this one, at most half of it: a file, or uint8 frames (t h w 3) at the
            request's fps.
        output: what `Clips.videos` holds: uint8 frames, float tensors in [0, 1], or nothing (latents only).
        paths: files to write instead, one per prompt: `.mp4`, or `.png` for a picture. Frames are written to a
            temporary file, renamed when complete.
        max_memory: bytes of the device that may be used; None: all free memory.
        offload: mode of offloading; None: the fastest that fits into the memory.
        features: result of `VideoPipeline.encode` for these prompts and this request; None: encode them now.

    Raises:
        ValueError: a prompt, a seed, a path or the output is invalid; the message names it and the valid values.
    """

    prompts: Sequence[str]
    request: GenerationRequest = RELEASED_384P
    seeds: Sequence[int] = ()
    image: str | Path | Image.Image | None = None
    video: str | Path | np.ndarray | None = None
    output: Output = "frames"
    paths: Sequence[str] = ()
    max_memory: int | None = None
    offload: Offload | None = None
    features: PromptFeatures | None = None

    def __post_init__(self) -> None:
        check_prompts(self.prompts)
        for name, values in (("seeds", self.seeds), ("paths", self.paths)):
            if values and len(values) != len(self.prompts):
                raise ValueError(f"{len(values)} {name} for {len(self.prompts)} prompts: give one per prompt")
        for seed in self.seeds:
            if not MIN_SEED <= seed < -MIN_SEED:
                raise ValueError(f"seed {seed}: must be a whole number of 64 bits with sign")
        for path in self.paths:
            if not path.endswith((".mp4", ".png")):
                raise ValueError(
                    f"path {path!r}: clips are written as .mp4, pictures as .mp4 or .png; use one of these suffixes"
                )
        if self.request.num_latent_frames > 1 and any(path.endswith(".png") for path in self.paths):
            raise ValueError(
                "a PNG holds one frame: set request.num_latent_frames to 1, or name files that end in .mp4"
            )
        if self.output not in get_args(Output):
            raise ValueError(
                f"output {self.output!r}: use one of {', '.join(get_args(Output))}; for files, set `paths`"
            )

    @property
    def seed_of_each(self) -> Sequence[int]:
        """Seeds, one per prompt."""
        return self.seeds or range(len(self.prompts))
