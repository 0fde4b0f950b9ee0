"""Source files, and what curation kept of them."""

from tasks.report.sources import sources


def test_each_source_counts_its_files_and_what_is_kept_of_them(curated_root, curation):
    [source] = sources(curated_root, curation)
    assert source.statuses == {"ok": 3, "failed": 2}
    assert (source.total("num_clips"), source.total("num_kept"), source.total("kept_s")) == (8, 3, 3.0)
