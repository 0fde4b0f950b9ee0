"""Tables as the steps before a selection write them."""

from collections.abc import Callable

import pytest

from tasks.running.run import Run, lineage
from tasks.scoring.scores import score_id
from tasks.selecting.select_config import SelectConfig
from tasks.selecting.splits import hashed_split
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import selected_clips
from tasks.tables.delta import read_table
from tasks.tables.newest import in_order
from tasks.tables.rows import ok_row

CONFIG = SelectConfig(buckets=("48x80x9@24",), thresholds={"motion": {"min": 1, "max": 9}}, val_fraction=0.5)


def clip_row(name: str, **changes) -> dict:
    row = {"clip_id": name, "video_id": f"film-{name[0]}", "num_frames": 24, "fps_num": 24, "fps_den": 1}
    row |= {"height": 96, "width": 160, "start_frame": int(name[1:]) * 24}
    row |= {"start_s": float(name[1:]), "end_s": float(name[1:]) + 1}
    return row | changes


class Tables:
    """Writes the rows that the steps before would have written."""

    def __init__(self, root):
        self.run = Run(root=str(root))
        self.count = 0

    def add(self, table: str, rows: list[dict]) -> None:
        self.count += 1
        append_block(self.run.root, table, rows, str(self.count), lineage(self.run, "test", "1", CONFIG))

    def clips(self, *clips: dict, motion: float = 5.0) -> None:
        """Clips with a motion score each, as the current ones of their videos."""
        self.add("clips", [ok_row({}, **row) for row in clips])
        ids = [(row["clip_id"], score_id(row["clip_id"], "motion")) for row in clips]
        self.add("scores", [ok_row({}, score_id=i, clip_id=c, scorer="motion", value=motion) for c, i in ids])

    def scores(self, scorer: str, **values: float) -> None:
        """Scores of a scorer by clip."""
        ids = [(content_id(name, scorer), name, value) for name, value in values.items()]
        self.add("scores", [ok_row({}, score_id=i, clip_id=c, scorer=scorer, value=value) for i, c, value in ids])

    def groups(self, *groups: str, method: str = "phash", attempt: int = 1) -> None:
        """Groups of duplicates, each the names of its clips in the order in which they are kept."""
        rows = [
            {"clip_id": name, "method": method, "group_id": group, "keeper": rank == 0, "rank": rank}
            for group in groups
            for rank, name in enumerate(group.split())
        ]
        ids = [content_id(row["clip_id"], method) for row in rows]
        self.add(
            "duplicates",
            [ok_row({"attempt": attempt}, duplicate_id=i, **row) for i, row in zip(ids, rows, strict=True)],
        )

    def videos(self, attempt: int = 1, source: str = "films", **clip_ids: list[str]) -> None:
        self.add(
            "videos",
            [
                ok_row({"attempt": attempt}, video_id=f"film-{name}", clip_ids=ids, source=source)
                for name, ids in clip_ids.items()
            ],
        )

    def many(self, **counts: int) -> None:
        """Videos of so many clips each, with a score `beauty` that rises from 0 to 1 in each video."""
        for name, count in counts.items():
            clips = [clip_row(f"{name}{number}") for number in range(count)]
            self.clips(*clips)
            self.scores("beauty", **{row["clip_id"]: number / count for number, row in enumerate(clips)})

    def verdicts(self) -> dict[str, tuple]:
        """(keep, reasons, bucket, split) by clip, of the newest selection."""
        rows = in_order(read_table(self.run.root, "selections", newest=False)).to_pylist()
        return {row["clip_id"]: (row["keep"], row["drop_reasons"], row["bucket"], row["split"]) for row in rows}

    def kept(self, selection: str = "") -> set[str]:
        """Ids of the clips that a selection keeps; empty: the newest."""
        return set(selected_clips(self.run.root, selection)["clip_id"].to_pylist())


@pytest.fixture
def no_tables(tmp_path) -> Tables:
    """A root without rows."""
    return Tables(tmp_path / "root")


@pytest.fixture
def tables(no_tables: Tables) -> Tables:
    """Two videos; with half of the videos for validation, a is for training and c for validation."""
    made = no_tables
    made.clips(clip_row("a0"), clip_row("a1"), clip_row("c0"))
    made.videos(a=["a0", "a1"], c=["c0"])
    assert (hashed_split("film-a", 0.5, 0), hashed_split("film-c", 0.5, 0)) == ("train", "val")
    return made


@pytest.fixture
def clip() -> Callable[..., dict]:
    """Columns of `clips` for a name: its letter is that of the video, its number the place in it."""
    return clip_row


@pytest.fixture
def with_changes() -> Callable[..., SelectConfig]:
    """The settings of these tests, with changes."""
    return lambda **changes: SelectConfig(**CONFIG.model_dump() | changes)
