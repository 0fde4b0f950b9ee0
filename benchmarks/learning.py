"""What the models of a root have learnt, beside what trivial methods reach on the same held-out clips.

    uv run python benchmarks/learning.py pyramid-demo     # the newest models of a root, after `pyramid demo`
    uv run python benchmarks/learning.py --seeds 3        # runs the demo with the seeds 0 to 2 first: minutes each

The linear codec, the mean of blocks and the linear predictor are fitted to training clips, as the models are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from PIL import Image
from rich.console import Console
from rich.table import Table

from pyramid_model.metrics.linear_codec import LinearCodec
from pyramid_model.metrics.quality import psnr
from pyramid_model.train.buckets import parse_bucket
from pyramid_model.train.vae_loss import reconstruct
from pyramid_model.video.video import read_clip
from tasks.evaluating.config import EvaluateConfig
from tasks.evaluating.evaluate import find_subject
from tasks.evaluating.evaluator import settings_of
from tasks.models.folders import load_dit, load_vae
from tasks.running.run import Run
from tasks.tables.delta import read_table
from tasks.training.pairs import Pairs, find_pairs, load_null_text, load_pairs
from tasks.training.validation import shuffled, val_baselines, val_losses

BLOCK = 8  # frames, and pixels along each side, of a block of the released VAE's shape


def frames_of(pairs: Pairs) -> list[np.ndarray]:
    """Clips at the size of their bucket, uint8 (t h w 3), with 1 + a multiple of 8 frames."""
    clips = []
    for pair in pairs:
        b = parse_bucket(pair.bucket)
        clip = read_clip(pair.uri, height=b.height, width=b.width, fps=b.fps, num_frames=b.num_frames)
        clips.append(clip[: len(clip) - (len(clip) - 1) % BLOCK])
    return clips


def block_means(clip: np.ndarray) -> np.ndarray:
    """A clip restored from the mean colour of each block, enlarged by cubic interpolation; the first frame alone."""
    restored = []
    for frames in (clip[:1], *np.split(clip[1:], (len(clip) - 1) // BLOCK)):
        height, width = frames.shape[1:3]
        small = frames.mean(0).reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3).mean((1, 3))
        large = Image.fromarray(small.round().astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        restored += [np.asarray(large)] * len(frames)
    return np.stack(restored)


def figures(root: str) -> list[tuple[str, str]]:
    """Name and value of each figure of the newest models of a root."""
    run = Run(root=root)
    subject = find_subject(run, EvaluateConfig())
    assert subject.record, "the DiT was trained in this root"
    dit, vae = load_dit(subject.models.dit.uri, "cpu"), load_vae(subject.models.vae.uri, "cpu")
    source, loss, pyramid = subject.source, settings_of(subject.record).loss, subject.record.pyramid
    train, val = frames_of(subject.train), frames_of(subject.val)
    codec = LinearCodec.fit(train, vae.config)
    rows = [
        ("held-out PSNR of the VAE", np.mean([psnr(clip, reconstruct(vae, clip)) for clip in val])),
        ("… of a linear codec with as many numbers", codec.validate(val)["val_psnr"]),
        ("… of the mean of each block", np.mean([psnr(clip, block_means(clip)) for clip in val])),
    ]
    lines = [(name, f"{value:.2f} dB") for name, value in rows]

    held_out, trained = load_pairs(source, subject.val), load_pairs(source, subject.train)
    samples = find_pairs(source, "train", views=True)
    baselines = val_baselines(dit, source, samples, held_out, pyramid, loss)
    others = [trained.texts[i] for i in shuffled([pair.text for pair in trained.pairs])]
    no_text = [load_null_text(source)] * len(trained.texts)
    losses = {
        "held-out loss of the DiT": val_losses(dit, held_out, pyramid, loss)["val_loss"],
        "… with the empty text": baselines["val_loss_no_text"],
        "… with captions of other clips": baselines.get("val_loss_shuffled_text", float("nan")),
        "… of a linear predictor": baselines["val_loss_linear"],
        "loss of the DiT on training clips": val_losses(dit, trained, pyramid, loss)["val_loss"],
        "… on them with the empty text": val_losses(dit, trained, pyramid, loss, no_text)["val_loss"],
        "… on them with captions of others": val_losses(dit, trained, pyramid, loss, others)["val_loss"],
    }
    return [*lines, *((name, f"{value:.4f}") for name, value in losses.items()), *sampled(root)]


def sampled(root: str) -> list[tuple[str, str]]:
    """Figures of the samples of the newest evaluation of a trained model."""
    rows = read_table(root, "evaluations", ["metrics"], where=pc.field("status") == "ok")["metrics"].to_pylist()
    metrics = [figures for figures in map(json.loads, rows) if figures["candidate"] == "trained"]
    if not metrics or metrics[-1].get("retrieval") is None:
        return []
    found = metrics[-1]
    return [
        ("samples nearest to their own training clip", f"{found['retrieval']:.0%}"),
        ("… by chance", f"{found['retrieval_chance']:.0%}"),
        ("PSNR of samples to their own clip", f"{found['sample_psnr']:.1f} dB"),
    ]


def demo(root: str, seed: int) -> None:
    """Run the demo with other seeds of both trainings."""
    seeds = [argument for part in ("vae", "dit") for argument in ("--set", f"train_{part}.optim.seed={seed}")]
    subprocess.run(["pyramid", "demo", "--root", root, *seeds], check=True)


def main() -> None:
    """Parse the command line, run the demo if asked to, and print a column for each root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", help="roots with a trained VAE and DiT")
    parser.add_argument("--seeds", type=int, default=0, help="run the demo with so many seeds, in a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        roots = [str(Path(root).absolute()) for root in options.roots]
        for seed in range(options.seeds):
            roots.append(f"{folder}/seed-{seed}")
            demo(roots[-1], seed)
        columns = [dict(figures(root)) for root in roots]
    if not columns:
        parser.error("name a root, or --seeds")
    table = Table("", *(Path(root).name for root in roots))
    for name in columns[0]:
        table.add_row(name, *(column.get(name, "") for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
