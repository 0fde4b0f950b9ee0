"""Clips from prompts, with the champion model or with a directory of weights that is named."""

import contextlib
import contextvars
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pyramid_model.config import PyramidConfig, VAEConfig
from pyramid_model.generate.amount import parse_bytes
from pyramid_model.generate.prompt import check_prompts
from pyramid_model.weights.record import ModelFolder
from tasks.captioning.prompts import read_prompts
from tasks.captioning.rewriting import Rewrite, rewrite_prompts
from tasks.generating.clip_generator import ClipGenerator, ModelFolders, given_files
from tasks.generating.config import GenerateConfig, GenerateResult
from tasks.models.folders import ModelSet, absolute, folder_hash, read_record
from tasks.models.registry import champion
from tasks.running.cluster import connect
from tasks.running.errors import StepError
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult, report_progress
from tasks.running.step import step
from tasks.running.work import Item, PerItemWork
from tasks.sources.ingest import hash_file
from tasks.tables import storage
from tasks.tables.delta import content_id, read_table
from tasks.tables.pending import pending

if TYPE_CHECKING:
    from pyramid_model.weights.checkpoint import Checkpoint

VERSION = "1"
PROGRESS_EVERY_S = 1.0


@step
def generate(run: Run, config: GenerateConfig) -> GenerateResult:
    """Generate every prompt and seed that these models have not generated yet with these settings.

    Raises:
        StepError: there is no champion where no weights are named.
        ValueError: there are no prompts, or what is asked for cannot be generated; nothing was loaded.
        FileNotFoundError: the given image or video is missing, or the directory of weights lacks parts.
    """
    prompts = _asked_prompts(config)
    checkpoint = _checkpoint(config) if config.weights else None
    models = _named_models(run, checkpoint) if checkpoint else _champion(run)
    extra = _extra_settings(config, checkpoint)
    rewrites = _rewrites(run, config, prompts)
    wanted = [
        _item(rewrite, seed, config, models, extra)
        for rewrite in rewrites
        for seed in range(config.seed, config.seed + config.num_per_prompt)
    ]
    folder = run.media("generated")
    ids = [item["generation_id"] for item in wanted]
    todo = pending(run.root, "generations", ids, run.retry_failed)
    items = todo.items(wanted, "generation_id")
    if items and not checkpoint:
        _check_champion(config, models)
    device, num_gpus = _device(run, config) if items else ("cpu", 0)
    block_size = _block_size(checkpoint, config, len(items), device) if checkpoint and items else config.block_size
    progress = storage.join(run.root, "runs", run.run_id, "units")
    with _telling_units(progress, len(items) * _units(config)):
        work = PerItemWork(
            step="generate",
            version=VERSION,
            config=config,
            worker=ClipGenerator,
            done_table="generations",
            worker_args={
                "models": _folders(models, checkpoint),
                "weights_hash": models.dit.hash,
                "config": config,
                "folder": folder,
                "device": device,
                "progress": progress,
            },
            block_size=block_size,
            num_cpus=config.num_cpus,
            num_gpus=num_gpus,
        )
        result = run_blocks(run, work, items, todo.num_done)
    rows = read_table(run.root, "generations", where=pc.field("generation_id").isin(ids)).to_pylist()
    clips = {row["generation_id"]: row for row in rows if row["status"] == "ok"}
    failed = [row for row in rows if row["status"] == "failed"]
    return GenerateResult(
        **dict(result, note=_note(result, list(clips.values()), rewrites) or result.note),
        weights_hash=models.dit.hash,
        media=folder,
        files=tuple(clips[generation_id]["uri"] for generation_id in ids if generation_id in clips),
        failures=tuple(f"{row['prompt']!r}, seed {row['seed']}: {row['error']}" for row in failed),
    )


