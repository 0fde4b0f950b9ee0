"""Rows that failed or were skipped, with what to do about them."""

from tasks.report.errors import error_lines


def test_errors_come_with_what_to_do(curated_root):
    assert {(line.table, line.error_type, line.count) for line in error_lines(curated_root)} == {
        ("sources", "unreadable", 1),
        ("videos", "truncated", 1),
    }
    assert all(line.advice for line in error_lines(curated_root))
