"""Roots for the tests of the report, written once a process, and what reads a page."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyramid_model.video.video import write_video
from tasks.report.curation import Curation, read_curation
from tasks.report.report import ReportConfig, report
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Lineage, bad_row, ok_row

# ---- a root with a run from source files to generated clips ----------------------------------------------------------

LINEAGE = Lineage("run", "step", "1", "recipe", "code")
NUM_CLIPS, NUM_CURATED = 6, 8
CLIP_IDS = [content_id("clip", number) for number in range(NUM_CURATED)]
CAPTION = "A rabbit <yawns> & stretches"


def wandering_square(seed: int, side: int = 64, num_frames: int = 24) -> np.ndarray:
    """A bright square that wanders over a coloured slope; (t h w c) uint8."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(30, 160, side, dtype=np.float32)
    frames = np.empty((num_frames, side, side, 3), np.uint8)
    frames[:] = (slope[None, :, None, None] * rng.uniform(0.3, 1, 3)).astype(np.uint8)
    for t in range(num_frames):
        x, y = (int((side - 16) * (0.5 + 0.5 * np.sin(seed + t / 6 + phase))) for phase in (0, 1.5))
        frames[t, y : y + 16, x : x + 16] = 255 - slope.astype(np.uint8)[:16, None, None]
    return frames


def append(root: str, table: str, rows: list[dict], recipe: str = "recipe") -> None:
    lineage = Lineage("run", "step", "1", recipe, "code")
    append_block(root, table, rows, content_id(table, recipe, rows[0]["status"], len(rows)), lineage)


def video(root: str, *parts: str, seed: int = 0, side: int = 64) -> str:
    uri = str(Path(root, "media", *parts))
    write_video(uri, wandering_square(seed, side), 12)
    return uri


def write_sources(root: str) -> None:
    films = Path(root).parent / "films"
    films.mkdir()
    card = films / "source.yaml"
    card.write_text(
        "name: films\nattribution: Films by nobody in particular\nurl: https://example.org/films\n"
        "files: [{path: meadow.mp4, title: A meadow, changes: cut shorter}]\n"
    )
    common = {"source": "films", "license": "CC-BY-3.0", "card": str(card)}
    rows = [
        ok_row(
            {}, source_id=content_id("s", i), video_id=content_id("v", i), uri=f"{films}/{name}", path=name, **common
        )
        for i, name in enumerate(("meadow.mp4", "broken.mp4"))
    ]
    append(root, "sources", rows)


def write_clips(root: str) -> None:
    facts = {"width": 640, "height": 360, "fps_num": 24, "fps_den": 1, "codec": "h264", "num_frames": 480}
    facts |= {"path": "meadow.mp4", "source": "films"}
    good = ok_row(
        {},
        video_id=content_id("v", 0),
        duration_s=20.0,
        num_shots=6,
        num_clips=NUM_CLIPS,
        clip_ids=CLIP_IDS[:NUM_CLIPS],
        **facts,
    )
    broken = bad_row({}, ("truncated", "ends after 3 of 9 s"), video_id=content_id("v", 1))
    append(root, "videos", [good, broken])
    clips, scores, selections = [], [], []
    for number, clip_id in enumerate(CLIP_IDS[:NUM_CLIPS]):
        uri = video(root, "clips", f"{clip_id}.mp4", seed=number, side=320 if number == 0 else 64)
        times = {"start_s": 3.0 * number, "end_s": 3.0 * number + 2, "num_frames": 24, "width": 64, "height": 64}
        times["size_bytes"] = Path(uri).stat().st_size
        clips.append(ok_row({}, clip_id=clip_id, video_id=content_id("v", 0), uri=uri, **times))
        for scorer, value in (("motion", 0.5 + number), ("sharpness", 100.0 / (1 + number))):
            ids = {"score_id": content_id(clip_id, scorer), "clip_id": clip_id}
            scores.append(ok_row({}, **ids, scorer=scorer, value=value))
        own = {
            "keep": number > 0,
            "drop_reasons": [] if number else ["motion"],
            "split": "val" if number == 5 else "train",
        }
        selections.append(ok_row({}, selection_id=content_id("sel", number), clip_id=clip_id, **own))
    append(root, "clips", clips)
    append(root, "scores", scores)
    append(root, "selections", selections)
    text = {"caption_id": content_id("caption"), "clip_id": CLIP_IDS[1], "kind": "human", "text": CAPTION}
    short = {"caption_id": content_id("short"), "clip_id": CLIP_IDS[2], "kind": "short", "text": "A hill."}
    dense = {"caption_id": content_id("dense"), "clip_id": CLIP_IDS[2], "kind": "dense", "text": "A hill and a cloud."}
    append(root, "captions", [ok_row({}, **row) for row in (text, short, dense)])


