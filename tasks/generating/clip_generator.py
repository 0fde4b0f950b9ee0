"""Actor of the generate step: it loads one pipeline and samples one block of prompts after another."""

import contextlib
import json
import re
import resource
import sys
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from pydantic import Field, model_validator

from pyramid_model.config import Config
from pyramid_model.generate.byte_sizes import format_bytes, parse_bytes
from tasks.generating.loras import add_loras
from tasks.models.folders import load_dit, load_encoder, load_vae, pipeline_of, read_record
from tasks.running.work import Produced
from tasks.tables import storage
from tasks.tables.rows import Row, bad_row, ok_row
from tasks.tables.url_secrets import from_environment
from tasks.tables.web_hosts import addresses_now

if TYPE_CHECKING:
    from pyramid_model.generate.pipeline import Clips, VideoPipeline
    from tasks.generating.config import GenerateConfig

SLUG_LENGTH = 60


class GenerationItem(TypedDict):
    """One clip to make; a row of `generations` repeats these columns. settings: JSON."""

    generation_id: str
    prompt: str
    prompt_rewritten: str
    seed: int
    settings: str


class Columns(GenerationItem):
    """Columns of a `generations` row that do not depend on success. weights_hash: of the DiT."""

    weights_hash: str


class GivenFiles(NamedTuple):
    """Local paths of the image and the video that clips start with; None where the settings name none."""

    image: str | None
    video: str | None


class ModelFolders(Config):
    """The models that generate: three folders, or one variant of a directory that holds them all."""

    dit: str = ""
    vae: str = ""
    encoder: str = ""
    directory: str = ""
    variant: str = Field(default="", description="DiT in the directory; may be empty if there is only one")

    @model_validator(mode="after")
    def _check(self) -> "ModelFolders":
        if not self.directory and not (self.dit and self.vae and self.encoder):
            raise ValueError("name the folders dit, vae and encoder, or a directory that holds them all")
        return self


class ClipGenerator:
    """Actor: loads the models once, then samples one block of prompts after another."""

    def __init__(
        self,
        models: ModelFolders,
        weights_hash: str,
        config: "GenerateConfig",
        folder: str,
        device: str,
        progress: str,
    ):
        import torch

        from pyramid_model.generate.device import FLOAT16_WARNING

        torch.set_num_threads(max(1, round(config.num_cpus)))
        self.weights_hash, self.config, self.folder = weights_hash, config, folder
        self.progress = f"{progress}-{uuid.uuid4().hex}"
        self.num_units = 0
        self.pipeline = load_pipeline(models, config.dtype, device)
        add_loras(self.pipeline.dit, config.loras)
        if config.compile:
            self.pipeline.compile()
        self.notes = (FLOAT16_WARNING,) if config.dtype == "float16" else ()

    def __call__(self, items: Sequence[GenerationItem]) -> Produced:
        """Generate clips; one row per clip. A clip with NaN or Inf gets a failed row; the others are sampled again."""
        from pyramid_model.generate.pipeline import NotFiniteError

        rows, remaining = [], list(items)
        while remaining:
            try:
                clips = self.generate(remaining)
            except NotFiniteError as err:
                bad = [remaining[sample] for sample in err.samples]
                rows += [bad_row(item, ("not_finite", str(err)), **self.columns(item)) for item in bad]
                remaining = [item for item in remaining if item not in bad]
                continue
            rows += [
                self.row(item, uri, clips, len(remaining)) for item, uri in zip(remaining, clips.videos, strict=True)
            ]
            break
        return Produced({"generations": rows})

    def generate(self, items: Sequence[GenerationItem]) -> "Clips":
        """Generate the clips of these items and write them to their files."""
        from pyramid_model.generate.batch import ClipBatch

        config = self.config
        suffix = ".png" if config.request.num_latent_frames == 1 else ".mp4"
        names = [file_name(item["prompt"], item["seed"], item["generation_id"], suffix) for item in items]
        with given_files(config) as given:
            batch = ClipBatch(
                [item["prompt_rewritten"] or item["prompt"] for item in items],
                config.request,
                [item["seed"] for item in items],
                paths=[f"{self.folder}/{name}" for name in names],
                max_memory=parse_bytes(config.max_memory) if config.max_memory else None,
                offload=None if config.offload == "auto" else config.offload,
                image=given.image,
                video=given.video,
            )
            return self.pipeline.generate(batch, on_unit=self.tell)

    def tell(self, done: int, total: int) -> None:
        """Write the number of units that this actor has finished to its progress file, which the driver reads."""
        self.num_units += 1
        storage.write_bytes(self.progress, json.dumps(self.num_units).encode())

    def columns(self, item: GenerationItem) -> Columns:
        """Columns of a `generations` row that do not depend on success."""
        return {
            "generation_id": item["generation_id"],
            "prompt": item["prompt"],
            "prompt_rewritten": item["prompt_rewritten"],
            "seed": item["seed"],
            "settings": item["settings"],
            "weights_hash": self.weights_hash,
        }

    def row(self, item: GenerationItem, uri: str, clips: "Clips", batch: int) -> Row:
        """Row of a clip that was written."""
        plan = clips.plan
        timings: Row = {}
        timings |= clips.timings
        timings |= {"clips_in_batch": batch, "device": self.pipeline.device.type, "offload": plan.offload}
        if plan.tile:
            timings["tile"] = f"{plan.tile.height}x{plan.tile.width} px"
        timings["planned_bytes"] = plan.peaks
        plan_note = f"within {self.config.max_memory}, at most {format_bytes(plan.peak)} planned: {plan.summary}"
        plan_notes = [plan_note] if self.config.max_memory else []
        return ok_row(
            item,
            **self.columns(item),
            uri=uri,
            size_bytes=storage.size_bytes(uri),
            crc32=storage.file_crc32(uri),
            timings=json.dumps(timings),
            notes=[*self.notes, *clips.notes, *plan_notes],
            peak_memory_bytes=_peak_memory_bytes(self.pipeline.device.type),
        )


@contextlib.contextmanager
def given_files(config: "GenerateConfig") -> Iterator[GivenFiles]:
    """Local copies of the image and the video that clips start with."""
    with contextlib.ExitStack() as inputs:
        image, video = (
            inputs.enter_context(storage.reading(uri, hosts=addresses_now(uri))) if uri else None
            for uri in map(from_environment, (config.image, config.video))
        )
        yield GivenFiles(image, video)


def load_pipeline(models: ModelFolders, dtype: str, device: str) -> "VideoPipeline":
    """The models as one object. An empty dtype means bfloat16 for a directory, float32 for the champion."""
    from pyramid_model.generate.device import torch_dtype
    from pyramid_model.generate.pipeline import VideoPipeline

    if models.directory:
        return VideoPipeline.from_pretrained(models.directory, models.variant, dtype=dtype or "bfloat16", device=device)
    precision = torch_dtype(dtype or "float32")
    encoder_dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    dit, vae = load_dit(models.dit).to(precision), load_vae(models.vae).to(precision)
    encoder = load_encoder(models.encoder, "cpu", encoder_dtype)
    return pipeline_of(read_record(models.dit), dit, vae, encoder, device)


def file_name(prompt: str, seed: int, generation_id: str, suffix: str = ".mp4") -> str:
    """Unique file name of a clip that starts with words of its prompt."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:SLUG_LENGTH].strip("-") or "clip"
    return f"{slug}-{seed}-{generation_id[:8]}{suffix}"


def _peak_memory_bytes(device: str) -> int:
    """Peak memory of this process: on the GPU if it generates there, otherwise in RAM."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
