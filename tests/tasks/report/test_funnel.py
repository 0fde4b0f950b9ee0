"""From source files to kept clips: nothing is lost without a reason, and counts add up."""

from dataclasses import replace

from tasks.report.funnel import accounts, funnel, read_intake


def test_every_line_of_the_funnel_says_what_it_lost_and_why(curated_root, curation):
    lines = funnel(read_intake(curated_root), curation)
    assert [(line.label, line.count, line.lost) for line in lines] == [
        ("source files", 5, 0),
        ("different videos", 3, 2),
        ("videos with clips", 2, 1),
        ("clips", 8, 0),
        ("after motion_low", 5, 3),
        ("after duplicate_phash", 4, 1),
        ("judged", 3, 1),
        ("kept", 3, 0),
    ]
    assert lines[1].reason == "1 unreadable, 1 with the same bytes as another"
    assert lines[2].reason == "1 truncated"


def test_counts_in_are_counts_out_until_rows_are_lost(curated_root, curation):
    counts = accounts(read_intake(curated_root), curation)
    assert all(account.adds_up for account in counts)
    assert counts[0].parts == {"videos": 3, "with the same bytes as another": 1, "failed": 1}
    assert counts[2].parts == {"kept": 3, "dropped": 4, "not judged yet": 1}
    lost = replace(curation, clips=curation.clips.slice(1))
    assert [account.adds_up for account in accounts(read_intake(curated_root), lost)] == [True, True, False]
