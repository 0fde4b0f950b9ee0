"""A root that holds a handful of tiny selected clips, as the curation steps would leave it."""

from pathlib import Path

import numpy as np
import pytest

from tasks.step import RayConfig, Run
from tasks.tables import Lineage, append_block, content_id, ok_row

SIZE, NUM_FRAMES, FPS = 32, 9, 8
BUCKET = f"{SIZE}x{SIZE}x{NUM_FRAMES}@{FPS}"
COLOURS = ("red", "green", "blue")


def moving_square(channel: int, speed: int) -> np.ndarray:
    """A coloured square that slides to the right on grey; (t h w 3) uint8."""
    frames = np.full((NUM_FRAMES, SIZE, SIZE, 3), 90, np.uint8)
    for t in range(NUM_FRAMES):
        left = (4 + speed * t) % (SIZE - 8)
        frames[t, 10:20, left : left + 8] = 30
        frames[t, 10:20, left : left + 8, channel] = 220
    return frames


def fill_root(root: Path, footage: Path) -> Run:
    """Tables and media of six clips (four to train on, two held out) and a caption file that knows five of them."""
    from pyramid_model.video import write_video

    run = Run(root=str(root), ray=RayConfig(num_cpus=2), run_id="test")
    footage.mkdir(parents=True)
    rows: dict[str, list[dict]] = {"sources": [], "videos": [], "clips": [], "selections": []}
    captions = ["file,start_s,end_s,text"]
    for number in range(6):
        name, colour = f"video{number}.mp4", COLOURS[number % 3]
        video_id = content_id("video", number)
        clip_id = content_id("clip", number)
        uri = run.media("clips", f"{clip_id}.mp4")
        write_video(uri, moving_square(number % 3, 1 + number // 3), FPS)
        if number != 3:
            captions.append(f"{name},0.0,1.2,A {colour} square slides to the right.")
        found = {"video_id": video_id, "uri": str(footage / name), "path": name}
        card = str(footage / "source.yaml")
        rows["sources"].append(ok_row({}, source_id=content_id("source", number), card=card, **found))
        rows["videos"].append(ok_row({}, **found))
        seconds = {"start_s": 0.0, "end_s": NUM_FRAMES / FPS, "start_frame": 0, "num_frames": NUM_FRAMES}
        rows["clips"].append(ok_row({}, clip_id=clip_id, video_id=video_id, uri=uri, **seconds))
        verdict = {"keep": True, "drop_reasons": [], "bucket": BUCKET, "split": "train" if number < 4 else "val"}
        rows["selections"].append(ok_row({}, selection_id=content_id(clip_id), clip_id=clip_id, **verdict))
    (footage / "captions.csv").write_text("\n".join(captions) + "\n")
    (footage / "source.yaml").write_text("name: squares\ncaptions: captions.csv\n")
    for table, found in rows.items():
        append_block(run.root, table, found, "fixture", Lineage("test", "fixture", "1", "squares", ""))
    return run


@pytest.fixture
def squares(tmp_path) -> Run:
    """A root of its own."""
    return fill_root(tmp_path / "root", tmp_path / "footage")


@pytest.fixture(scope="module")
def shared_squares(tmp_path_factory) -> Run:
    """A root that the tests of one file share."""
    folder = tmp_path_factory.mktemp("squares")
    return fill_root(folder / "root", folder / "footage")