def write_models(root: str) -> None:
    losses = [1 / (1 + step / 20) + 0.05 * np.sin(step) ** 2 for step in range(0, 300, 5)]
    curve = [{"step": 5 * i, "loss": loss, "lr": 1e-4} for i, loss in enumerate(losses)]
    curve[0] |= {"val_loss": 1.1}
    curve[-1] |= {"val_loss": 0.12}
    for kind in ("vae", "dit"):
        own = {
            "model_id": content_id(kind),
            "kind": kind,
            "weights_hash": content_id(kind, "weights"),
            "num_steps": 300,
        }
        metrics = {"val_loss": 0.12, "val_loss_untrained": 1.1, "val_loss_linear": 0.28, "val_loss_no_text": 0.13}
        json_columns = {"curve": json.dumps(curve), "metrics": json.dumps(metrics), "config": "{}"}
        append_block(root, "models", [ok_row({}, **own, **json_columns)], kind, LINEAGE)
    for candidate in ("untrained", "trained"):
        write_evaluation(root, candidate)


def write_evaluation(root: str, candidate: str) -> None:
    evaluation_id, passed = content_id("evaluation", candidate), candidate == "trained"
    check = {
        "name": "val_loss_to_untrained",
        "value": 0.4 if passed else 1.0,
        "limit": 0.9,
        "passed": passed,
        "rule": "",
    }
    sample, restored = (video(root, "evaluations", evaluation_id, f"{name}-0.mp4") for name in ("sample", "restored"))
    metrics = {
        "candidate": candidate,
        **{
            "val_loss": 0.12,
            "val_loss_untrained": 1.1,
            "vae_psnr": 24.5,
            "vae_psnr_untrained": 6.1,
            "vae_psnr_linear": 23.9,
        },
        "samples": [{"prompt": CAPTION, "uri": sample, "clip_id": CLIP_IDS[1], "seed": 0}],
        "reconstructions": [{"clip_id": CLIP_IDS[5], "uri": restored, "psnr": 23.25}],
    }
    row = ok_row(
        {},
        evaluation_id=evaluation_id,
        model_id=content_id("dit"),
        weights_hash=content_id("dit", "weights"),
        metrics=json.dumps(metrics),
        checks=json.dumps([check]),
        passed=passed,
        media=[sample, restored],
    )
    append_block(root, "evaluations", [row], candidate, LINEAGE)


def write_generations(root: str) -> None:
    rows = [
        ok_row(
            {},
            generation_id=content_id("generation", number),
            prompt=prompt,
            seed=number,
            settings='{"guidance_scale": 4.0}',
            timings='{"total_s": 3.25}',
            weights_hash=content_id("dit", "weights"),
            uri=video(root, "generated", f"{number}.mp4", seed=number),
        )
        for number, prompt in enumerate((CAPTION, "Something never filmed"))
    ]
    append(root, "generations", rows)


WRITERS = {"sources": write_sources, "clips": write_clips, "models": write_models, "generations": write_generations}


def write_parts(root: str, *parts: str) -> None:
    for part in parts or WRITERS:
        WRITERS[part](root)


@pytest.fixture(scope="session")
def write_root() -> Callable[..., None]:
    """`write_root(root, "sources", …)`: these parts of a run, or all of them, from source files to generated clips."""
    return write_parts


@pytest.fixture(scope="session")
def whole_root(tmp_path_factory) -> str:
    """A run from source files to generated clips; not to be changed."""
    root = str(tmp_path_factory.mktemp("report") / "root")
    write_parts(root)
    return root


@pytest.fixture(scope="session")
def moving_square() -> Callable[..., np.ndarray]:
    """`moving_square(seed, side, num_frames)`: frames of a small video, (t h w c) uint8."""
    return wandering_square


