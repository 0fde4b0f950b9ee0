"""Latents: every selected clip through the VAE encoder, at the size of its bucket, stored raw (not normalised).

Clips are read by threads while the VAE works on the ones before.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pyramid_model.config import Config
from pyramid_model.train.buckets import parse_bucket
from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import find_model, load_vae
from tasks.running.busy import Busy
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.step import step
from tasks.running.work import Item, PerItemWork, Produced
from tasks.tables.current import selected_clips
from tasks.tables.delta import bad_row, content_id, crc32, ok_row
from tasks.tables.files import check_unchanged
from tasks.tables.pending import pending

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

VERSION = "1"


class LatentsConfig(Config):
    """Which clips are encoded, and by which VAE."""

    selection: str = Field("", description="id of the selection; empty: the newest")
    vae: str = Field("", description="folder of the VAE; empty: the newest trained in this root")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type in the table; bfloat16 halves its size")
    parts: Literal["mean", "mean,logvar"] = Field(
        "mean", description="stored values; with logvar, at twice the size, a training can sample the posterior"
    )
    window: int | None = Field(None, ge=8, description="frames that are encoded at a time; null: whole clips")
    batch_size: int = Field(1, ge=1, description="clips of one bucket that are encoded at a time")
    decode_threads: int = Field(1, ge=1, description="clips that are read at the same time while the VAE works")
    block_size: int = Field(8, ge=1, description="clips in a block, which is computed and committed together")
    num_cpus: float = Field(0.5, gt=0, description="CPUs of an actor")
    num_gpus: float = Field(0, ge=0, description="GPUs of an actor; above 0 encodes on the GPU")


class LatentEncoder:
    """Actor: loads the VAE once, then encodes clips. A clip that cannot be read becomes a failed row."""

    def __init__(self, vae: ModelFolder, config: LatentsConfig):
        self.device = "cuda" if config.num_gpus else "cpu"
        self.vae = load_vae(vae.uri, self.device)
        self.vae_hash, self.config = vae.hash, config
        norm = self.vae.config.latent_norm
        self.latent_norm = norm.model_dump_json() if norm else ""
        self.busy = Busy()

    def __call__(self, items: list[Item]) -> Produced:
        """One row a clip."""
        by_bucket: dict[str, list[dict[str, Any]]] = {}
        for item in items:
            by_bucket.setdefault(item["bucket"], []).append(item)
        size = self.config.batch_size
        batches = [found[first : first + size] for found in by_bucket.values() for first in range(0, len(found), size)]
        rows = [row for batch in self._read_ahead(batches) for row in self._rows(batch)]
        place = {item["latent_id"]: number for number, item in enumerate(items)}
        rows.sort(key=lambda row: place[row["latent_id"]])
        return Produced({"latents": rows}, self.busy.spent("vae"))

    def _read_ahead(self, batches: "list[list[dict[str, Any]]]") -> "Iterator[list[Read]]":
        """Batches with their frames; while one is worked on, the clips of the next ones are read."""
        ahead = 1 + -(-self.config.decode_threads // self.config.batch_size)  # batches
        with ThreadPoolExecutor(self.config.decode_threads, "decode") as threads:
            waiting: deque[list[Future[Read]]] = deque()
            for batch in batches:
                waiting.append([threads.submit(_read, item) for item in batch])
                if len(waiting) > ahead:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]

    def _rows(self, batch: "list[Read]") -> list[dict[str, Any]]:
        """Rows of the clips of one batch."""
        frames = {read.item["latent_id"]: read.frames for read in batch if read.frames is not None}
        with self.busy:
            latents = self.encode(list(frames.values())) if frames else []
        by_id = dict(zip(frames, latents, strict=True))
        return [self._row(read, by_id.get(read.item["latent_id"])) for read in batch]

    def _row(self, read: "Read", latent: Any) -> dict[str, Any]:
        from tasks.tables.blobs import tensor_bytes

        item, config = read.item, self.config
        columns = {name: item[name] for name in ("latent_id", "clip_id", "bucket")} | {"vae_hash": self.vae_hash}
        if read.error:
            return bad_row(item, read.error, **columns)
        if not latent.isfinite().all():
            why = "not_finite", f"the VAE gives NaN or Inf for clip {item['clip_id']}"
            return bad_row(item, why, **columns)
        data = tensor_bytes(latent, config.dtype)
        stored = {"latent": data, "crc32": crc32(data), "shape": list(latent.shape), "dtype": config.dtype}
        return ok_row(item, **columns, **stored, parts=config.parts, latent_norm=self.latent_norm)

    def encode(self, frames: "list[np.ndarray]") -> "list[Tensor]":
        """What is stored of clips of one size: posterior means, and log-variances if wanted; not normalised.

        frames: uint8 (t h w 3) each. Returns (c t h w) each, or (2c t h w) with the log-variances behind the means.
        """
        import torch

        from pyramid_model.vae.pixels import to_unit_range

        pixels = torch.stack([to_unit_range(clip) for clip in frames])
        with torch.inference_mode():
            posterior = self.vae.encode(pixels.to(self.device), self.config.window)
        parts = [posterior.mean] + [posterior.logvar] * (self.config.parts == "mean,logvar")
        return list(torch.cat(parts, dim=1).cpu())


@dataclass(frozen=True)
class Read:
    """A clip's frames, uint8 (t h w 3), or why there are none."""

    item: dict[str, Any]
    frames: "np.ndarray | None" = None
    error: Exception | None = None


