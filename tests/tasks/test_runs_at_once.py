"""Two curations at once on one root with other settings: no row is lost, and each judges its own clips. About 20 s."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pyramid_model.video.video import write_video
from tasks.cutting.clips import ClipsConfig, clips
from tasks.inspecting.verify import verify
from tasks.running.run import RayConfig, Run
from tasks.selecting.select import select
from tasks.selecting.select_config import SelectConfig
from tasks.sources.ingest import IngestConfig, ingest
from tasks.tables.delta import read_table

NUM_VIDEOS = 3
SETTINGS = {"long": {"min_frames": 8}, "short": {"min_frames": 8, "max_frames": 12}}


@pytest.mark.ray
def test_two_curations_at_once_with_other_settings_lose_nothing_and_judge_their_own_clips(ray_local, tmp_path):
    footage, root = tmp_path / "footage", str(tmp_path / "root")
    footage.mkdir()
    for number in range(NUM_VIDEOS):
        frames = np.random.default_rng(number).integers(0, 255, (24, 64, 64, 3), np.uint8)
        write_video(str(footage / f"{number}.mp4"), frames, fps=12)
    together = threading.Barrier(len(SETTINGS))

    def curate(name: str) -> tuple[int, int]:
        run = Run(root=root, ray=RayConfig(num_cpus=2), run_id=name)
        together.wait(60)
        ingest(run, IngestConfig(source=str(footage)))
        together.wait(60)
        cut = clips(run, ClipsConfig.model_validate(SETTINGS[name]))
        selected = select(run, SelectConfig(clips=cut.clips))
        return cut.num_ok, selected.num_ok

    with ThreadPoolExecutor(len(SETTINGS)) as pool:
        counts = dict(zip(SETTINGS, pool.map(curate, SETTINGS), strict=True))
    videos = read_table(root, "videos", newest=False).to_pylist()
    judged = read_table(root, "selections", newest=False).to_pylist()
    cut_by = {name: {id for row in videos if row["run_id"] == name for id in row["clip_ids"]} for name in SETTINGS}
    for name in SETTINGS:
        assert sum(row["run_id"] == name for row in videos) == NUM_VIDEOS
        assert {row["clip_id"] for row in judged if row["run_id"] == name} == cut_by[name]
        assert counts[name] == (NUM_VIDEOS, len(cut_by[name]))
    assert len(cut_by["short"]) > len(cut_by["long"]) > 0
    assert set(read_table(root, "clips")["clip_id"].to_pylist()) == cut_by["long"] | cut_by["short"]
    assert [finding.check for finding in verify(root) if finding.level == "fail"] == []
