"""Facts about the rows that count."""

from pyramid_model.config import CaptionsOfKind
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.current import captions_of
from tasks.tables.rows import Lineage, ok_row


def test_captions_of_an_edited_file_replace_the_old_ones(tmp_path):
    run = Run(root=str(tmp_path))
    lineage = Lineage("test", "captions", "1", "", "")
    for text_hash, text in (("one", "old"), ("two", "new")):
        row = {"caption_id": text_hash, "clip_id": "c", "kind": "human", "text": text, "prompt_hash": text_hash}
        append_block(run.root, "captions", [ok_row({}, **row)], text_hash, lineage)
    assert captions_of(run.root, ["c"]) == {"c": "new"}
    assert captions_of(run.root, ["c"], [CaptionsOfKind(kind="human", hashes=("one",))]) == {"c": "old"}
    assert captions_of(run.root, ["d"]) == {}
