"""Layouts in which people keep captioned videos: every video has its caption, and what is not used is told."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.sources.ingest import IngestConfig
from tasks.sources.list_formats import END, MEDIA, START, TEXT
from tasks.sources.listing import source_files
from tasks.sources.preview import preview

NAMES, TEXTS = ("a", "b.v2", "c"), ("A stream, it sparkles.", "A hut leans.", "Tall buildings glow.")
PAIRS = tuple(zip(NAMES, TEXTS, strict=True))
ROWS = [{"video_path": f"clips/{name}.mp4", "prompt": text} for name, text in PAIRS]


def quoted(rows, delimiter=","):
    names = list(rows[0])
    cells = [names, *([json.dumps(str(row[name]), ensure_ascii=False) for name in names] for row in rows)]
    return "".join(delimiter.join(line) + "\n" for line in cells)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def named(media, text):
    return [{media: f"clips/{name}.mp4", text: caption} for name, caption in PAIRS]


def spans(name, start, end):
    return [
        {name: key, start: "00:00:00.000", end: "00:00:02.400", "Caption": text, "UMT_Score": 0.4}
        for key, text in PAIRS
    ]


TURNS = [[{"from": "human", "value": "Describe."}, {"from": "gpt", "value": text}] for text in TEXTS]
LISTS = {  # name of the list, its content
    "rows of a CSV": ("list.csv", quoted(ROWS)),
    "a CSV with semicolons": ("list.csv", quoted(ROWS, ";")),
    "a TSV": ("list.tsv", quoted(ROWS, "\t")),
    "JSON lines": ("list.jsonl", lines(ROWS)),
    "a JSON array": ("list.json", json.dumps(ROWS, indent=1)),
    "a JSON array in a .jsonl": ("list.jsonl", json.dumps(ROWS)),
    "a JSON map of captions": ("list.json", json.dumps({f"clips/{name}.mp4": text for name, text in PAIRS})),
    "a JSON map of objects": (
        "list.json",
        json.dumps({f"clips/{name}.mp4": {"caption": text} for name, text in PAIRS}),
    ),
    "a JSON object with the rows": ("list.json", json.dumps({"info": {"version": 1}, "data": ROWS})),
    "VideoFolder": ("metadata.csv", quoted(named("file_name", "text"))),
    "DiffSynth": ("metadata.csv", quoted(named("video", "prompt"))),
    "VideoX-Fun": ("metadata.json", json.dumps([row | {"type": "video"} for row in named("file_path", "text")])),
    "FastVideo": ("videos2caption.json", json.dumps([{"path": f"{n}.mp4", "cap": [t], "fps": 24.0} for n, t in PAIRS])),
    "VidGen": ("VidGen_1M.json", json.dumps([{"vid": name, "caption": text} for name, text in PAIRS])),
    "InternVid": ("InternVid.jsonl", lines(spans("YoutubeID", "Start_timestamp", "End_timestamp"))),
    "Koala-36M": (
        "Koala.csv",
        quoted([{"videoID": n, "timestamp": "['0:00:00.000', '0:00:02.400']", "caption": t} for n, t in PAIRS]),
    ),
    "ShareGPT4Video": (
        "sharegpt4video_40k.jsonl",
        lines([{"video_id": n, "video_path": f"{n}.mp4", "captions": [{"idx": "-1", "content": t}]} for n, t in PAIRS]),
    ),
    "MiraData": (
        "mira.csv",
        "index,start_frame,dense_caption,short_caption,,\n" + "".join(f'{n},0,"{t}",short,,\n' for n, t in PAIRS),
    ),
    "LLaVA-Video": (
        "llava.json",
        json.dumps(
            [{"video": f"clips/{name}.mp4", "conversations": turns} for name, turns in zip(NAMES, TURNS, strict=True)]
        ),
    ),
}


@pytest.fixture
def folder(tmp_path):
    """Three videos in a folder `clips`."""
    (tmp_path / "clips").mkdir()
    for name in NAMES:
        (tmp_path / "clips" / f"{name}.mp4").write_bytes(name.encode())
    return tmp_path


def captions_of(source, **options):
    """{name of the file: its captions}."""
    files = source_files(str(source), "/elsewhere", **options).files
    assert not [file.error for file in files if file.error_type]
    return {file.uri.rpartition("/")[2]: [said["text"] for said in file.annotations] for file in files}


EXPECTED = {f"{name}.mp4": [text] for name, text in PAIRS}


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize(("name", "content"), LISTS.values(), ids=LISTS)
def test_each_list_gives_every_video_its_caption(folder, name, content, packed):
    data = gzip.compress(content.encode()) if packed else content.encode()
    path = folder / (name + ".gz" if packed else name)
    path.write_bytes(data)
    assert captions_of(path, media_root=str(folder / "clips") if "videos2" in name else "") == EXPECTED


@pytest.mark.parametrize(("name", "content"), LISTS.values(), ids=LISTS)
def test_a_folder_with_such_a_list_gives_them_too(folder, name, content):
    (folder / name).write_text(content)
    assert captions_of(folder) == EXPECTED
    assert source_files(str(folder), "/elsewhere").form == f"a folder, captions in {name}: 3 of 3 videos"


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".json", ".srt", ".vtt"])
def test_a_text_beside_a_video_is_its_caption(folder, suffix):
    for name, text in PAIRS:
        content = {
            ".json": json.dumps({"caption": text, "url": "https://example.org/x.mp4"}),
            ".srt": f"1\n00:00:00,000 --> 00:00:02,400\n{text}\n\n",
            ".vtt": f"WEBVTT\n\n00:00.000 --> 00:02.400\n<b>{text}</b>\n",
        }.get(suffix, text + "\n")
        (folder / "clips" / f"{name}{suffix}").write_text(content)
    assert captions_of(folder) == EXPECTED
    assert source_files(str(folder), "/elsewhere").form == f"a folder, captions in NAME{suffix}: 3 of 3 videos"


def test_subtitles_keep_their_times(folder):
    (folder / "clips" / "a.srt").write_text(
        "1\n00:00:01,500 --> 00:00:02,000\nA dog\nruns.\n\n2\n00:01:00,0 --> 00:01:04,0\nRain.\n"
    )
    [annotations] = [file.annotations for file in source_files(str(folder), "/elsewhere").files if file.annotations]
    assert annotations == (
        {"start_s": 1.5, "end_s": 2.0, "text": "A dog runs."},
        {"start_s": 60.0, "end_s": 64.0, "text": "Rain."},
    )


@pytest.mark.parametrize("prompts", ["prompts.txt", "prompt.txt", "captions.txt"])
def test_a_list_of_videos_and_one_of_prompts_belong_together_line_by_line(folder, prompts):
    (folder / "videos.txt").write_text("".join(f"clips/{name}.mp4\n" for name in NAMES))
    (folder / prompts).write_text("\n".join(TEXTS) + "\n\n")
    assert captions_of(folder / "videos.txt") == captions_of(folder) == EXPECTED
    (folder / prompts).write_text("one\ntwo\n")
    for source in (folder / "videos.txt", folder):
        with pytest.raises(ValueError, match=rf"names 3 videos and {prompts} beside it has 2 lines"):
            source_files(str(source), "/elsewhere")


def test_several_captions_of_a_video_stay_several(folder):
    (folder / "list.jsonl").write_text(lines([{"path": "clips/a.mp4", "caption": ["One.", "Two."]}]))
    assert captions_of(folder / "list.jsonl") == {"a.mp4": ["One.", "Two."]}


def test_columns_of_other_names_are_told_in_the_settings(folder):
    (folder / "list.csv").write_text("clip_name,words,from_s,to_s\nclips/a.mp4,A dog runs.,0.5,2\n")
    with pytest.raises(ValueError, match=r"nor another that names videos.*--set ingest\.columns='{media: NAME, text"):
        source_files(str(folder / "list.csv"), "/elsewhere")
    columns = {"media": "clip_name", "text": "words", "start": "from_s", "end": "to_s"}
    [file] = source_files(str(folder / "list.csv"), "/elsewhere", columns=columns).files
    assert file.annotations == ({"start_s": 0.5, "end_s": 2.0, "text": "A dog runs."},)
    with pytest.raises(ValueError, match="has no column 'wrong'"):
        source_files(str(folder / "list.csv"), "/elsewhere", columns={"media": "wrong"})


def test_a_list_in_several_parquet_files_is_one_list(folder):
    (folder / "meta").mkdir()
    for number, (name, text) in enumerate(PAIRS):
        pq.write_table(
            pa.table({"path": [f"{name}.mp4"], "caption": [text]}), folder / "meta" / f"part-{number}.parquet"
        )
    assert captions_of(folder / "meta", media_root=str(folder / "clips")) == EXPECTED


def test_what_is_not_read_is_refused_with_the_way_out(folder):
    (folder / "dataset.toml").write_text('[[datasets]]\nvideo_directory = "clips"\n')
    with pytest.raises(ValueError, match="is a file of settings, not a list: name the folder of videos"):
        source_files(str(folder / "dataset.toml"), "/elsewhere")
    videos = pa.array([{"bytes": b"\0\1", "path": "a.mp4"}])
    pq.write_table(pa.table({"video": videos, "caption": ["A dog."]}), folder / "videos.parquet")
    with pytest.raises(ValueError, match="the video itself is in the list, not its name: write the videos to files"):
        preview(IngestConfig(source=str(folder / "videos.parquet")), "/elsewhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clips/b.v2.mp4,A hut, it leans.", "line 3: 3 cells, expected 2 as in the first line"),
        ("clips/b.v2.mp4", "line 3: 1 cells, expected 2"),
        ('clips/b.v2.mp4,"A hut leans.', "unexpected end of data"),
    ],
)
def test_a_damaged_line_is_told_and_the_others_count(folder, line, message):
    (folder / "list.csv").write_text(f"path,caption\nclips/a.mp4,A stream.\n{line}\n")
    seen = preview(IngestConfig(source=str(folder / "list.csv")), "/elsewhere")
    assert (seen.videos, seen.captions) == (1, 1)
    assert message in seen.problems[0]["error"]


def test_captions_that_are_not_used_are_told(folder):
    (folder / "list.csv").write_text("path,caption\nclips/a.mp4,A stream.\ngone.mp4,Lost.\n")
    (folder / "clips" / "c.txt").write_text("  \n")
    seen = preview(IngestConfig(source=str(folder)), "/elsewhere")
    assert (seen.layout, seen.videos, seen.captions) == ("a folder, captions in list.csv: 1 of 3 videos", 3, 1)
    assert seen.problems[0]["error"] == "captions in list.csv: 1 are of files that are not there"
    (folder / "clips" / "b.v2.txt").write_text("A hut leans.")
    seen = preview(IngestConfig(source=str(folder)), "/elsewhere")
    assert "1 videos have a caption file without a caption, first: " in seen.problems[1]["error"]


def test_an_open_quotation_mark_is_named_where_it_was_opened(folder):
    (folder / "list.csv").write_text(
        'path,caption\nclips/a.mp4,"A stream.\nclips/b.v2.mp4,A hut.\nclips/c.mp4,Towers.\n'
    )
    files = source_files(str(folder / "list.csv"), "/elsewhere").files
    assert [file.error_type for file in files] == ["bad_entry"]
    assert "line 2: a quotation mark is not closed; 2 further lines are lost" in files[0].error


@pytest.mark.parametrize(
    ("text", "expected", "error"),
    [
        (["A cat", "A feline"], ["A cat", "A feline"], ""),
        ({"en": "A dog"}, ["A dog"], ""),
        ({"fr": 3}, [], "the column 'text' holds no caption but {'fr': 3}"),
        ([3], [], "the column 'text' holds no caption but [3]"),
    ],
)
def test_captions_of_other_types_are_read_or_refused(folder, text, expected, error):
    (folder / "list.jsonl").write_text(lines([{"video": "clips/a.mp4", "text": text}]))
    [file] = source_files(str(folder / "list.jsonl"), "/elsewhere").files
    assert [said["text"] for said in file.annotations] == expected
    assert error in file.error


def test_a_file_whose_name_begins_with_a_hash_is_no_comment(folder):
    (folder / "#1 best cats.mp4").write_bytes(b"x")
    (folder / "list.txt").write_text("# my list\n#1 best cats.mp4\nclips/a.mp4\n#clips/c.mp4\n")
    assert list(captions_of(folder / "list.txt")) == ["#1 best cats.mp4", "a.mp4"]


def test_videos_of_an_archive_that_share_a_key_keep_their_own_captions(folder):
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for name, content in (
            ("Track 2.0 (Clean).mp4", b"1"), ("Track 2.0 (Clean).txt", b"A quiet room."),
            ("Track 2.5 (Live).mp4", b"2"), ("Track 2.5 (Live).txt", b"A loud crowd."),
            ("Track 2.9.mp4", b"3"), ("other.seg1.mp4", b"4"), ("other.txt", b"A river."),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    files = source_files(str(folder / "shard.tar"), "/elsewhere").files
    texts = {file.path.rpartition("/")[2]: [said["text"] for said in file.annotations] for file in files}
    assert texts == {
        "Track 2.0 (Clean).mp4": ["A quiet room."],
        "Track 2.5 (Live).mp4": ["A loud crowd."],
        "Track 2.9.mp4": [],
        "other.seg1.mp4": ["A river."],
    }


SHARED = [
    ("pairs_txt", "", ""), ("caption_ext", "", ""), ("v2d_files", "", ""), ("two_files", "", ""),
    ("two_files", "videos.txt", ""), ("hf_videofolder_csv", "", ""), ("hf_videofolder_csv", "train/metadata.csv", ""),
    ("hf_videofolder_jsonl", "", ""), ("hf_videofolder_jsonl", "metadata.jsonl", ""), ("fastvideo", "", ""),
    ("fastvideo", "videos2caption.json", "videos"), ("videoxfun", "metadata.json", ""), ("json_array", "list.json", ""),
    ("llava", "0_30_s_academic_v0_1_cap_processed.json", ""), ("koala", "Koala_36M_1.csv", "v"),
    ("diffsynth", "metadata.csv", ""), ("csv_path_prompt", "list.csv", ""), ("csv_semicolon", "list.csv", ""),
    ("csv_video_path_caption", "list.csv", ""), ("musubi", "metadata.jsonl", ""), ("parquet_shards", "meta", "v"),
    ("internvid", "InternVid-10M-flt.jsonl", "v"), ("mira", "miradata_v0_100_samples.csv", "clips"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "media"), SHARED, ids=lambda part: part or "-")
def test_layouts_of_public_tools_give_three_captions(shared_assets, name, file, media):
    folder = shared_assets.parent / "formats" / name
    if not folder.is_dir():
        pytest.skip("needs the shared files of layouts")
    config = IngestConfig(source=str(folder / file), media_root=str(folder / media) if media else "")
    seen = preview(config, "/elsewhere")
    assert (seen.videos, seen.captions, seen.problems) == (3, 3, [])


@pytest.mark.parametrize("names", [MEDIA, TEXT, START, END], ids=["media", "text", "start", "end"])
def test_the_page_lists_the_names_of_columns_as_the_code_knows_them(names):
    page = (Path(__file__).parents[3] / "docs" / "your_own_videos.md").read_text()
    assert "| " + ", ".join(f"`{name}`" for name in names) + " |" in page
