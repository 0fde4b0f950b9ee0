"""Selected clips leave with their captions in the forms of others, and come back as they were. About 8 s."""

import csv
import json
import re
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.manifest import app
from tasks.exchange.dataset_export import export_dataset
from tasks.running.run import RayConfig, Run
from tasks.sources.ingest import IngestConfig, ingest
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.delta import TableError, read_table
from tasks.tables.manifest import parse_filter
from tasks.tables.rows import Lineage, ok_row
from tasks.tables.schemas import SCHEMAS

CLIPS = sorted(content_id("clip", number) for number in range(6))
TEXTS = {content_id("clip", number): f"Square {number}, née “blue”." for number in range(5)}  # the sixth has none


@pytest.fixture(scope="module")
def root(shared_squares) -> str:
    """Six selected clips, five of them with captions, all with a score."""
    captions = [ok_row({}, caption_id=content_id(clip), clip_id=clip, text=text) for clip, text in TEXTS.items()]
    scores = [
        ok_row({}, score_id=content_id(clip, "s"), clip_id=clip, scorer="motion", value=index / 8)
        for index, clip in enumerate(CLIPS)
    ]
    for table, rows in (("captions", captions), ("scores", scores)):
        append_block(shared_squares.root, table, rows, "export", Lineage("test", "fixture", "1", "squares", ""))
    return shared_squares.root


def export(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["export", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + result.stderr
    return result.output + result.stderr


def test_shards_hold_each_clip_with_its_caption_and_what_is_known_of_it(root, tmp_path):
    said = export(root, "--format", "webdataset", "-o", f"{tmp_path}/shards", "--shard-mb", "1")
    assert said == f"6 clips in 1 shards (1 new) -> {tmp_path}/shards; 1 have no caption\n"
    with tarfile.open(tmp_path / "shards" / "clips-000000.tar") as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    contents = {name: (tmp_path / name).read_bytes() for name in names}
    assert [name for name in names if name.endswith(".mp4")] == [f"{clip}.mp4" for clip in CLIPS]
    texts = {name[:-4]: text.decode() for name, text in contents.items() if name.endswith(".txt")}
    assert texts == dict.fromkeys(CLIPS, "") | TEXTS  # readers expect the same members in every sample
    about = json.loads(contents[f"{CLIPS[3]}.json"])
    assert (about["scores"], about["num_frames"], about["video_end_s"]) == ({"motion": 3 / 8}, 9, 9 / 8)
    uri = dict(zip(*(read_table(root, "clips")[name].to_pylist() for name in ("clip_id", "uri")), strict=True))
    assert contents[f"{CLIPS[0]}.mp4"] == Path(uri[CLIPS[0]]).read_bytes()


def test_an_interrupted_export_goes_on_and_another_one_is_kept_apart(root, tmp_path):
    first = export_dataset(root, "webdataset", str(tmp_path / "a"), shard_bytes=1)
    assert (first.num_shards, first.num_written) == (1, 1)  # these clips say no size: one shard takes them all
    shard = tmp_path / "a" / "clips-000000.tar"
    before = shard.read_bytes()
    assert export_dataset(root, "webdataset", str(tmp_path / "a"), shard_bytes=1).num_written == 0
    shard.unlink()
    assert export_dataset(root, "webdataset", str(tmp_path / "a"), shard_bytes=1).num_written == 1
    assert shard.read_bytes() == before
    with pytest.raises(TableError, match="holds another export"):
        export_dataset(root, "webdataset", str(tmp_path / "a"), [parse_filter("split=train")])
    (tmp_path / "a" / "index.json").unlink()
    with pytest.raises(TableError, match=r"holds clips-000000\.tar and no index\.json"):
        export_dataset(root, "webdataset", str(tmp_path / "a"))


def test_annotation_lines_name_the_captioned_clips(root, tmp_path):
    assert "5 clips" in export(root, "--format", "pyramid-flow", "-o", f"{tmp_path}/train.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert {Path(line["video"]).stem: line["text"] for line in lines} == TEXTS


def test_the_csv_has_the_columns_of_open_sora_and_all_scores(root, tmp_path):
    export(root, "--format", "open-sora", "-o", f"{tmp_path}/train.csv", "--where", "motion>0.3")
    with open(tmp_path / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    header = "path,text,num_frames,height,width,aspect_ratio,fps,resolution,motion"
    assert ",".join(rows[0]) == header
    assert [(Path(row["path"]).stem, float(row["motion"])) for row in rows] == [
        (clip, index / 8) for index, clip in enumerate(CLIPS) if index / 8 > 0.3 and clip in TEXTS
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "webdataset"), "takes ROOT, --output and --where"),
        (("clips", "--format", "open-sora", "-o", "x.csv"), "and no table, columns or version"),
        (("--format", "lance", "clips"), "there is no format 'lance'"),
        (("--format", "open-sora", "-o", "x.csv", "-w", "motion>9"), "no clip of .* is selected"),
    ],
)
def test_what_cannot_be_exported_is_explained(root, arguments, message):
    assert re.search(message, " ".join(export(root, *arguments, code=2).split()))


def test_a_clip_whose_file_is_gone_is_named_and_leaves_no_shard(root, tmp_path):
    row = read_table(root, "clips").to_pylist()[0]
    other = str(tmp_path / "root")
    gone = {"uri": f"{other}/media/clips/gone.mp4"}
    moved = {name: row[name] for name in SCHEMAS["clips"].names if row[name] is not None} | gone
    append_block(other, "clips", [moved], "1", Lineage("", "", "", "", ""))
    verdict = {"selection_id": "0" * 32, "clip_id": row["clip_id"], "keep": True}
    append_block(other, "selections", [ok_row({}, **verdict)], "1", Lineage("", "", "", "p", ""))
    with pytest.raises(TableError, match=rf"clip {row['clip_id']}: \S+/gone\.mp4 does not exist"):
        export_dataset(other, "webdataset", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.json"]


@pytest.mark.ray
def test_exported_shards_and_lines_can_be_ingested_again_with_their_captions(ray_local, root, tmp_path):
    export_dataset(root, "webdataset", str(tmp_path / "shards"))
    export_dataset(root, "open-sora", str(tmp_path / "train.csv"))
    run = Run(root=str(tmp_path / "again"), ray=RayConfig(num_cpus=2))
    for source, count in (("shards", 6), ("train.csv", 5)):
        result = ingest(run, IngestConfig(source=str(tmp_path / source)))
        assert (result.num_ok, result.num_failed) == (count, 0)
    rows = read_table(run.root, "sources").to_pylist()
    assert len({row["video_id"] for row in rows}) == 6
    texts = [(Path(row["path"]).stem, json.loads(row["annotations"])[0]["text"]) for row in rows if row["annotations"]]
    assert sorted(texts) == sorted(2 * list(TEXTS.items()))
