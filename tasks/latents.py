"""Latents: every selected clip through the VAE encoder, at the size of its bucket, stored as raw posterior means."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from pyramid_model.config import Config
from tasks.buckets import Bucket, parse_bucket
from tasks.model_files import find_model, load_vae
from tasks.pipeline import run_blocks
from tasks.select import selected_clips
from tasks.step import Run, StepResult, step
from tasks.tables import bad_row, content_id, crc32, ok_row, pending

VERSION = "1"


class LatentsConfig(Config):
    """Which clips, and which VAE."""

    selection: str = Field("", description="which selection; empty: the newest")
    vae: str = Field("", description="folder of a VAE; empty: the newest that was trained here")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="stored type; bfloat16 halves the table")
    window: int | None = Field(None, ge=8, description="frames coded at a time; empty: whole clips")
    block_size: int = Field(8, ge=1, description="clips a block")
    num_cpus: float = Field(0.5, gt=0, description="CPUs of an actor")
    num_gpus: float = Field(0, ge=0, description="GPUs of an actor; more than 0 encodes on the GPU")


class LatentEncoder:
    """Actor: loads the VAE once, then encodes clips. A clip that cannot be read becomes a failed row."""

    def __init__(self, vae: str, vae_hash: str, dtype: str, window: int | None, on_gpu: bool):
        self.device = "cuda" if on_gpu else "cpu"
        self.vae = load_vae(vae, self.device)
        self.vae_hash, self.dtype, self.window = vae_hash, dtype, window

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """One row a clip."""
        return {"latents": [self.row(item) for item in items]}

    def row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Row of one clip."""
        from pyramid_model.video import VideoError
        from tasks.blobs import tensor_bytes

        columns = {name: item[name] for name in ("latent_id", "clip_id", "bucket")} | {"vae_hash": self.vae_hash}
        try:
            latent = self.encode(item["uri"], parse_bucket(item["bucket"]))
        except (VideoError, ValueError) as err:
            return bad_row(item, err, **columns)
        if not latent.isfinite().all():
            why = "not_finite", f"the VAE gives NaN or Inf for clip {item['clip_id']}"
            return bad_row(item, why, **columns)
        data = tensor_bytes(latent, self.dtype)
        return ok_row(item, **columns, latent=data, crc32=crc32(data), shape=list(latent.shape), dtype=self.dtype)

    def encode(self, uri: str, bucket: Bucket) -> Any:
        """Latent (c t h w) of a clip: the posterior mean, not normalised."""
        import torch

        from pyramid_model.vae.pixels import to_unit_range
        from pyramid_model.video import read_clip

        frames = read_clip(uri, height=bucket.height, width=bucket.width, fps=bucket.fps, num_frames=bucket.num_frames)
        with torch.inference_mode():
            return self.vae.encode(to_unit_range(frames)[None].to(self.device), self.window).mode()[0]


@step
def latents(run: Run, config: LatentsConfig) -> StepResult:
    """Encode every selected clip that this VAE has not encoded yet.

    Returns:
        outputs `vae` (folder) and `vae_hash`.

    Raises:
        StepError: there is no VAE.
    """
    vae = find_model(run, "vae", config.vae)
    clips = selected_clips(run, config.selection, columns=("clip_id", "uri")).to_pylist()
    wanted = [
        {
            "latent_id": latent_id(clip["clip_id"], vae.weights_hash, clip["bucket"], config.dtype),
            "clip_id": clip["clip_id"],
            "uri": clip["uri"],
            "bucket": clip["bucket"],
        }
        for clip in clips
    ]
    todo = pending(run.root, "latents", [item["latent_id"] for item in wanted], run.retry_failed)
    result = run_blocks(
        run,
        config,
        step="latents",
        step_version=VERSION,
        items=todo.items(wanted, "latent_id"),
        worker=LatentEncoder,
        worker_args={
            "vae": vae.uri,
            "vae_hash": vae.weights_hash,
            "dtype": config.dtype,
            "window": config.window,
            "on_gpu": config.num_gpus > 0,
        },
        num_done=todo.num_done,
        block_size=config.block_size,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    return result.model_copy(update={"outputs": {"vae": vae.uri, "vae_hash": vae.weights_hash}})


def latent_id(clip_id: str, vae_hash: str, bucket: str, dtype: str) -> str:
    """Identity of the latent of a clip."""
    return content_id(clip_id, vae_hash, bucket, dtype)