def _asked_prompts(config: GenerateConfig) -> list[str]:
    """The prompts of the settings, once it is clear that they can be meant and that the given files exist."""
    prompts = read_prompts(config.prompts, config.prompts_file)
    if not prompts:
        raise ValueError(
            "there is nothing to generate: give a prompt, or set generate.prompts or generate.prompts_file"
        )
    check_prompts(prompts)
    for kind in ("image", "video"):
        uri = getattr(config, kind)
        if uri and not storage.exists(uri):
            raise FileNotFoundError(f"there is no {kind} {uri!r}: give the path of a file (generate.{kind})")
    return prompts


def _rewrites(run: Run, config: GenerateConfig, prompts: Sequence[str]) -> list[Rewrite]:
    """Each prompt with its rewritten text, if prompts are rewritten."""
    if not config.rewrite or config.rewriter is None:
        return [Rewrite(prompt) for prompt in prompts]
    return rewrite_prompts(run.root, prompts, config.rewrite, config.rewriter)


def _champion(run: Run) -> ModelSet:
    best = champion(run.root)
    if best is None:
        raise StepError(
            f"there is no champion in {run.root}, and without --weights only a champion generates: train a model and "
            "let it pass the gate (`pyramid run`, or the flows train-dit and evaluate-and-gate), or name a directory "
            "of weights (generate.weights)"
        )
    return best


def _folders(models: ModelSet, checkpoint: "Checkpoint | None") -> ModelFolders:
    """Where the actors load the models from."""
    if checkpoint:
        return ModelFolders(directory=str(checkpoint.parts.folder), variant=checkpoint.name)
    return ModelFolders(dit=models.dit.uri, vae=models.vae.uri, encoder=models.encoder.uri)


def _check_champion(config: GenerateConfig, models: ModelSet) -> None:
    """Refuse a request that the champion cannot make, before its weights are loaded. Imports torch."""
    from pyramid_model.weights.released_names import CONFIG_FILE, vae_config_from_released

    record = read_record(models.dit.uri)
    pyramid = record.pyramid if record else PyramidConfig()
    vae = vae_config_from_released(json.loads(storage.read_bytes(storage.join(models.vae.uri, CONFIG_FILE))))
    config.request.check(vae, pyramid)
    _check_given(config, vae, pyramid, record is None or record.autoregressive)


def _checkpoint(config: GenerateConfig) -> "Checkpoint":
    """The directory `weights`. Refuses a request that its models cannot make, before weights are loaded."""
    from pyramid_model.generate.checks import check_checkpoint
    from pyramid_model.weights.checkpoint import read_checkpoint

    if not storage.is_local(config.weights):
        raise ValueError(f"weights {config.weights!r} are remote: copy them to a folder that every node sees")
    checkpoint = read_checkpoint(absolute(config.weights), config.variant)
    check_checkpoint(config.request, checkpoint)
    _check_given(config, checkpoint.vae, checkpoint.pyramid, checkpoint.autoregressive)
    return checkpoint


def _check_given(config: GenerateConfig, vae: VAEConfig, pyramid: PyramidConfig, autoregressive: bool) -> None:
    """Refuse an image or a video that no clip can start with."""
    from pyramid_model.generate.given import check_given

    with given_files(config) as given:
        check_given(config.request, given.image, given.video, vae, pyramid, autoregressive)


def _block_size(checkpoint: "Checkpoint", config: GenerateConfig, num_items: int, device: str) -> int:
    """Clips that can be sampled together within `max_memory`. Without a limit only the actors know what is free.

    Raises:
        ValueError: not even one fits.
    """
    from pyramid_model.generate.device import DTYPES
    from pyramid_model.generate.model_sizes import sizes_of_checkpoint
    from pyramid_model.generate.plan import plan_memory

    size = min(config.block_size, num_items)
    if not config.max_memory:
        return size
    sizes = sizes_of_checkpoint(checkpoint, DTYPES[config.dtype or "bfloat16"])
    while True:
        try:
            plan_memory(
                sizes,
                config.request,
                parse_bytes(config.max_memory),
                batch=size,
                num_given=1 if config.image or config.video else 0,
                device=device or "cpu",
                offload=None if config.offload == "auto" else config.offload,
                whole_dit=config.compile,
            )
            return size
        except ValueError:
            if size == 1:
                raise
            size //= 2


