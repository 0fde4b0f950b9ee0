"""The `datasets/` folder holds data only, and the sample says the truth about itself. About 15 s, mostly one import."""

import csv
import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]
DATASETS = REPO / "datasets"
SAMPLE = DATASETS / "sample"
SOURCE = yaml.safe_load((SAMPLE / "source.yaml").read_text(encoding="utf-8"))
FILES = {entry["path"]: entry for entry in SOURCE["files"]}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi"}
MAX_SAMPLE_BYTES = 12_000_000


@pytest.fixture(scope="module")
def captions() -> list[dict]:
    with open(SAMPLE / SOURCE["captions"], newline="", encoding="utf-8") as file:
        return [row | {"span": (float(row["start_s"]), float(row["end_s"]))} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def frame_times() -> dict[str, list[float]]:
    """Seconds of every decoded frame from the first one, by file."""
    times = {}
    for path in FILES:
        with av.open(str(SAMPLE / path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            seen = [frame.time for frame in container.decode(video=0)]
        times[path] = [time_s - seen[0] for time_s in seen]
    return times


def duration_s(times: list[float]) -> float:
    return times[-1] + times[-1] / (len(times) - 1)


def pinned_splits(file: str, start_s: float, end_s: float) -> set[str]:
    """The splits that a span of a file touches by more than a frame's rounding."""
    return {
        pin["split"]
        for pin in SOURCE["splits"]
        if pin["file"] == file
        and min(end_s, pin.get("end_s", float("inf"))) - max(start_s, pin.get("start_s", 0.0)) > 0.01
    }


def test_no_python_lives_in_the_datasets_folder():
    assert not [*DATASETS.rglob("*.py"), *DATASETS.rglob("*.pyc"), *DATASETS.rglob("*.ipynb")]


def test_importing_datasets_at_the_root_gives_the_hugging_face_library():
    code = "import datasets; print(callable(datasets.load_dataset), datasets.__file__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("True ")
    assert str(DATASETS) not in out.stdout


def test_source_yaml_has_the_documented_keys_and_no_others():
    assert set(SOURCE) == {"name", "license", "attribution", "url", "captions", "files", "splits"}
    for entry in SOURCE["files"]:
        assert set(entry) == {"path", "sha256", "license", "title", "origin", "changes", "cuts"}
    for pin in SOURCE["splits"]:
        assert {"file", "split"} <= set(pin) <= {"file", "split", "start_s", "end_s"}


def test_the_sample_is_small_enough_to_live_in_git():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= MAX_SAMPLE_BYTES


def test_every_video_is_listed_with_its_checksum_licence_and_origin():
    assert {path.name for path in SAMPLE.iterdir() if path.suffix in VIDEO_SUFFIXES} == set(FILES)
    for path, entry in FILES.items():
        assert hashlib.sha256((SAMPLE / path).read_bytes()).hexdigest() == entry["sha256"], path
        assert entry["license"] in {"CC-BY-3.0", "CC0-1.0"}
        assert entry["title"]
        assert entry["origin"]
        assert entry["changes"]


def test_the_card_names_every_file_and_the_rights_holders():
    card = (SAMPLE / "CARD.md").read_text(encoding="utf-8")
    assert all(path in card for path in FILES)
    for words in ("Blender Foundation", "CC-BY 3.0", "CC0", "Changes made", "Known limits"):
        assert words in card


def test_captions_lie_within_their_files_and_are_distinct(captions, frame_times):
    for row in captions:
        start_s, end_s = row["span"]
        assert row["file"] in FILES
        assert 0 <= start_s < end_s <= duration_s(frame_times[row["file"]]) + 0.01, row
        assert 6 <= len(row["text"].split()) <= 20, row
    texts = [row["text"] for row in captions]
    assert len(set(texts)) == len(texts)


def test_every_shot_of_at_least_0_7_s_has_a_caption_with_its_borders(captions, frame_times):
    for path, entry in FILES.items():
        times = frame_times[path]
        assert entry["cuts"] == sorted(set(entry["cuts"]))
        borders = [0.0, *(times[frame] for frame in entry["cuts"]), duration_s(times)]
        shots = [(a, b) for a, b in pairwise(borders) if b - a >= 0.7]
        spans = sorted(row["span"] for row in captions if row["file"] == path)
        assert spans == [pytest.approx(shot, abs=0.1) for shot in shots], path


def test_pinned_splits_do_not_overlap_and_cover_every_file(frame_times):
    for path, times in frame_times.items():
        pins = [pin for pin in SOURCE["splits"] if pin["file"] == path]
        spans = sorted((pin.get("start_s", 0.0), pin.get("end_s", duration_s(times))) for pin in pins)
        assert spans[0][0] == 0.0, path
        assert spans[-1][1] == pytest.approx(duration_s(times), abs=0.01)
        for (_, end_s), (start_s, _) in pairwise(spans):
            assert end_s == start_s, path


def test_the_validation_split_holds_out_whole_shots_of_films_that_are_also_trained_on(captions):
    splits = [pinned_splits(row["file"], *row["span"]) for row in captions]
    assert all(len(touched) == 1 for touched in splits), "a shot lies in two splits or in none"
    val_files = {row["file"] for row, touched in zip(captions, splits, strict=True) if touched == {"val"}}
    train_files = {row["file"] for row, touched in zip(captions, splits, strict=True) if touched == {"train"}}
    assert splits.count({"val"}) >= 4
    assert val_files <= train_files


def test_six_prompts_repeat_training_captions_and_two_are_new(captions):
    prompts = (SAMPLE / "prompts.txt").read_text(encoding="utf-8").splitlines()
    train_texts = {row["text"] for row in captions if pinned_splits(row["file"], *row["span"]) == {"train"}}
    assert [prompt in train_texts for prompt in prompts] == [True] * 6 + [False] * 2
    assert not {row["text"] for row in captions} & set(prompts[6:])
