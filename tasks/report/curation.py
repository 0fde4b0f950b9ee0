"""The current clips with their scores, verdicts and captions, read once for the report, and counts of kept clips."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pyramid_model.train.buckets import Bucket, parse_bucket
from tasks.inspecting.table_stats import DropReason, reason_counts
from tasks.selecting.splits import SPLITS
from tasks.tables.current import clip_figures, current_clip_ids
from tasks.tables.delta import read_table
from tasks.tables.drop_reasons import OUTER_SET
from tasks.tables.manifest import clips_with_scores, left_join, newest_selection, verdicts_of
from tasks.tables.newest import ORDER, newest_ok_by
from tasks.tables.schemas import SCHEMAS

JOINED = ("keep", "drop_reasons", "bucket", "split", "caption")


@dataclass(frozen=True)
class Curation:
    """The current clips; large columns stay in Arrow."""

    # Columns: those of `clips`, CLIP_FIGURES, `path` and `source` of the video, one for each scorer, verdict, caption.
    clips: pa.Table
    scorers: list[str]
    selection: str  # params_hash of the newest selection, "" when nothing was selected
    num_named: int  # clips that the rows of videos name: equal to the number of clips, unless rows were lost
    captions: pa.Table  # clip_id, kind, text: the newest caption of each kind, where that is ok

    @cached_property
    def keep(self) -> list[bool | None]:
        """The verdict on each clip; None: not judged yet."""
        return self.clips["keep"].to_pylist()

    @cached_property
    def drop_reasons(self) -> list[list[str]]:
        """Every rule that each clip breaks, in the order of the rules.

        A reason `not_in_…`, by which the wider set dropped the clip, is left out where a clip has another reason.
        """
        lists = [reasons or [] for reasons in self.clips["drop_reasons"].to_pylist()]
        return [[reason for reason in reasons if not reason.startswith(OUTER_SET)] or reasons for reasons in lists]

    @cached_property
    def rules(self) -> list[DropReason]:
        """Clips that each rule drops, in the order of the rules."""
        return reason_counts(self.drop_reasons)

    @property
    def num_kept(self) -> int:
        """Clips that the newest selection keeps."""
        return self.keep.count(True)

    @property
    def num_judged(self) -> int:
        """Clips that the newest selection judged."""
        return len(self.keep) - self.keep.count(None)

    def kept_clips(self) -> pa.Table:
        """The kept clips."""
        return self.clips.filter(pc.equal(self.clips["keep"], True))


def read_curation(root: str) -> Curation:
    """The current clips of a root, in the order of (path, start)."""
    rows = clips_with_scores(root)
    no_scores = {*SCHEMAS["clips"].names, *JOINED}
    scorers = [name for name in rows.column_names if name not in no_scores]
    current_ids = pc.unique(current_clip_ids(root))
    current = pc.is_in(rows["clip_id"], value_set=current_ids)
    rows = rows.filter(pc.and_(current, pc.equal(rows["status"], "ok")))
    videos = read_table(root, "videos", ["video_id", "path", "source"])
    rows = left_join(rows, videos, "video_id", {"path": "path", "source": "source"})
    order = pc.sort_indices(rows, [("path", "ascending"), ("start_s", "ascending")])
    rows = rows.take(order)
    for name, column in clip_figures(rows).items():
        if name not in rows.column_names:
            rows = rows.append_column(name, column)
    captions = read_table(root, "captions", ["clip_id", "kind", "text", "status", *ORDER])
    captions = newest_ok_by(captions, ["clip_id", "kind"])
    return Curation(rows, scorers, newest_selection(root), len(current_ids), captions)


@dataclass(frozen=True)
class BucketLine:
    """Kept clips of one bucket."""

    bucket: Bucket
    splits: dict[str, int]

    @property
    def aspect(self) -> str:
        """Name of its aspect ratio."""
        return aspect_name(self.bucket.width, self.bucket.height)

    @property
    def num_clips(self) -> int:
        """Clips of all splits."""
        return sum(self.splits.values())


COMMON_ASPECTS = {"16:9": 16 / 9, "5:3": 5 / 3, "3:2": 3 / 2, "4:3": 4 / 3, "2:1": 2.0, "21:9": 21 / 9, "1:1": 1.0}


def aspect_name(width: int, height: int) -> str:
    """The common aspect ratio within 2 %, else width over height, such as 1.85:1."""
    for name, ratio in COMMON_ASPECTS.items():
        if abs(width / height / ratio - 1) < 0.02:
            return name
        if abs(height / width / ratio - 1) < 0.02:
            return ":".join(reversed(name.split(":")))
    return f"{width / height:.3g}:1"


def bucket_lines(curation: Curation) -> list[BucketLine]:
    """Kept clips by bucket: the largest pictures first, longer clips first among equals."""
    kept_clips = curation.kept_clips()
    pairs = zip(kept_clips["bucket"].to_pylist(), kept_clips["split"].to_pylist(), strict=True)
    counts = Counter((bucket, split) for bucket, split in pairs if bucket)
    names = {bucket for bucket, _ in counts}
    lines = [BucketLine(parse_bucket(name), {split: counts[name, split] for split in SPLITS}) for name in names]
    return sorted(lines, key=_bucket_order)


def _bucket_order(line: BucketLine) -> tuple[float, ...]:
    bucket = line.bucket
    return -bucket.height * bucket.width, -bucket.width, -bucket.num_frames, -bucket.fps


@dataclass(frozen=True)
class SplitLine:
    """Kept clips of one split."""

    split: str
    num_videos: int
    num_clips: int
    seconds: float


def split_lines(curation: Curation) -> list[SplitLine]:
    """Kept clips by split."""
    kept_clips = curation.kept_clips()
    lines = []
    for split in SPLITS:
        rows = kept_clips.filter(pc.equal(kept_clips["split"], split))
        if rows.num_rows:
            seconds = total_s(rows)
            lines.append(SplitLine(split, len(pc.unique(rows["video_id"])), rows.num_rows, seconds))
    return lines


@dataclass(frozen=True)
class SetLine:
    """Kept clips of one of several nested sets."""

    name: str
    splits: dict[str, int]
    seconds: float
    is_on_page: bool  # whether the rest of the page is about this set

    @property
    def num_clips(self) -> int:
        """Clips of all splits."""
        return sum(self.splits.values())


def set_lines(root: str, curation: Curation, sets: Mapping[str, str]) -> list[SetLine]:
    """Kept clips of each set, the widest first. sets: name -> selection."""
    lines = []
    for name, selection in sets.items():
        kept_clips = verdicts_of(root, selection).filter(pc.field("keep")).select(["clip_id", "split"])
        kept_clips = left_join(kept_clips, curation.clips, "clip_id", {"duration_s": "duration_s"})
        kept_clips = kept_clips.filter(pc.is_valid(kept_clips["duration_s"]))  # a clip that is no longer cut has none
        counts = Counter(kept_clips["split"].to_pylist())
        seconds = pc.sum(kept_clips["duration_s"]).as_py() or 0.0
        lines.append(
            SetLine(name, {split: counts[split] for split in SPLITS}, seconds, selection == curation.selection)
        )
    return lines


def total_s(clips: pa.Table) -> float:
    """Total length of clips, seconds."""
    return pc.sum(clips["duration_s"]).as_py() or 0.0


def common_reasons(reasons: Sequence[str], most: int = 4) -> str:
    """Reasons with their counts as one phrase: the `most` most frequent ones, and how many others."""
    counts = Counter(reasons).most_common()
    num_others = sum(count for _, count in counts[most:])
    words = [f"{count:,} {reason}" for reason, count in counts[:most]]
    return ", ".join([*words, f"{num_others:,} for other reasons"] if num_others else words)
