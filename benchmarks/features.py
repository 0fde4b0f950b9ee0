"""Latents and text features: speed of reading, and utilisation of the models that compute them.

    uv run python benchmarks/features.py            # about three minutes on one thread
    uv run python benchmarks/features.py --quick    # about one

Everything runs on the CPU with small models on synthetic clips, in a temporary folder. Times are process CPU time,
except where waiting is measured.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pyramid_model.config import LatentNorm, MiniFluxConfig, PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.text import TextEncoder, build_tiny_text_encoder, load_text_encoder
from pyramid_model.train.config import OptimConfig
from pyramid_model.train.loop import TrainState, train
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.video.video import write_video
from pyramid_model.weights.record import ModelFolder
from pyramid_model.weights.weights import save_vae, weights_hash
from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.encoding.latents import LatentEncoder, LatentsConfig, latents
from tasks.encoding.text_features import TextFeaturesConfig, text_features
from tasks.models.encoders import find_encoder
from tasks.models.folders import find_model
from tasks.running.run import RayConfig, Run, StepResult, added
from tasks.tables.appending import append_block
from tasks.tables.blob_reader import BlobReader
from tasks.tables.blobs import tensor_bytes
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import table_version
from tasks.tables.rows import Lineage, ok_row
from tasks.training.pairs import find_pairs, pair_source
from tasks.training.train_dit import DiTOptimConfig, DiTTraining, TrainDiTConfig

LINEAGE = Lineage("benchmark", "benchmark", "1", "benchmark", "")
STACK = VAEStackConfig(channels=(16, 16, 32, 32), layers=(1, 1, 1, 1), norm_groups=4)
NORM = LatentNorm(first_shift=0.0, first_scale=1.0, rest_shift=0.0, rest_scale=1.0)
SIZE, NUM_FRAMES, FPS = 64, 33, 24
BUCKET = f"{SIZE}x{SIZE}x{NUM_FRAMES}@{FPS}"
ROW_SHAPE = (16, 16, 48, 80)  # 1.97 MB as bfloat16: 384x640 px, 121 frames
WORDS = (
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "house",
    "walks",
    "runs",
    "over",
    "the",
    "quick",
    "lazy",
    "garden",
    "river",
)


@dataclass(frozen=True)
class Line:
    """A row of the printed table."""

    what: str
    figure: str
    wanted: str = ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer clips and repeats")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            *reading(Path(folder) / "rows", 200 if quick else 1000),
            *texts(Path(folder) / "texts", 200 if quick else 1000),
            *extraction(Path(folder) / "clips", 40 if quick else 200),
        ]
    width = max(len(line.what) for line in lines)
    for line in lines:
        print(f"{line.what:<{width}}  {line.figure:>12}  {line.wanted}")


# ---- reading ---------------------------------------------------------------------------------------------------------


def reading(root: Path, repeats: int) -> Iterator[Line]:
    """CPU time to read a random row of 2 MB from the page cache."""
    ids = [content_id("latent", number) for number in range(96)]
    for first in range(0, len(ids), 8):
        append_block(
            str(root), "latents", [latent_row(row_id) for row_id in ids[first : first + 8]], ids[first], LINEAGE
        )
    reader = BlobReader(str(root), "latents", table_version(str(root), "latents"), ids)
    order = np.random.default_rng(0).integers(0, len(ids), repeats)
    for check, wanted in ((False, "<= 1 ms"), (True, "<= 1.5 ms")):
        seconds = cpu_time(lambda check=check: [reader.read(ids[number], check) for number in order])
        name = "a random row of 2 MB" + (", crc checked" if check else "")
        yield Line(name, f"{seconds / repeats * 1e3:.2f} ms CPU", wanted)


def latent_row(row_id: str) -> dict:
    """A row of `latents` with random values."""
    data = tensor_bytes(torch.randn(ROW_SHAPE), "bfloat16")
    columns = {"latent_id": row_id, "clip_id": row_id, "vae_hash": "v", "bucket": "384x640x121@24"}
    return ok_row({}, **columns, shape=list(ROW_SHAPE), dtype="bfloat16", latent=data, crc32=crc32(data))


def cpu_time(function: Callable[[], object]) -> float:
    """CPU seconds of this process for a call, the smaller of two."""
    return min(_cpu_time_once(function) for _ in range(2))


def _cpu_time_once(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


# ---- texts -----------------------------------------------------------------------------------------------------------


def texts(folder: Path, count: int) -> Iterator[Line]:
    """Number of tokens that the encoder computes, compared with the number of valid tokens."""
    captions = sorted(make_texts(count), key=len)
    build_tiny_text_encoder(captions, folder, dim=64, num_layers=2, vocab_size=256)
    encoder = load_text_encoder(folder)
    encoded, num_valid = tokens_encoded(encoder, [captions[first : first + 64] for first in range(0, count, 64)])
    yield Line("tokens encoded for each that is kept", f"{encoded / num_valid:.3f}", "1 = no padding")
    at_128 = encoder_seconds(encoder, captions[:64], 128) / encoder_seconds(encoder, captions[:64], None)
    yield Line("time of padding to 128 tokens, to ours", f"{at_128:.1f}x")


def make_texts(count: int) -> list[str]:
    """Synthetic captions of 5 to 60 words."""
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, generator.integers(5, 60))) for _ in range(count)]


def tokens_encoded(encoder: TextEncoder, blocks: list[list[str]]) -> tuple[int, int]:
    """(tokens that T5 computed, valid tokens)."""
    seen = []
    hook = encoder.t5.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
    )
    num_valid = sum(len(embeds) for block in blocks for embeds, _ in encoder.encode(block))
    hook.remove()
    return sum(seen), num_valid


@torch.no_grad()
def encoder_seconds(encoder: TextEncoder, captions: list[str], length: int | None) -> float:
    """CPU seconds of encoding, with padding to a fixed length or with our batches."""
    if length is None:
        return cpu_time(lambda: encoder.encode(captions))
    batch = encoder.tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return cpu_time(lambda: encoder.t5(batch.input_ids, attention_mask=batch.attention_mask))


# ---- extraction and loading ------------------------------------------------------------------------------------------


def extraction(folder: Path, count: int) -> Iterator[Line]:
    """Utilisation of the VAE, cost of one per cent of new clips, and speed of loading batches."""
    folder.mkdir()
    vae = make_vae(folder / "vae")
    run = Run(root=str(folder / "root"), ray=RayConfig(num_cpus=2), run_id="benchmark")
    add_clips(run, range(count), folder)
    yield from busy(run, vae, min(count, 40))
    settings = LatentsConfig(vae=vae.uri)
    full = latents(run, settings)
    words = TextFeaturesConfig(dim=32, num_layers=1, vocab_size=128)
    captions(run, CaptionsConfig())
    encoder = text_features(run, words).encoder
    yield from loading(run, encoder, vae.uri)
    add_clips(run, range(count, count + max(1, count // 100)), folder)
    more = latents(run, settings)
    share, new = more.timings["vae_busy_s"] / full.timings["vae_busy_s"], more.num_new / full.num_new
    yield Line(f"VAE time for {new:.1%} new clips, of a full run", f"{share:.1%}", "about the same")
    (folder / "captions.csv").write_text((folder / "captions.csv").read_text().replace("cat", "lion"))
    captions(run, CaptionsConfig())
    untouched: StepResult = latents(run, settings)
    yield Line("latents computed for new captions", str(untouched.num_new), "0")


def make_vae(folder: Path) -> ModelFolder:
    """A narrow VAE with random weights."""
    vae = CausalVideoVAE(VAEConfig(latent_channels=16, encoder=STACK, decoder=STACK, latent_norm=NORM))
    save_vae(vae, folder)
    return ModelFolder(uri=str(folder), hash=weights_hash(folder))


def add_clips(run: Run, numbers: range, folder: Path) -> None:
    """Add selected clips with one caption each to the tables, as curation writes them."""
    rows: dict[str, list[dict]] = {"sources": [], "videos": [], "clips": [], "selections": []}
    sidecar = folder / "captions.csv"
    lines = sidecar.read_text().splitlines() if sidecar.exists() else ["file,start_s,end_s,text"]
    (folder / "source.yaml").write_text("name: made-up\ncaptions: captions.csv\n")
    for number, text in zip(numbers, make_texts(len(numbers)), strict=True):
        video_id, clip_id, name = content_id("video", number), content_id("clip", number), f"{number}.mp4"
        uri = run.media("clips", f"{clip_id}.mp4")
        write_video(uri, moving_noise(number), FPS)
        lines.append(f"{name},0,10,{text}")
        columns = {"video_id": video_id, "uri": uri, "path": name, "source": "made-up"}
        card = str(folder / "source.yaml")
        rows["sources"].append(ok_row({}, source_id=content_id("source", number), card=card, **columns))
        rows["videos"].append(ok_row({}, **columns))
        span = {"start_s": 0.0, "end_s": NUM_FRAMES / FPS, "start_frame": 0, "num_frames": NUM_FRAMES}
        rows["clips"].append(
            ok_row({}, clip_id=clip_id, video_id=video_id, uri=uri, size_bytes=Path(uri).stat().st_size, **span)
        )
        verdict = {"keep": True, "drop_reasons": [], "bucket": BUCKET, "split": "train" if number % 10 else "val"}
        rows["selections"].append(ok_row({}, selection_id=content_id(clip_id), clip_id=clip_id, **verdict))
    sidecar.write_text("\n".join(lines) + "\n")
    for table, table_rows in rows.items():
        append_block(run.root, table, table_rows, f"{table}{numbers.start}", LINEAGE)


def moving_noise(seed: int) -> np.ndarray:
    """Frames of a blurred random picture that moves, (t h w 3) uint8."""
    import cv2

    picture = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE + NUM_FRAMES, 3), np.uint8)
    smooth = cv2.GaussianBlur(picture, (0, 0), 3)
    return np.stack([smooth[:, t : t + SIZE] for t in range(NUM_FRAMES)])


def busy(run: Run, vae: ModelFolder, count: int) -> Iterator[Line]:
    """Work of the actor without Ray: reading, encoding, making rows; batches compared with single clips."""
    from tasks.tables.current import selected_clips

    clips = selected_clips(run.root, columns=("clip_id", "uri", "size_bytes", "crc32")).to_pylist()[:count]
    items = [clip | {"latent_id": clip["clip_id"], "attempt": 1} for clip in clips]
    encoder = LatentEncoder(vae, LatentsConfig())
    blocks = [encoder(items[first : first + 8]) for first in range(0, count, 8)]
    alone = [row for block in blocks for row in block.rows["latents"]]
    spent = added(block.seconds for block in blocks)
    yield Line(
        "VAE at work, of the time from first to last clip",
        f"{spent['vae_busy_s'] / spent['vae_span_s']:.0%}",
        ">= 90 %",
    )
    together = LatentEncoder(vae, LatentsConfig(batch_size=4))(items[:8]).rows["latents"]
    difference = max(
        np.abs(np.frombuffer(row["latent"], np.float32) - np.frombuffer(other["latent"], np.float32)).max()
        for row, other in zip(alone, together, strict=False)
    )
    yield Line("largest change of a latent by batching", f"{difference:.1e}", "<= 1e-5")


def loading(run: Run, encoder_uri: str, vae_uri: str) -> Iterator[Line]:
    """CPU time to load a batch, compared with a training step of a small DiT on it."""
    config = TrainDiTConfig(
        model=MiniFluxConfig(
            num_double_blocks=1,
            num_single_blocks=2,
            num_heads=4,
            head_dim=32,
            text_dim=32,
            pooled_dim=32,
            rope_axes=(8, 12, 12),
        ),
        pyramid=PyramidConfig(num_stages=3),
        optim=DiTOptimConfig(batch_size=6, num_steps=8, warmup_steps=1),
    )
    source = pair_source(run, "", (), find_model(run, "vae", vae_uri), find_encoder(run, encoder_uri).hash)
    pairs = find_pairs(source, "train"), find_pairs(source, "val")
    training = DiTTraining(config, source, *pairs, [""] * len(pairs[0]), torch.device("cpu"))
    steps = range(20)
    batch_s = cpu_time(lambda: [training.batch(step, 0) for step in steps]) / len(steps)
    state = TrainState.start(training.objective(), config.optim)
    batches = [[training.batch(step, 0)] for step in range(config.optim.num_steps)]
    optim: OptimConfig = config.optim
    step_s = _cpu_time_once(lambda: train(state, optim, batches.__getitem__)) / optim.num_steps
    yield Line("a training step of a small DiT, to reading its batch", f"{step_s / batch_s:.0f}x", ">= 10x")


if __name__ == "__main__":
    main()
