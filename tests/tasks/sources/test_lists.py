"""Lists and annotation files are told by their content, and what they say reaches the captions. About 8 s."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.running.run import RayConfig, Run
from tasks.sources.ingest import IngestConfig, ingest
from tasks.sources.list_formats import Entry, clock_seconds
from tasks.sources.listing import source_files
from tasks.sources.lists import list_kind, read_list
from tasks.tables import storage
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id
from tasks.tables.current import captions_of
from tasks.tables.delta import read_table
from tasks.tables.rows import Lineage

OPENVID = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
SPANS = "[['0:00:02.000', '0:00:03.500'], ['0:01:00.000', '0:01:04.000']]"
PANDA = f"""videoID,url,timestamp,caption,matching_score
abc,https://www.youtube.com/watch?v=abc,"{SPANS}","['A dog runs.', 'It\\'s raining.']","[0.41, 0.5]"
gone,https://www.youtube.com/watch?v=gone,"{SPANS}","['A.', 'B.']","[0.4, 0.5]"
bad,https://www.youtube.com/watch?v=bad,"__import__('os').system('true')","['A.']","[0.4]"
few,https://www.youtube.com/watch?v=few,"{SPANS}","['A.']","[0.4]"
"""
FLOW = '{"video": "pexels/a.mp4", "text": "A valley", "latent": "pexels/a-latent.pt", "text_fea": "a.pt"}\n'


def found_in(source, **options) -> dict[str, tuple]:
    """(annotations, error_type) by path."""
    files = source_files(str(source), "/elsewhere", **options).files
    return {file.path: (file.annotations, file.error_type) for file in files}


def video(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())


def test_openvid_csv_gives_captions_and_scores_of_whole_videos_wherever_they_were_unpacked(tmp_path):
    video(tmp_path / "OpenVid_part1" / "x_0to9.mp4")
    (tmp_path / "OpenVid-1M.csv").write_text(f"{OPENVID}\nx_0to9.mp4,A bear.,5.2,3.1,0.99,pan_left,97,24.0,4.04\n")
    [(path, (said, error))] = found_in(tmp_path / "OpenVid-1M.csv").items()
    assert (path, error) == ("OpenVid_part1/x_0to9.mp4", "")
    assert said[0] == {"start_s": None, "end_s": None, "text": "A bear."} | {
        "aesthetic score": 5.2,
        "motion score": 3.1,
        "temporal consistency score": 0.99,
        "camera motion": "pan_left",
        "frame": 97.0,
        "fps": 24.0,
        "seconds": 4.04,
    }


def test_panda_csv_gives_spans_and_says_what_cannot_be_fetched(tmp_path):
    video(tmp_path / "videos" / "ab" / "abc.webm")
    (tmp_path / "panda.csv").write_text(PANDA)
    entries = found_in(tmp_path / "panda.csv", media_root=str(tmp_path / "videos"))
    said, _ = entries["videos/ab/abc.webm"]
    assert said == (
        {"start_s": 2.0, "end_s": 3.5, "text": "A dog runs.", "matching_score": 0.41},
        {"start_s": 60.0, "end_s": 64.0, "text": "It's raining.", "matching_score": 0.5},
    )
    kinds = [kind for _, kind in entries.values()]
    assert sorted(kinds) == ["", "bad_entry", "bad_entry", "not_downloaded"]
    files = source_files(str(tmp_path / "panda.csv"), "/elsewhere").files
    reasons = " ".join(file.error for file in files)
    assert "no gone.mp4 under" in reasons
    assert "2 timestamps, 1 captions and 1 matching scores" in reasons
    assert """timestamp = "__import__('os').system('true')" is not a Python list""" in reasons


def test_two_files_of_one_name_are_not_guessed_between(tmp_path):
    for name in ("a/x.mp4", "b/x.mp4"):
        video(tmp_path / name)
    (tmp_path / "list.jsonl").write_text('{"video": "x.mp4", "text": "A bear."}\n{"video": "b/x.mp4", "text": "B."}\n')
    assert sorted(found_in(tmp_path / "list.jsonl")) == ["b/x.mp4", "x.mp4"]  # the latter is not there: a failed row


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("any.data", FLOW, "Pyramid-Flow (JSONL)"),
        ("any.txt", FLOW, "Pyramid-Flow (JSONL)"),
        ("any.csv", "path,text,num_frames,aes\npexels/a.mp4,A valley,97,5.5\n", "Open-Sora (CSV)"),
        ("any.tsv", "path\ttext\npexels/a.mp4\tA valley\n", "Open-Sora (TSV)"),
        ("any.csv", f"{OPENVID}\na.mp4,A valley,1,1,1,pan,1,1,1\n", "OpenVid-1M (CSV)"),
    ],
)
def test_the_format_is_told_by_the_content_whatever_the_name(tmp_path, name, text, form):
    video(tmp_path / "pexels" / "a.mp4")
    (tmp_path / name).write_text(text)
    source = source_files(str(tmp_path / name), "/elsewhere")
    assert source.form == form
    assert [(file.path, file.annotations[0]["text"]) for file in source.files] == [("pexels/a.mp4", "A valley")]


@pytest.mark.parametrize("text", ['path, text\na.mp4, "A bear, or two."\n', ' path ,text \na.mp4 ,"A bear, or two."\n'])
def test_spaces_around_the_names_of_columns_lose_no_caption(tmp_path, text):
    video(tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text(text)
    [(said, error)] = found_in(tmp_path / "list.csv").values()
    assert (said, error) == (({"start_s": None, "end_s": None, "text": "A bear, or two."},), "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a.mp4"\n"b.mp4"\n', r'list\.jsonl, line 1: expected an object such as {"path": "…"}, got \'"a.mp4"\''),
        ('[\n {"path": "a.mp4"\n]', r"list\.jsonl is not JSON: Expecting ',' delimiter: line 3"),
    ],
)
def test_json_lines_without_an_object_are_explained(tmp_path, text, message):
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        source_files(str(tmp_path / "list.jsonl"), "/elsewhere")


def test_a_parquet_table_of_any_of_the_formats_is_a_list(tmp_path):
    video(tmp_path / "a.mp4")
    rows = {"path": ["a.mp4", None], "start_s": [0.5, None], "end_s": [2.0, None], "text": ["A cat.", None]}
    pq.write_table(pa.table(rows), tmp_path / "list.bin")
    source = source_files(str(tmp_path / "list.bin"), "/elsewhere")
    assert source.form == "Open-Sora (PARQUET)"
    assert source.files[0].annotations == ({"start_s": 0.5, "end_s": 2.0, "text": "A cat."},)
    assert [file.error_type for file in source.files] == ["", "bad_entry"]
    (tmp_path / "cut.bin").write_bytes((tmp_path / "list.bin").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut\.bin cannot be read as Parquet"):
        source_files(str(tmp_path / "cut.bin"), "/elsewhere")


def test_videos_and_other_files_are_no_lists(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    (tmp_path / "notes").write_text("Dear diary,\n")
    assert (list_kind(str(tmp_path / "a.mp4")), list_kind(str(tmp_path / "notes"))) == ("", "")


def test_captions_of_one_file_in_several_rows_come_together(tmp_path):
    video(tmp_path / "a.mp4")
    rows = ("0,1,One.", "1,2,Two.", "-1,2,Three.", "3,1,Four.")
    (tmp_path / "l.csv").write_text("path,start_s,end_s,text\n" + "".join(f"a.mp4,{row}\n" for row in rows))
    entries = found_in(tmp_path / "l.csv")
    assert [span["text"] for span in entries["a.mp4"][0]] == ["One.", "Two."]
    assert [kind for _, kind in entries.values()] == ["", "bad_entry", "bad_entry"]


@pytest.mark.parametrize("name", ["/etc/passwd", "~/secret.mp4", "file:///etc/passwd", "zip://x::/etc/a.zip"])
def test_a_list_from_elsewhere_may_not_name_files_of_this_machine(name):
    storage.write_bytes("memory://lists/list.csv", f"path,text\n{name},A secret.\nb.mp4,A bear.\n".encode())
    files = source_files("memory://lists/list.csv", "/elsewhere").files
    assert [(file.uri, file.error_type) for file in files] == [
        ("memory://lists/b.mp4", ""),
        (f"memory://lists/list.csv#{name}", "bad_entry"),
    ]


@pytest.mark.parametrize(("url", "kind"), [("/etc/passwd", ""), ("file:///etc/passwd", "bad_entry")])
def test_the_url_of_a_published_list_leads_to_no_file_of_this_machine(url, kind):
    rows = f"""videoID,url,timestamp,caption\nabc,{url},"[['0:00:00', '0:00:01']]","['A.']"\n"""
    storage.write_bytes("memory://lists/panda.csv", rows.encode())
    [file] = source_files("memory://lists/panda.csv", "/elsewhere").files
    assert (file.uri.startswith("memory://lists/"), file.error_type) == (True, kind)


def test_the_published_example_of_pyramid_flow_is_understood(shared_assets):
    form, entries = read_list(str(shared_assets / "prompts" / "pyramidflow_video_text.jsonl"), "jsonl")
    texts = [entry.annotations[0]["text"] for entry in entries if isinstance(entry, Entry)]
    assert (form.name, len(texts)) == ("Pyramid-Flow", 17)
    assert texts[0].startswith("the serene beauty of a valley")


@pytest.mark.parametrize(("text", "seconds"), [("0:00:02.168", 2.168), ("1:02:03", 3723.0)])
def test_times_of_a_clock_are_seconds(text, seconds):
    assert clock_seconds(text) == pytest.approx(seconds)


@pytest.mark.ray
def test_an_edited_list_describes_known_files_anew_without_reading_them(ray_local, tmp_path):
    folder = tmp_path / "in"
    video(folder / "a.mp4")
    run = Run(root=str(tmp_path / "root"), ray=RayConfig(num_cpus=2))
    for text in ("A cat.", "A black cat."):
        (folder / "list.csv").write_text(f"path,text\na.mp4,{text}\n")
        result = ingest(run, IngestConfig(source=str(folder / "list.csv")))
        assert (result.num_done, result.num_ok, result.note) == (0, 1, "read as Open-Sora (CSV)")
        [row] = read_table(run.root, "sources").to_pylist()
        assert json.loads(row["annotations"])[0]["text"] == text
    assert ingest(run, IngestConfig(source=str(folder))).num_new == 0  # the list in the folder says the same
    shutil.copy(folder / "a.mp4", folder / "b.mp4")
    result = ingest(run, IngestConfig(source=str(folder)))
    assert (result.num_copies, result.note) == (
        1,
        "read as a folder, captions in list.csv: 1 of 2 videos; "
        "1 of the files have the same bytes as another, such as b.mp4 and a.mp4",
    )


@pytest.mark.ray
def test_what_a_list_says_becomes_the_captions_of_the_clips_it_is_about(ray_local, squares):
    (source,) = read_table(squares.root, "sources", ["card"]).slice(0, 1).to_pylist()
    storage.write_bytes(source["card"], b"name: squares\n")  # no caption file, which would come first

    def say(attempt: int, *annotations: list[tuple]) -> None:
        rows = []
        for number, spans in enumerate(annotations):
            row = {"source_id": content_id("source", number), "video_id": content_id("video", number), "status": "ok"}
            said = json.dumps([dict(zip(("start_s", "end_s", "text"), span, strict=True)) for span in spans])
            rows.append(row | {"path": f"video{number}.mp4", "annotations": said, "attempt": attempt})
        append_block(squares.root, "sources", rows, f"say {attempt}", Lineage("test", "ingest", "1", "", ""))

    clips = [content_id("clip", number) for number in range(6)]
    say(2, [(None, None, "All of it.")], [(0.0, 0.2, "Start."), (0.3, 9.0, "Rest.")], [(5.0, 6.0, "Much later.")])
    result = captions(squares, CaptionsConfig())
    expected = dict(zip(clips, ("All of it.", "Rest."), strict=False))
    assert captions_of(squares.root, clips, result.captions) == expected
    assert result.errors == {"no_caption": 1, "no_sidecar": 3}
    assert captions(squares, CaptionsConfig()).num_new == 0
    say(3, [(None, None, "All of it, again.")])
    result = captions(squares, CaptionsConfig())
    assert result.num_new == 1
    assert captions_of(squares.root, clips, result.captions) == expected | {clips[0]: "All of it, again."}
