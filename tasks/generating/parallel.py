"""One clip sampled by several ranks together: each rank holds all models. Runs under torchrun or as Ray actors.

    torchrun --nproc-per-node 4 -m tasks.generating.parallel '{"models": {"directory": …, "variant": "768p"},
                                                             "prompt": "a lake at dawn", "uri": "lake.mp4"}'
    python -m tasks.generating.parallel '{… the same …, "num_ranks": 4, "num_gpus": 1}'

The JSON may also be `@file`. Under torchrun the ranks are its processes, else Ray actors. Rank 0 writes the clip.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from pyramid_model.config import Config
from pyramid_model.flow.sampler import OFF
from pyramid_model.generate.byte_sizes import parse_bytes
from pyramid_model.generate.request import GenerationRequest
from tasks.generating.clip_generator import ModelFolders, load_pipeline
from tasks.running.cluster import connect
from tasks.running.errors import StepError
from tasks.running.run import RayConfig


class SharedClip(Config):
    """One clip, and the ranks that sample it."""

    models: ModelFolders
    prompt: str
    seed: int = Field(default=0, ge=0)
    image: str = Field(default="", description="picture that is the first frame")
    video: str = Field(default="", description="video that the clip continues")
    uri: str = Field(description="path of the clip, ending in .mp4, or .png for a picture")
    request: GenerationRequest = GenerationRequest()
    max_memory: str = Field(
        default="", description="most memory of each rank's device, e.g. 24GiB; empty: all that is free"
    )
    dtype: str = Field(default="", description="type of all weights; empty: bfloat16 on GPUs, float32 on CPUs")
    num_ranks: int = Field(default=1, ge=1, description="number of Ray actors; torchrun sets its own number of ranks")
    num_cpus: float = Field(default=1, gt=0, description="CPUs and torch threads of a Ray actor")
    num_gpus: float = Field(default=0, ge=0, le=1, description="GPUs of a Ray actor: 1, or 0 for none")
    ray: RayConfig = RayConfig()


class Rank:
    """One rank: the models. Each rank computes a part of the tokens or of the guidance rows of the DiT."""

    def __init__(self, models: ModelFolders, device: str, dtype: str = "", num_ranks: int = 1, guided: bool = True):
        from pyramid_model.parallel.layout import best_layout, share_sampling

        self.num_ranks = num_ranks
        self.pipeline = load_pipeline(models, dtype or ("float32" if device == "cpu" else "bfloat16"), device)
        share_sampling(self.pipeline.dit, best_layout(num_ranks, self.pipeline.dit.config.num_heads, guided))

    def generate(self, clip: SharedClip, writes: bool) -> dict[str, float]:
        """Sample the clip together with all other ranks, which make the same call; one of them decodes and writes it.

        Returns:
            Seconds by name.
        """
        from pyramid_model.generate.batch import ClipBatch

        batch = ClipBatch(
            [clip.prompt],
            clip.request,
            [clip.seed],
            image=clip.image or None,
            video=clip.video or None,
            output="latents",
            paths=[clip.uri] if writes else (),
            max_memory=parse_bytes(clip.max_memory) if clip.max_memory else self.agreed_bytes(),
        )
        return self.pipeline.generate(batch).timings

    def agreed_bytes(self) -> int:
        """Least free memory of all ranks. It limits the KV cache of history, whose size must be equal on all ranks."""
        import torch
        import torch.distributed as dist

        device = self.pipeline.device
        free_bytes = torch.tensor(self.pipeline.free_bytes(), device=device)
        if self.num_ranks > 1:
            dist.all_reduce(free_bytes, dist.ReduceOp.MIN)
        # Ranks on CPUs may share the memory of one machine.
        return int(free_bytes) // (self.num_ranks if device.type == "cpu" else 1)


def run_rank(
    clips: Sequence[SharedClip], rank: int, num_ranks: int, device: str, init_method: str
) -> list[dict[str, float]]:
    """Join the process group, load the models, sample the clips and leave. Returns seconds by name, for each clip.

    Args:
        clips: the same on every rank, and all by the same models.
        rank: of this process; 0 writes the clips.
        num_ranks: of all processes.
        device: of this rank.
        init_method: address of the process group: tcp://host:port, or env://.
    """
    import torch
    import torch.distributed as dist

    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method, rank=rank, world_size=num_ranks)
    try:
        guided = any(is_guided(clip.request) for clip in clips)
        this_rank = Rank(clips[0].models, device, clips[0].dtype, num_ranks, guided)
        timings = [this_rank.generate(clip, writes=rank == 0) for clip in clips]
        dist.barrier()  # all ranks wait until rank 0 has written the clips
    finally:
        dist.destroy_process_group()
    return timings


def is_guided(request: GenerationRequest) -> bool:
    """Whether units after the first (for an image: the first) use guidance."""
    return (request.guidance_scale if request.num_latent_frames == 1 else request.video_guidance_scale) not in OFF


def generate_with_ray(clips: Sequence[SharedClip]) -> list[dict[str, float]]:
    """Run the ranks as Ray actors, on as few machines as possible; returns seconds by name, for each clip.

    Args:
        clips: generated one after the other by ranks that load the models once. The first clip decides models and
            resources.

    Raises:
        StepError: the cluster is too small.
    """
    clip = clips[0]
    connect(clip.ray)
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"CPU": clip.num_cpus} | ({"GPU": clip.num_gpus} if clip.num_gpus else {})
    cluster = ray.cluster_resources()
    for kind, each in bundle.items():
        if cluster.get(kind, 0) < each * clip.num_ranks:
            raise StepError(
                f"{clip.num_ranks} ranks of {each:g} {kind}s need {each * clip.num_ranks:g} and the cluster has "
                f"{cluster.get(kind, 0):g}: lower num_ranks, or add nodes"
            )
    # PACK: ranks exchange tokens in every block, which is fast within a machine
    group = placement_group([bundle] * clip.num_ranks, strategy="PACK")
    actors: list[Any] = [
        ray.remote(RankActor)
        .options(
            num_cpus=clip.num_cpus,
            num_gpus=clip.num_gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        .remote(clips, rank)
        for rank in range(clip.num_ranks)
    ]
    try:
        meeting = ray.get(actors[0].meeting_point.remote())
        return ray.get([actor.run.remote(meeting) for actor in actors])[0]
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(group)


class RankActor:
    """Ray actor: one rank."""

    def __init__(self, clips: Sequence[SharedClip], rank: int):
        self.clips, self.rank = clips, rank

    def meeting_point(self) -> str:
        """URL of a free port on this machine, for the process group of the ranks."""
        import ray

        with socket.socket() as listener:
            listener.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"

    def run(self, meeting: str) -> list[dict[str, float]]:
        """See `run_rank`."""
        import torch

        first = self.clips[0]
        torch.set_num_threads(max(1, round(first.num_cpus)))
        device = "cuda:0" if first.num_gpus else "cpu"  # index among the GPUs that Ray shows to this actor
        return run_rank(self.clips, self.rank, first.num_ranks, device, meeting)


def main(argv: Sequence[str]) -> int:
    """Make the clip that the command line describes; returns the exit code."""
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    text = Path(argv[0][1:]).read_text() if argv[0].startswith("@") else argv[0]
    clip = SharedClip.model_validate_json(text)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        timings, rank = generate_with_ray([clip]), 0
    else:
        import torch

        rank, num_ranks, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        timings = run_rank([clip], rank, num_ranks, device, "env://")
    if rank == 0:
        print(json.dumps({"uri": clip.uri} | timings[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
