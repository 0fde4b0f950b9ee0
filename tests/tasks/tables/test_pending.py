"""Which ids a step still has to compute."""

from tasks.tables.appending import append_block
from tasks.tables.pending import pending
from tasks.tables.rows import Lineage, bad_row, ok_row

LINEAGE = Lineage("run", "step", "1", "params", "code")


def test_pending_is_what_has_no_row_and_failed_rows_only_on_request(tmp_path):
    root = str(tmp_path)
    append_block(root, "captions", [ok_row({}, caption_id="a"), bad_row({}, ("x", "y"), caption_id="b")], "1", LINEAGE)
    assert pending(root, "captions", ["a", "b", "c"]).attempts == {"c": 1}
    retry = pending(root, "captions", ["a", "b", "c"], retry_failed=True)
    assert retry.attempts == {"b": 2, "c": 1}
    assert retry.num_done == 1


def test_items_are_those_that_are_pending_with_their_attempt(tmp_path):
    append_block(str(tmp_path), "captions", [bad_row({}, ("x", "y"), caption_id="b")], "1", LINEAGE)
    todo = pending(str(tmp_path), "captions", ["a", "b"], retry_failed=True)
    items = todo.items([{"caption_id": "b"}, {"caption_id": "a"}], "caption_id")
    assert items == [{"caption_id": "b", "attempt": 2}, {"caption_id": "a", "attempt": 1}]
