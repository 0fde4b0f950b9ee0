"""Precision and recall of all methods of shot detection, on videos with labelled cuts.

    uv run python benchmarks/shots.py                       # labelled videos beside the repository, else the sample
    uv run python benchmarks/shots.py FOLDER                # a folder with cuts.json, transitions.json and the videos
    uv run python benchmarks/shots.py --method adaptive

A cut at most one frame from a label is a hit. Cuts inside a gradual transition or a span labelled `ignore` do not
count. `gradual` is the share of frames of labelled transitions that no clip would contain; `lost` is that share of all
other frames. CPU time is that of detection with decoding.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import cv2
import torch
import yaml
from rich.console import Console
from rich.table import Table

from pyramid_model.shots.shots import Method, ShotsConfig, find_shots

REPOSITORY = Path(__file__).resolve().parents[1]
ASSETS, SAMPLE = REPOSITORY.parent / "shared" / "assets", REPOSITORY / "datasets" / "sample"
Span = tuple[int, int]


@dataclass(frozen=True)
class Labels:
    """Labels of one video."""

    path: Path
    cuts: list[int]
    gradual: list[Span] = field(default_factory=list)
    ignored: list[Span] = field(default_factory=list)


@dataclass
class Score:
    """Counts for one video or the sum for several."""

    hits: int = 0
    missed: int = 0
    false: int = 0
    gradual_found: int = 0
    gradual: int = 0
    lost: int = 0
    frames: int = 0
    seconds: float = 0.0

    def add(self, other: "Score") -> None:
        """Add the counts of `other`."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def row(self) -> list[str]:
        """Cells of the table."""
        shares = [
            (self.hits, self.hits + self.false),
            (self.hits, self.hits + self.missed),
            (self.gradual_found, self.gradual),
            (self.lost, self.frames - self.gradual),
        ]
        counts = [str(value) for value in (self.hits, self.missed, self.false)]
        return [*counts, *(f"{a / b:.3f}" if b else "" for a, b in shares), f"{1000 * self.seconds / self.frames:.2f}"]


def read_labels(folder: Path) -> list[Labels]:
    """Labels of a folder with `cuts.json`, or of a source with `cuts` in its `source.yaml`.

    Raises:
        FileNotFoundError: the folder has neither.
    """
    if not (folder / "cuts.json").exists():
        files = yaml.safe_load((folder / "source.yaml").read_text())["files"]
        return [Labels(folder / file["path"], file["cuts"]) for file in files if "cuts" in file]
    path = folder / "transitions.json"
    transitions = json.loads(path.read_text()) if path.exists() else {}
    labelled = []
    for name, cuts in json.loads((folder / "cuts.json").read_text()).items():
        spans = [[(a, b) for a, b, *_ in transitions.get(name, {}).get(kind, [])] for kind in ("gradual", "ignore")]
        labelled.append(Labels(next(path for path in sorted(folder.rglob("*")) if path.name == name), cuts, *spans))
    return labelled


def score(labels: Labels, config: ShotsConfig) -> Score:
    """Compare detected shots with labels."""
    started = time.process_time()
    shots = find_shots(str(labels.path), config)
    seconds = time.process_time() - started
    hits = sum(any(abs(cut - shot_start) <= 1 for shot_start in shots.cuts) for cut in labels.cuts)
    false = [
        shot_start
        for shot_start in shots.cuts
        if not any(abs(cut - shot_start) <= 1 for cut in labels.cuts)
        and not any(first <= shot_start <= last for first, last in labels.gradual + labels.ignored)
    ]
    trimmed, gradual, ignored = (_frames(spans) for spans in (shots.gradual, labels.gradual, labels.ignored))
    counts = (len(trimmed & gradual), len(gradual), len(trimmed - gradual - ignored), shots.num_frames, seconds)
    return Score(hits, len(labels.cuts) - hits, len(false), *counts)


def _frames(spans: list[Span]) -> set[int]:
    return {frame for first, last in spans for frame in range(first, last + 1)}


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = ASSETS if (ASSETS / "cuts.json").exists() else SAMPLE
    parser.add_argument("folder", nargs="?", type=Path, default=usual, help=f"default: {usual.name}")
    methods = [method for method in get_args(Method) if method != "stride"]
    parser.add_argument("--method", choices=methods, help="only this one")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    videos = read_labels(options.folder)
    table = Table("method", "video", title=f"cuts of {len(videos)} videos in {options.folder.name}")
    names = ["hits", "missed", "false", "precision", "recall", "gradual", "lost", "CPU ms a frame"]
    for name in names:
        table.add_column(name, justify="right")
    for method in [options.method] if options.method else methods:
        total = Score()
        for labels in videos:
            tally = score(labels, ShotsConfig(method=method))
            total.add(tally)
            table.add_row(method, labels.path.name, *tally.row())
        table.add_row(f"[bold]{method}[/]", "[bold]all[/]", *total.row(), end_section=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console = Console(width=140 if not sys.stdout.isatty() else None)
    console.print(table, f"one thread, load {load}", highlight=False)


if __name__ == "__main__":
    main()
