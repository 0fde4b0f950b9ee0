"""Step `latents`: encode every selected clip with the VAE at the size of its bucket. Latents are not normalised.

Threads read the next clips while the VAE encodes a batch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict

from pydantic import Field

from pyramid_model.config import NOT_IDENTITY, Config
from pyramid_model.train.buckets import parse_bucket
from pyramid_model.train.views import ViewsConfig
from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import find_model, load_vae
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.step import step
from tasks.running.stopwatch import Stopwatch
from tasks.running.work import PerItemWork, Produced
from tasks.tables import storage
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.current import selected_clips
from tasks.tables.pending import pending
from tasks.tables.rows import Row, SelectedClipRow, as_rows, bad_row, ok_row

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

VERSION = "2"


class LatentsConfig(Config):
    """The clips to encode, and the VAE."""

    selection: str = Field(default="", description="id of the selection; empty: the newest")
    vae: str = Field(default="", description="folder of the VAE; empty: the newest trained in this root")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type in the table; bfloat16 halves its size"
    )
    parts: Literal["mean", "mean,logvar"] = Field(
        default="mean", description="stored values; with logvar, at twice the size, a training can sample the posterior"
    )
    views: ViewsConfig = Field(default=ViewsConfig(), json_schema_extra=NOT_IDENTITY)  # each has an id of its own
    window: int | None = Field(default=None, ge=8, description="frames that are encoded at a time; null: whole clips")
    batch_size: int = Field(
        default=1, ge=1, description="clips of one bucket that are encoded at a time", json_schema_extra=NOT_IDENTITY
    )
    decode_threads: int = Field(
        default=1,
        ge=1,
        description="clips that are read at the same time while the VAE works",
        json_schema_extra=NOT_IDENTITY,
    )
    block_size: int = Field(
        default=8,
        ge=1,
        description="clips in a block, which is computed and committed together",
        json_schema_extra=NOT_IDENTITY,
    )
    num_cpus: float = Field(default=0.5, gt=0, description="CPUs of an actor", json_schema_extra=NOT_IDENTITY)
    num_gpus: float = Field(
        default=0, ge=0, description="GPUs of an actor; above 0 encodes on the GPU", json_schema_extra=NOT_IDENTITY
    )


class LatentItem(TypedDict):
    """Work item of `LatentEncoder`: a selected clip and the id of its latent."""

    latent_id: str
    clip_id: str
    uri: str
    size_bytes: int
    crc32: int
    bucket: str
    view: int
    seconds: float


class LatentEncoder:
    """Actor: loads the VAE once, then encodes clips. A clip that cannot be read becomes a failed row."""

    def __init__(self, vae: ModelFolder, config: LatentsConfig):
        self.device = "cuda" if config.num_gpus else "cpu"
        self.vae = load_vae(vae.uri, self.device, vae.hash)
        self.vae_hash, self.config = vae.hash, config
        norm = self.vae.config.latent_norm
        self.latent_norm = norm.model_dump_json() if norm else ""
        self.stopwatch = Stopwatch()

    def __call__(self, items: Sequence[LatentItem]) -> Produced:
        """One row per clip."""
        by_bucket: dict[str, list[LatentItem]] = {}
        for item in items:
            by_bucket.setdefault(item["bucket"], []).append(item)
        size = self.config.batch_size
        batches = [clips[start : start + size] for clips in by_bucket.values() for start in range(0, len(clips), size)]
        rows = [row for batch in self._read_ahead(batches) for row in self._rows(batch)]
        position = {item["latent_id"]: number for number, item in enumerate(items)}
        rows.sort(key=lambda row: position[str(row["latent_id"])])
        return Produced({"latents": rows}, self.stopwatch.spent("vae"))

    def _read_ahead(self, batches: list[list[LatentItem]]) -> "Iterator[list[ReadClip]]":
        """Batches with their frames. Threads read the next batches while the caller works on one."""
        num_ahead = 1 + -(-self.config.decode_threads // self.config.batch_size)  # batches
        with ThreadPoolExecutor(self.config.decode_threads, "decode") as threads:
            reads: deque[list[Future[ReadClip]]] = deque()
            for batch in batches:
                reads.append([threads.submit(_read, item, self.config.views) for item in batch])
                if len(reads) > num_ahead:
                    yield [future.result() for future in reads.popleft()]
            while reads:
                yield [future.result() for future in reads.popleft()]

    def _rows(self, batch: "list[ReadClip]") -> list[Row]:
        """Rows of the clips of one batch."""
        frames = {read.item["latent_id"]: read.frames for read in batch if read.frames is not None}
        with self.stopwatch:
            latents = self.encode(list(frames.values())) if frames else []
        by_id = dict(zip(frames, latents, strict=True))
        return [self._row(read, by_id.get(read.item["latent_id"])) for read in batch]

    def _row(self, read: "ReadClip", latent: "Tensor | None") -> Row:
        from tasks.tables.blobs import tensor_bytes

        item, config = read.item, self.config
        names = ("latent_id", "clip_id", "bucket", "view")
        columns = {name: item[name] for name in names} | {"vae_hash": self.vae_hash}
        if read.error:
            return bad_row(item, read.error, **columns)
        assert latent is not None, "a clip that was read has a latent"
        if not latent.isfinite().all():
            error = "not_finite", f"the VAE gives NaN or Inf for clip {item['clip_id']}"
            return bad_row(item, error, **columns)
        data = tensor_bytes(latent, config.dtype)
        stored = {"latent": data, "crc32": crc32(data), "shape": list(latent.shape), "dtype": config.dtype}
        return ok_row(item, **columns, **stored, parts=config.parts, latent_norm=self.latent_norm)

    def encode(self, frames: "list[np.ndarray]") -> "list[Tensor]":
        """Posterior means of clips of one size, and the log-variances with `parts: mean,logvar`; not normalised.

        frames: uint8 (t h w 3) per clip. Returns (c t h w) per clip, or (2c t h w): means, then log-variances.
        """
        import torch

        from pyramid_model.vae.pixels import to_unit_range

        pixels = torch.stack([to_unit_range(clip) for clip in frames])
        with torch.inference_mode():
            posterior = self.vae.encode(pixels.to(self.device), self.config.window)
        parts = [posterior.mean] + [posterior.logvar] * (self.config.parts == "mean,logvar")
        return list(torch.cat(parts, dim=1).cpu())


@dataclass(frozen=True)
class ReadClip:
    """Frames of a clip, uint8 (t h w 3), or the error that prevented reading it."""

    item: LatentItem
    frames: "np.ndarray | None" = None
    error: Exception | None = None


def _read(item: LatentItem, views: ViewsConfig) -> ReadClip:
    from pyramid_model.train.views import View
    from pyramid_model.video.video import VideoError

    view = View.draw(item["clip_id"], item["view"], views)
    try:
        check_unchanged(item["uri"], item["size_bytes"], item["crc32"])
        return ReadClip(item, view.read(item["uri"], parse_bucket(item["bucket"]), item["seconds"]))
    except (VideoError, ValueError) as err:
        return ReadClip(item, error=err)


def check_unchanged(uri: str, size_bytes: int | None, checksum: int | None) -> None:
    """Compare the file of a clip with the size and the CRC-32 of its row, which are null in old rows.

    Raises:
        VideoError: the file is missing, or has changed since it was cut.
    """
    from pyramid_model.video.video import VideoError  # imports PyAV, which the driver of a step does not need

    remedy = "cut it again: pyramid curate --retry-failed, or put the file back"
    try:
        fs, path = storage.filesystem(uri)
        actual = fs.size(path)
    except FileNotFoundError as err:
        raise VideoError("missing", f"{uri} is missing: {remedy}") from err
    if size_bytes not in (None, actual):
        raise VideoError("clip_changed", f"{uri} has {actual} bytes, its row says {size_bytes}: {remedy}")
    if checksum is not None and (actual_checksum := storage.file_crc32(uri)) != checksum:
        raise VideoError(
            "clip_changed", f"{uri}: crc32 is {actual_checksum:08x}, its row says {checksum:08x}: {remedy}"
        )


class LatentsResult(StepResult):
    """Result of the latents step."""

    vae: str = Field(description="folder of the VAE that encoded the clips")
    vae_hash: str = Field(description="hash of the weights of the VAE")


@step
def latents(run: Run, config: LatentsConfig) -> LatentsResult:
    """Encode those selected clips that have no latent of this VAE.

    Raises:
        StepError: the root has no VAE.
    """
    vae = find_model(run, "vae", config.vae)
    columns = ("clip_id", "uri", "size_bytes", "crc32", "num_frames", "fps_num", "fps_den")
    clips = as_rows(selected_clips(run.root, config.selection, columns=columns), SelectedClipRow)
    all_items = [
        _item(clip, view, vae.hash, config)
        for clip in clips
        for view in range(1 + (config.views.count if clip["split"] == "train" else 0))
    ]
    todo = pending(run.root, "latents", [item["latent_id"] for item in all_items], run.retry_failed)
    # Sorted, so that blocks and batches have clips of one size.
    items = sorted(todo.items(all_items, "latent_id"), key=lambda item: item["bucket"])
    work = PerItemWork(
        step="latents",
        version=VERSION,
        config=config,
        worker=partial(LatentEncoder, vae=vae, config=config),
        done_table="latents",
        since={"latents": todo.version},
        block_size=config.block_size,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    result = run_blocks(run, work, items, todo.num_done)
    note = result.note or _throughput(result)
    return LatentsResult(**dict(result, note=note), vae=vae.uri, vae_hash=vae.hash)


def _item(clip: SelectedClipRow, view: int, vae_hash: str, config: LatentsConfig) -> LatentItem:
    of_view = (view, config.views.max_zoom, config.views.flip) if view else ()
    return {
        "latent_id": latent_id(clip["clip_id"], vae_hash, clip["bucket"], config.dtype, config.parts, *of_view),
        "clip_id": clip["clip_id"],
        "uri": clip["uri"],
        "size_bytes": clip["size_bytes"],
        "crc32": clip["crc32"],
        "bucket": clip["bucket"],
        "view": view,
        "seconds": clip["num_frames"] * clip["fps_den"] / clip["fps_num"],
    }


def _throughput(result: StepResult) -> str:
    """Clips per second, and the share of the time in which the VAE worked, not waiting for frames or commits."""
    busy_s, span_s = result.timings["vae_busy_s"], result.timings["vae_span_s"]
    if not span_s:
        return ""
    return f"{result.num_ok / span_s:.3g} clips per second and actor, VAE busy {busy_s / span_s:.0%} of the time"


def latent_id(clip_id: str, vae_hash: str, bucket: str, dtype: str, parts: str, *view: float) -> str:
    """Id of the latent of a clip: a hash of the clip, the VAE, the size, the stored form and the settings of a view."""
    return content_id(clip_id, vae_hash, bucket, dtype, parts, *view)