@pytest.fixture(scope="session")
def page_of() -> Callable[..., str]:
    """`page_of(root, **settings)`: the report of a root, written if need be."""

    def page_of(root: str, **settings) -> str:
        result = report(Run(root=root), ReportConfig(**settings))
        return Path(result.uri).read_text()

    return page_of


@pytest.fixture(scope="session")
def embedded():
    """`embedded(page, name)`: data that the page's script reads."""

    def embedded(page: str, name: str):
        return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)[1])

    return embedded


# ---- a root whose curation is known clip by clip ---------------------------------------------------------------------


def verdict(number: int, recipe: str, reasons: list[str]) -> dict:
    own = {
        "keep": not reasons,
        "drop_reasons": reasons,
        "bucket": "36x64x9@8",
        "split": "val" if number == 4 else "train",
    }
    return ok_row({}, selection_id=content_id(recipe, number), clip_id=CLIP_IDS[number], **own)


def reasons_of(number: int) -> list[str]:
    motion = ["motion_low"] * (number < 3) + ["motion_high"] * (number > 6)
    return motion + ["duplicate_phash"] * (number in (1, 5))


@pytest.fixture(scope="session")
def curated_root(tmp_path_factory) -> str:
    """Five files, one of them unreadable and one a copy; three videos, one of them broken; eight clips, one unjudged.

    Motion of clip n is n; limits are 3 and 6.5; clips 0 and 1, and 4 and 5, show the same.
    """
    root = str(tmp_path_factory.mktemp("curation") / "root")
    files = [("a.mp4", "a"), ("b.mp4", "b"), ("copy of b.mp4", "b"), ("broken.mp4", "c")]
    rows = [
        ok_row({}, source_id=content_id("s", path), video_id=content_id("v", video), path=path, source="films")
        for path, video in files
    ]
    locked = bad_row({}, ("unreadable", "no permission"), source_id=content_id("s", 4), video_id="", path="locked.mp4")
    append(root, "sources", [*rows, locked | {"source": "films"}])
    videos = [
        ok_row({}, video_id=content_id("v", name), path=f"{name}.mp4", num_clips=4, duration_s=4.0, clip_ids=own)
        for name, own in (("a", CLIP_IDS[:4]), ("b", CLIP_IDS[4:]))
    ]
    append(root, "videos", [*videos, bad_row({}, ("truncated", "ends early"), video_id=content_id("v", "c"))])
    clips = [
        ok_row(
            {},
            clip_id=clip_id,
            video_id=content_id("v", "a" if number < 4 else "b"),
            uri=f"{root}/media/{number}.mp4",
            start_s=float(number % 4),
            end_s=number % 4 + 1.0,
            **{"num_frames": 8, "fps_num": 8, "fps_den": 1, "width": 64, "height": 36, "size_bytes": 100 - number},
        )
        for number, clip_id in enumerate(CLIP_IDS)
    ]
    append(root, "clips", clips)
    motion = [
        ok_row({}, score_id=content_id("m", n), clip_id=clip_id, scorer="motion", value=float(n), details="{}")
        for n, clip_id in enumerate(CLIP_IDS)
    ]
    camera = [
        ok_row(
            {},
            score_id=content_id("k", n),
            clip_id=clip_id,
            scorer="camera_motion",
            details=json.dumps({"label": label}),
        )
        for n, (clip_id, label) in enumerate(zip(CLIP_IDS, ["static", "pan left", "static", "static"], strict=False))
    ]
    append(root, "scores", [*motion, *camera])
    groups = [(0, "x", 0), (1, "x", 1), (4, "y", 0), (5, "y", 1)]
    rows = [
        ok_row({}, duplicate_id=content_id("d", n), clip_id=CLIP_IDS[n], method="phash", group_id=group, rank=rank)
        for n, group, rank in groups
    ]
    append(root, "duplicates", [row | {"keeper": row["rank"] == 0, "num_clips": 2, "similarity": 0.9} for row in rows])
    append(root, "selections", [verdict(n, "wide", []) for n in range(NUM_CURATED)], "wide")
    append(root, "selections", [verdict(n, "strict", reasons_of(n)) for n in range(NUM_CURATED - 1)], "strict")
    return root


@pytest.fixture(scope="session")
def curation(curated_root) -> Curation:
    """What the report reads of `curated_root`."""
    return read_curation(curated_root)