def _read(item: dict[str, Any]) -> Read:
    from pyramid_model.video.video import VideoError, read_clip

    bucket = parse_bucket(item["bucket"])
    size = {"height": bucket.height, "width": bucket.width, "fps": bucket.fps, "num_frames": bucket.num_frames}
    try:
        check_unchanged(item)
        return Read(item, read_clip(item["uri"], **size))
    except (VideoError, ValueError) as err:
        return Read(item, error=err)


class LatentsResult(StepResult):
    """What the latents step hands on."""

    vae: str = Field(description="folder of the VAE that encoded the clips")
    vae_hash: str = Field(description="hash of its weights")


@step
def latents(run: Run, config: LatentsConfig) -> LatentsResult:
    """Encode every selected clip that this VAE has not encoded yet.

    Raises:
        StepError: there is no VAE.
    """
    vae = find_model(run, "vae", config.vae)
    clips = selected_clips(run.root, config.selection, columns=("clip_id", "uri", "size_bytes", "crc32")).to_pylist()
    wanted = [
        clip | {"latent_id": latent_id(clip["clip_id"], vae.hash, clip["bucket"], config.dtype, config.parts)}
        for clip in clips
    ]
    todo = pending(run.root, "latents", [item["latent_id"] for item in wanted], run.retry_failed)
    # Clips of one bucket follow each other, so that blocks and batches are of one size.
    items = sorted(todo.items(wanted, "latent_id"), key=lambda item: item["bucket"])
    work = PerItemWork(
        step="latents",
        version=VERSION,
        config=config,
        worker=LatentEncoder,
        done_table="latents",
        worker_args={"vae": vae, "config": config},
        block_size=config.block_size,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    result = run_blocks(run, work, items, todo.num_done)
    note = result.note or _throughput(result)
    return LatentsResult(**dict(result, note=note), vae=vae.uri, vae_hash=vae.hash)


def _throughput(result: StepResult) -> str:
    """How fast it went, and how much of the time the VAE had to wait for frames or for the tables."""
    busy_s, span_s = result.timings["vae_busy_s"], result.timings["vae_span_s"]
    if not span_s:
        return ""
    return f"{result.num_ok / span_s:.3g} clips a second and actor, VAE at work {busy_s / span_s:.0%} of the time"


def latent_id(clip_id: str, vae_hash: str, bucket: str, dtype: str, parts: str = "mean") -> str:
    """Identity of the latent of a clip."""
    return content_id(clip_id, vae_hash, bucket, dtype, *([] if parts == "mean" else [parts]))