def _named_models(run: Run, checkpoint: "Checkpoint") -> ModelSet:
    """The models of a directory."""
    dit, vae, directory = map(str, (checkpoint.dit_folder, checkpoint.parts.vae, checkpoint.parts.folder))
    return ModelSet(
        dit=ModelFolder(uri=dit, hash=folder_hash(run, dit, "weights")),
        vae=ModelFolder(uri=vae, hash=folder_hash(run, vae, "weights")),
        encoder=ModelFolder(uri=directory, hash=folder_hash(run, directory, "text")),
    )


def _extra_settings(config: GenerateConfig, checkpoint: "Checkpoint | None") -> dict[str, str]:
    """Settings that change the clips beside the request. Only those in use are named: others leave the ids alone."""
    extra: dict[str, str] = {}
    for kind in ("image", "video"):
        if uri := getattr(config, kind):
            extra[f"{kind}_hash"] = hash_file(uri)[0]
    if checkpoint:
        extra |= {"variant": checkpoint.name, "dtype": config.dtype or "bfloat16"}
    elif config.dtype:
        extra["dtype"] = config.dtype
    return extra


def _device(run: Run, config: GenerateConfig) -> tuple[str, float]:
    """Where to work, and how many GPUs an actor reserves for it."""
    if config.device in ("cpu", "mps"):
        return config.device, 0
    connect(run.ray)
    import ray

    found = ray.cluster_resources().get("GPU", 0)
    if config.device == "cuda" and not found:
        raise ValueError("device 'cuda': Ray has no GPU here. Set generate.device to cpu, or leave it empty")
    if config.device == "cuda" or config.num_gpus:
        return "cuda", config.num_gpus or 1
    return ("cuda", 1) if found >= 1 else ("", 0)


def _units(config: GenerateConfig) -> int:
    """About how many units of a clip are sampled; a given video may bring up to half of them."""
    return config.request.num_latent_frames - (1 if config.image else 0)


@contextlib.contextmanager
def _telling_units(progress: str, total: int) -> Iterator[None]:
    """Report progress while actors work: the sum of the unit counts that they write to files `progress`-*."""
    ended = threading.Event()

    def watch() -> None:
        fs, path = storage.filesystem(progress)
        while not ended.wait(PROGRESS_EVERY_S):
            with contextlib.suppress(OSError, ValueError):
                done = sum(int(fs.cat_file(name)) for name in fs.glob(f"{path}-*"))
                if done:
                    report_progress("generate", min(done, total), total, "units")

    # In the context of the flow run, without which Prefect would warn of every line of progress.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
    if total:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if total:
            thread.join()
            fs, path = storage.filesystem(progress)
            for name in fs.glob(f"{path}-*"):
                fs.rm(name)


def _note(result: StepResult, rows: Sequence[Mapping[str, str]], rewrites: Sequence[Rewrite]) -> str:
    """Notes of the actors and of the rewriter on new clips, each sentence once; empty if there are none."""
    if not result.num_new:
        return ""
    notes = dict.fromkeys(f"prompts stay as they are: {rewrite.reason}" for rewrite in rewrites if rewrite.reason)
    notes |= dict.fromkeys(note for row in rows for note in json.loads(row["timings"]).get("notes", []))
    return "; ".join(notes)


def _item(rewrite: Rewrite, seed: int, config: GenerateConfig, models: ModelSet, extra: Mapping[str, str]) -> Item:
    settings = config.request.model_dump(mode="json") | dict(extra)
    if rewrite.text:
        settings |= {"rewrite": config.rewrite, "prompt_rewritten": rewrite.text}
    hashes = {"vae_hash": models.vae.hash, "encoder_hash": models.encoder.hash}
    return {
        "generation_id": content_id(VERSION, rewrite.prompt, seed, settings, models.dit.hash, hashes),
        "prompt": rewrite.prompt,
        "prompt_rewritten": rewrite.text,
        "seed": seed,
        "settings": json.dumps(settings | hashes),
    }
