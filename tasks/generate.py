"""Clips from prompts, with the champion model and no other."""

import json
import re
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from pyramid_model.config import Config
from pyramid_model.generate.request import GenerationRequest
from tasks.model_files import load_dit, load_encoder, load_vae, training_pyramid
from tasks.pipeline import StepError, run_blocks
from tasks.prompts import read_prompts
from tasks.registry import Champion, champion
from tasks.step import Run, StepResult, step
from tasks.tables import bad_row, content_id, ok_row, pending
from tasks.text_features import NULL_TEXT

VERSION = "1"
SLUG_LENGTH = 60


class GenerateConfig(Config):
    """What to generate."""

    prompts: tuple[str, ...] = Field((), description="one clip each, times num_per_prompt")
    prompts_file: str = Field("", description="text file of further prompts, one a line")
    num_per_prompt: int = Field(1, ge=1, description="clips a prompt, with seeds seed, seed + 1, …")
    seed: int = Field(0, ge=0)
    request: GenerationRequest = GenerationRequest()
    block_size: int = Field(4, ge=1, description="clips sampled together")
    num_cpus: float = Field(1, gt=0, description="CPUs, and so torch threads, of an actor")
    num_gpus: float = Field(0, ge=0, description="GPUs of an actor; more than 0 generates on the GPU")


class ClipGenerator:
    """Actor: loads the champion's three models once, then samples a block of prompts at a time."""

    def __init__(self, best: Champion, request: GenerationRequest, folder: str, num_threads: int, on_gpu: bool):
        import torch

        torch.set_num_threads(num_threads)
        device = "cuda" if on_gpu else "cpu"
        self.best, self.request, self.folder, self.device = best, request, folder, device
        self.dit, self.vae = load_dit(best.uri, device), load_vae(best.vae_uri, device)
        self.encoder = load_encoder(best.encoder_uri, device, "bfloat16" if device == "cuda" else "float32")
        self.pyramid = training_pyramid(best.uri)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """One row a clip."""
        from pyramid_model.generate.text_to_video import generate_videos
        from pyramid_model.text import stack_features

        started = time.time()
        cond = stack_features(self.encoder.encode([item["prompt"] for item in items])).to(self.device)
        uncond = stack_features(self.encoder.encode([NULL_TEXT])).to(self.device)
        timings = {"text_s": time.time() - started}
        seeds = [item["seed"] for item in items]
        made = generate_videos(self.dit, self.vae, cond, uncond, self.request, seeds, self.pyramid)
        timings |= made.timings
        rows = [
            self.row(item, frames, latent, timings | {"clips_in_batch": len(items)})
            for item, frames, latent in zip(items, made.videos, made.latents, strict=True)
        ]
        return {"generations": rows}

    def row(self, item: Mapping[str, Any], frames: Any, latent: Any, timings: Mapping[str, float]) -> dict[str, Any]:
        """Write one clip and describe it. frames: (t h w 3) uint8; latent: (c t h w)."""
        from pyramid_model.video import write_video

        names = ("generation_id", "prompt", "seed", "settings")
        columns = {name: item[name] for name in names} | {"weights_hash": self.best.weights_hash}
        if not latent.isfinite().all():
            return bad_row(item, ("not_finite", "sampling gave NaN or Inf: the champion is damaged"), **columns)
        uri = f"{self.folder}/{file_name(item['prompt'], item['seed'], item['generation_id'])}"
        write_video(uri, frames, fps=self.request.fps)
        return ok_row(
            item,
            **columns,
            prompt_rewritten="",
            uri=uri,
            timings=json.dumps(timings),
            peak_memory_bytes=_peak_memory_bytes(self.device),
        )


def file_name(prompt: str, seed: int, generation_id: str) -> str:
    """A name that people recognise and that no two clips share."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:SLUG_LENGTH].strip("-") or "clip"
    return f"{slug}-{seed}-{generation_id[:8]}.mp4"


def _peak_memory_bytes(device: str) -> int:
    """Most memory this process held: on the GPU if it works there, else in RAM."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@step
def generate(run: Run, config: GenerateConfig) -> StepResult:
    """Generate every prompt and seed that the champion has not generated yet with these settings.

    Returns:
        outputs `weights_hash` and `media` (the folder of the clips).

    Raises:
        StepError: there are no prompts, or no champion.
    """
    prompts = read_prompts(config.prompts, config.prompts_file)
    if not prompts:
        raise StepError("there is nothing to generate: set generate.prompts or generate.prompts_file")
    best = champion(run.root)
    if best is None:
        raise StepError(
            f"there is no champion in {run.root}, and only a champion generates: train a model and let it pass the "
            "gate (`pyramid run`, or the flows train-dit and evaluate-and-gate)"
        )
    wanted = [
        _item(prompt, seed, config, best)
        for prompt in prompts
        for seed in range(config.seed, config.seed + config.num_per_prompt)
    ]
    folder = run.media("generated")
    todo = pending(run.root, "generations", [item["generation_id"] for item in wanted], run.retry_failed)
    result = run_blocks(
        run,
        config,
        step="generate",
        step_version=VERSION,
        items=todo.items(wanted, "generation_id"),
        worker=ClipGenerator,
        worker_args={
            "best": best,
            "request": config.request,
            "folder": folder,
            "num_threads": max(1, round(config.num_cpus)),
            "on_gpu": config.num_gpus > 0,
        },
        num_done=todo.num_done,
        block_size=config.block_size,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    return result.model_copy(update={"outputs": {"weights_hash": best.weights_hash, "media": folder}})


def _item(prompt: str, seed: int, config: GenerateConfig, best: Champion) -> dict[str, Any]:
    settings = config.request.model_dump(mode="json")
    models = {"vae_hash": best.vae_hash, "encoder_hash": best.encoder_hash}
    return {
        "generation_id": content_id(VERSION, prompt, seed, settings, best.weights_hash, models),
        "prompt": prompt,
        "seed": seed,
        "settings": json.dumps(settings | models),
    }
