"""Export of the selected clips with their captions in the formats of other training code.

`webdataset`: shards of `<clip_id>.mp4`, `.json` and `.txt`. `pyramid-flow`: the JSON lines of its annotation files.
`open-sora`: a CSV with path, text, size, length and scores.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

from tasks.running.pipeline import split_blocks
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.delta import TableError, read_table
from tasks.tables.manifest import CLIPS_WITH_SCORES, Filter, select_rows
from tasks.tables.plain_text import spreadsheet_cell
from tasks.tables.rows import SelectedClipRow, VideoRow, as_rows
from tasks.tables.schemas import SCHEMAS
from tasks.tables.storage import absolute_root

DATASETS = ("webdataset", "pyramid-flow", "open-sora")
INDEX = "index.json"
SHARD_CLIPS = 10_000
VERDICT = ("keep", "drop_reasons", "bucket", "split", "caption")
OPEN_SORA = ("path", "text", "num_frames", "height", "width", "aspect_ratio", "fps", "resolution")


class ExportedClip(SelectedClipRow):
    """A row of clips-with-scores, with the source and the licence of its video; scores: by scorer, without nulls."""

    caption: str | None
    source: str
    license: str
    scores: dict[str, float]


class ShardEntry(TypedDict):
    """A shard in the index of an export."""

    name: str
    num_clips: int


class ExportIndex(TypedDict):
    """Content of index.json of an export. export_id: hash of the contents of all shards."""

    export_id: str
    shards: list[ShardEntry]


@dataclass(frozen=True)
class Exported:
    """Counts of an export."""

    num_clips: int
    num_without_caption: int
    num_shards: int = 0
    num_written: int = 0  # shards that this call wrote; the others existed before


def export_dataset(
    root: str, form: str, output: str, filters: Sequence[Filter] = (), shard_bytes: float = 1e9
) -> Exported:
    """Write the clips that the newest selection keeps, in the order of their ids.

    Args:
        root: of the tables.
        form: one of DATASETS.
        output: file to write; for `webdataset` a folder.
        filters: further conditions on the columns of clips-with-scores, such as split=train.
        shard_bytes: most bytes of clips in one shard; a larger clip has a shard of its own.

    Raises:
        TableError: no clip is selected, or the folder holds another export.
    """
    clips = _clips(root, filters)
    output = absolute_root(output)
    captioned = [clip for clip in clips if clip["caption"]]
    num_without = len(clips) - len(captioned)
    if form == "webdataset":
        return _write_shards(clips, output, shard_bytes, num_without)
    if form == "pyramid-flow":  # every line must have a text
        lines = [json.dumps({"video": clip["uri"], "text": clip["caption"]}, ensure_ascii=False) for clip in captioned]
        storage.write_bytes(output, "".join(f"{line}\n" for line in lines).encode())
        return Exported(len(captioned), num_without)
    _write_open_sora(captioned, output)  # its reader drops or refuses rows without a text
    return Exported(len(captioned), num_without)


def _clips(root: str, filters: Sequence[Filter]) -> list[ExportedClip]:
    """The selected clips that pass the filters, in the order of their ids."""
    rows = select_rows(root, CLIPS_WITH_SCORES, [Filter("keep", "=", "true"), *filters])
    if not rows.num_rows:
        raise TableError(f"no clip of {root} is selected and passes the filters: pyramid curate selects clips")
    scorers = [name for name in rows.column_names if name not in (*SCHEMAS["clips"].names, *VERDICT)]
    videos = as_rows(read_table(root, "videos", ["video_id", "source", "license"]), VideoRow)
    licences = {video["video_id"]: {"source": video["source"], "license": video["license"]} for video in videos}
    clips = [
        clip
        | {"scores": {name: clip[name] for name in scorers if clip[name] is not None}}
        | licences.get(clip["video_id"], {"source": "", "license": ""})
        for clip in rows.sort_by("clip_id").to_pylist()
    ]
    return cast("list[ExportedClip]", clips)


def _fps(clip: ExportedClip) -> float | None:
    return clip["fps_num"] / clip["fps_den"] if clip["fps_num"] and clip["fps_den"] else None


def _write_open_sora(clips: Sequence[ExportedClip], output: str) -> None:
    scorers = sorted({name for clip in clips for name in clip["scores"]})
    with storage.writing(output) as path, open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*OPEN_SORA, *scorers], lineterminator="\n")
        table.writeheader()
        for clip in clips:
            height, width = clip["height"], clip["width"]
            shape = {"aspect_ratio": height / width, "resolution": height * width} if height and width else {}
            row = {"path": clip["uri"], "text": clip["caption"] or "", "num_frames": clip["num_frames"]}
            cells = row | {"height": height, "width": width, "fps": _fps(clip)} | shape | clip["scores"]
            table.writerow({name: spreadsheet_cell(cell) for name, cell in cells.items()})


def _write_shards(clips: Sequence[ExportedClip], folder: str, shard_bytes: float, num_without: int) -> Exported:
    """Write the shards of an export, except those that an earlier run of the same export wrote."""
    samples = [_sample(clip) for clip in clips]
    shards = split_blocks(samples, SHARD_CLIPS, shard_bytes)
    names = [f"clips-{number:06d}.tar" for number in range(len(shards))]
    index: ExportIndex = {
        "export_id": content_id(
            [{name: value for name, value in sample.items() if name != "uri"} for sample in samples]
        ),
        "shards": [{"name": name, "num_clips": len(shard)} for name, shard in zip(names, shards, strict=True)],
    }
    _claim(folder, index)
    num_written = 0
    for name, shard in zip(names, shards, strict=True):
        if not storage.exists(f"{folder}/{name}"):
            _write_shard(f"{folder}/{name}", shard)
            num_written += 1
    return Exported(len(clips), num_without, len(shards), num_written)


def _claim(folder: str, index: ExportIndex) -> None:
    """Write the index of an export into its folder. If the folder has an index, it must be the same.

    Raises:
        TableError: the folder holds another export, or shards without an index.
    """
    uri = f"{folder}/{INDEX}"
    if storage.exists(uri):
        if json.loads(storage.read_bytes(uri)) != index:
            raise TableError(
                f"{folder} holds another export (other clips, captions or shard sizes): choose a new folder"
            )
        return
    if shards := [shard["name"] for shard in index["shards"] if storage.exists(f"{folder}/{shard['name']}")]:
        raise TableError(
            f"{folder} holds {shards[0]} and no {INDEX}: it is not an export of this program, so choose a new folder"
        )
    storage.write_bytes(uri, json.dumps(index, indent=1).encode())


class Sample(TypedDict):
    """Contents of a shard for one clip. uri: of its media file; json: its source, size and scores."""

    clip_id: str
    uri: str
    size_bytes: int
    text: str
    json: str


def _sample(clip: ExportedClip) -> Sample:
    """Contents of a shard for one clip."""
    names = ("clip_id", "video_id", "source", "license", "split", "bucket", "num_frames", "width", "height", "scores")
    span = {f"video_{name}": clip[name] for name in ("start_frame", "end_frame", "start_s", "end_s")}
    facts = {name: clip[name] for name in names} | {"fps": _fps(clip), "text": clip["caption"] or ""} | span
    metadata = json.dumps(facts, ensure_ascii=False, sort_keys=True)
    text = clip["caption"] or ""
    size_bytes = clip["size_bytes"] or 0
    return {"clip_id": clip["clip_id"], "uri": clip["uri"], "size_bytes": size_bytes, "text": text, "json": metadata}


def _write_shard(uri: str, shard: Sequence[Sample]) -> None:
    """Write one tar file, which appears when it is complete. The same samples give the same bytes."""
    from webdataset.writer import TarWriter

    with storage.writing(uri) as path, open(path, "wb") as file, TarWriter(file, mtime=0, encoder=False) as archive:
        for sample in shard:
            try:
                clip = storage.read_bytes(sample["uri"])
            except FileNotFoundError as err:
                message = f"clip {sample['clip_id']}: {sample['uri']} does not exist (pyramid manifest verify)"
                raise TableError(message) from err
            # An empty text for a clip without a caption: readers expect the same members in every sample.
            text = {"txt": sample["text"].encode()}
            archive.write({"__key__": sample["clip_id"], "mp4": clip, "json": sample["json"].encode()} | text)
