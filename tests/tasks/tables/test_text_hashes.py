"""Repeated texts are never missed; texts that differ early are told apart."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tasks.tables.content_ids import content_id
from tasks.tables.text_hashes import may_repeat, text_hashes

TEXTS = st.lists(st.one_of(st.none(), st.sampled_from(["", "a", "ä", "x" * 16, "x" * 17]), st.text(max_size=40)))


@given(texts=TEXTS, kinds=st.lists(st.sampled_from(["short", "dense", None])))
def test_every_key_that_repeats_is_marked(texts, kinds):
    keys = list(zip(texts, kinds, strict=False))
    rows = pa.table({"text": pa.array([text for text, _ in keys], pa.string()), "kind": [kind for _, kind in keys]})
    repeats = np.array([keys.count(key) > 1 for key in keys], bool)
    assert (may_repeat(rows, ["text", "kind"]) >= repeats).all()


def test_ids_that_differ_are_not_marked_and_equal_ones_in_other_chunks_are():
    ids = [content_id(number) for number in range(1000)]
    rows = pa.table({"id": pa.chunked_array([ids[:400], ids[400:], [ids[7]]])})
    assert np.flatnonzero(may_repeat(rows, ["id"])).tolist() == [7, 1000]
    assert len(set(text_hashes(rows["id"]).tolist())) == 1000


def test_a_table_without_rows_has_no_hashes():
    assert text_hashes(pa.chunked_array([], pa.string())).tolist() == []
