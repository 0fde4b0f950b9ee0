"""What a training spends beside its steps, and its step beside a straightforward one.

Beside the steps: waiting for data and checkpoints, averages, lookup of samples, memory.

    uv run python benchmarks/training.py            # about two minutes on two cores

A small VAE is trained in one process on synthetic clips, in a temporary folder. Each figure is a ratio within one run.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from baseline import Habits, Straightforward, padded, plain_convolutions
from torch import Tensor

from pyramid_model.config import MiniFluxConfig, PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.schedule import Schedule
from pyramid_model.text import TextFeatures
from pyramid_model.train.checkpoints import Checkpoints
from pyramid_model.train.config import MixConfig, VAELossConfig
from pyramid_model.train.dit_loss import dit_loss
from pyramid_model.train.loop import TrainState, train
from pyramid_model.train.mixture import BatchPlan
from pyramid_model.train.read_ahead import ReadAhead
from pyramid_model.train.vae_loss import VAEObjective
from pyramid_model.vae import autoencoder
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.video.video import write_video
from tasks.training.clip_reader import SelectedClip
from tasks.training.train_vae import TrainVAEConfig, VAETraining

SIZE, NUM_FRAMES, FPS = 64, 17, 12
STACK = VAEStackConfig(channels=(16, 32, 64, 64), layers=(1, 1, 1, 1), norm_groups=2)
CONFIG = TrainVAEConfig.model_validate(
    {
        "model": VAEConfig(latent_channels=16, encoder=STACK, decoder=STACK),
        "batch": {"num_frames": 9},
        "optim": {"num_steps": 60, "batch_size": 2, "warmup_steps": 2, "checkpoint_every": 20},
        "cache_gb": 0,  # every clip is decoded again
    }
)


@dataclass(frozen=True)
class Line:
    """A figure and its target."""

    name: str
    value: str
    target: str = ""


def main() -> None:
    """Print all figures."""
    if len(sys.argv) == 3 and sys.argv[1] == "--memory":
        plan_of(int(sys.argv[2])).pick(0, 0)
        status = Path("/proc/self/status").read_text()  # getrusage would count the memory of the parent
        print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for line in (*steps(Path(folder)), *lookup(), *memory(), vae_step(), *dit_steps()):
            print(f"{line.name:<58} {line.value:>10}  {line.target}", flush=True)


def steps(folder: Path) -> Iterator[Line]:
    """Shares of a training that are no steps."""
    training = VAETraining(CONFIG, write_clips(folder, 24), write_clips(folder, 1), torch.device("cpu"))
    state = TrainState.start(training.objective(), CONFIG.optim)
    batches = ReadAhead(lambda step: [training.batch(step, 0)], CONFIG.optim.num_steps)
    row = train(state, CONFIG.optim, batches, checkpoints=Checkpoints(str(folder / "checkpoints")))[-1]
    started = time.perf_counter()
    for _ in range(20):
        state.ema.update(state.objective)
    average_s = (time.perf_counter() - started) / 20
    total = row["elapsed_s"]
    yield Line("waiting for data, share of the training", f"{row['loader_wait_s'] / total:.1%}", "<= 5%")
    yield Line("waiting for checkpoints, one in 20 steps", f"{row['checkpoint_stall_s'] / total:.1%}", "<= 5%")
    yield Line("averages, share of a step", f"{average_s / row['step_s']:.1%}", "<= 2%")


def write_clips(folder: Path, count: int) -> list[SelectedClip]:
    """Clips of noise that moves."""
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    frames = np.stack([np.roll(noise, 2 * t, axis=1) for t in range(NUM_FRAMES)])
    clips: list[SelectedClip] = []
    for number in range(count):
        uri = str(folder / f"{count}-{number}.mp4")
        write_video(uri, frames, FPS)
        bucket = f"{SIZE}x{SIZE}x{NUM_FRAMES}@{FPS}"
        clips.append({"clip_id": uri, "uri": uri, "bucket": bucket, "split": "train"})
    return clips


def plan_of(num_clips: int) -> BatchPlan:
    """The plan of a training of clips of two sizes."""
    shapes = [(16, 3, 8, 16), (16, 3, 16, 8)] * (num_clips // 2)
    return BatchPlan(shapes, [""] * num_clips, MixConfig(), 6, 3, 0, 8)


def lookup() -> Iterator[Line]:
    """Time to look up the samples of a batch, once the epoch is shuffled."""
    times = {}
    for num_clips in (1_000, 100_000):
        plan = plan_of(num_clips)
        for step in range(20):
            plan.pick(step, 0)
        started = time.perf_counter()
        for step in range(100):
            plan.pick(step % 20, step % 8)
        times[num_clips] = (time.perf_counter() - started) / 600
    yield Line("lookup of a sample among 100,000 clips", f"{times[100_000] * 1e6:.1f} us", "")
    yield Line("the same, to 1,000 clips", f"{times[100_000] / times[1_000]:.2f}x", "about 1x")


def memory() -> Iterator[Line]:
    """Peak memory of a process with a plan."""
    peaks = {}
    for num_clips in (10_000, 100_000):
        command = [sys.executable, __file__, "--memory", str(num_clips)]
        peaks[num_clips] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    yield Line("memory of a plan of 100,000 clips, to 10,000", f"{peaks[100_000] / peaks[10_000]:.2f}x", "<= 1.1x")


def vae_step() -> Line:
    """CPU time of loss and gradients of a VAE with plain causal convolutions, as a multiple of ours.

    The plain version pads a contiguous clip and calls PyTorch's 3-D convolution. Weights and input are the same; the
    least of several times in turn.
    """
    stack = VAEStackConfig(channels=(32, 64, 128, 128), layers=(1, 1, 1, 1), norm_groups=2)
    objective = VAEObjective(
        CausalVideoVAE(VAEConfig(latent_channels=16, encoder=stack, decoder=stack)), VAELossConfig()
    )
    frames = torch.randn(1, 3, NUM_FRAMES, SIZE, SIZE)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    losses = {}
    for _ in range(4):
        for name, spent in times.items():
            with ExitStack() as contexts:
                if name == "plain":
                    contexts.enter_context(plain_convolutions())
                    contexts.enter_context(patch.object(autoencoder, "store_by_frame", torch.Tensor.contiguous))
                started = time.process_time()
                loss, _ = objective(frames, torch.Generator().manual_seed(0))
                loss.backward()
                spent.append(time.process_time() - started)
            losses[name] = float(loss.detach())
            objective.zero_grad()
    assert abs(losses["plain"] / losses["ours"] - 1) < 1e-4, losses
    return Line(
        "VAE step with plain convolutions, to ours", f"{min(times['plain']) / min(times['ours']):.2f}x", ">= 1.5x"
    )


def dit_steps() -> Iterator[Line]:
    """CPU time of loss and gradients of a DiT in a straightforward version, as a multiple of ours.

    The straightforward version pads texts to 128 tokens, computes each stage by a call of its own with a dense mask and
    makes masks, positions and rotations anew. Weights, noise and loss are the same; the least of several times in turn.
    """
    sizes = {"num_heads": 4, "head_dim": 32, "text_dim": 64, "pooled_dim": 64, "rope_axes": (8, 12, 12)}
    dit = MiniFlux(MiniFluxConfig(**sizes, num_double_blocks=2, num_single_blocks=2))
    for parameter in dit.parameters():  # a new DiT predicts zero, whatever its blocks compute
        torch.nn.init.normal_(parameter, std=0.05)
    latents, schedule = torch.randn(3, 16, 16, 16, 16), Schedule(PyramidConfig())
    mask = torch.arange(32) < torch.tensor([12, 20, 32])[:, None]
    text = TextFeatures(torch.randn(3, 32, 64), mask, torch.randn(3, 64))
    column_by_column = ColumnByColumn(dit)
    for name, units, target in (("autoregressive", (8, 8, 16), ">= 2.5x"), ("full-sequence", None, ">= 2x")):
        times: dict[str, list[float]] = {"straightforward": [], "ours": []}
        losses = {}
        for _ in range(4):
            for version, model in (("straightforward", column_by_column), ("ours", dit)):
                noise, started = Noise(torch.Generator().manual_seed(0)), time.process_time()
                loss, _ = dit_loss(model, latents, text, schedule, noise, (1, 1, 1), units)
                loss.backward()
                times[version].append(time.process_time() - started)
                losses[version] = float(loss.detach())
                dit.zero_grad()
        assert abs(losses["straightforward"] / losses["ours"] - 1) < 1e-4, losses
        ratio = min(times["straightforward"]) / min(times["ours"])
        yield Line(f"{name} DiT step, straightforward, to ours", f"{ratio:.2f}x", target)


class ColumnByColumn(torch.nn.Module):
    """The straightforward DiT, one call for each column of a batch."""

    def __init__(self, dit: MiniFlux):
        super().__init__()
        self.one = Straightforward(dit, Habits())

    def forward(self, columns: list[list[Tensor]], timestep: Tensor, text: TextFeatures) -> list[Tensor]:
        """As `DiT.forward`."""
        rows = [range(number, len(timestep), len(columns)) for number in range(len(columns))]
        return [
            self.one([column], timestep[list(own)], padded(text.rows(own)))[0]
            for column, own in zip(columns, rows, strict=True)
        ]


if __name__ == "__main__":
    main()
