"""Output of `pyramid manifest`: a table if it fits the terminal, else one block for each row."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.tables.plain_text import visible

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table
    from rich.text import Text

    from tasks.inspecting.table_diff import ScoreShift, SelectionDiff

COLUMN_GAP = 2
MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("fail", "red")}


def grid(names: "list[str]", rows: "Sequence[Sequence[str | Text]]", right: tuple[str, ...] = ()) -> "Table":
    """A plain table; the columns named in `right` hold numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(Text(visible(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) if isinstance(cell, str) else cell for cell in row))
    return table


def print_grid(names: list[str], rows: "Sequence[Sequence[str | Text]]", right: tuple[str, ...] = ()) -> None:
    """Print the table that `grid` makes from these arguments."""
    from flows.cli.console import PlainConsole

    PlainConsole().print(grid(names, rows, right))


def print_overview(root: str) -> bool:
    """Print one line for each table: rows, statuses, versions, size, last write. Returns whether all are undamaged."""
    from flows.cli.console import echo, styled
    from tasks.inspecting.table_stats import file_size
    from tasks.tables.manifest import overview

    rows = []
    tables = overview(root)
    for facts in tables:
        counts = ", ".join(f"{count:,} {status}" for status, count in facts.statuses.most_common())
        num_rows, counts = ("?", styled(("damaged", "red"))) if facts.damage else (f"{facts.num_rows:,}", counts)
        written = f"{facts.last_write.astimezone():%Y-%m-%d %H:%M:%S}" if facts.last_write else ""
        versions = "" if facts.damage else f"0–{facts.version}"
        rows.append([facts.table, num_rows, counts, versions, file_size(facts.size_bytes), written])
    print_grid(["table", "rows", "by status", "versions", "size", "last write"], rows, right=("rows", "size"))
    for facts in tables:
        if facts.damage:
            echo(facts.damage)
    return not any(facts.damage for facts in tables)


def print_rows(root: str, table: str, rows: "pa.Table", every_column: bool) -> None:
    """Print rows of a table; without `every_column`, columns of lineage and empty columns are left out."""
    from flows.cli.console import PlainConsole, styled
    from tasks.tables.schemas import BLOB_COLUMNS

    console = PlainConsole()
    if not rows.num_rows:
        console.print(f"no row of {table} matches")
        return
    blobs = BLOB_COLUMNS.get(table, ())
    names = rows.column_names if every_column else _telling_columns(rows)
    columns = [[visible(_cell(value, root, name in blobs)) for value in rows[name].to_pylist()] for name in names]
    lines = [list(line) for line in zip(*columns, strict=True)]
    widths = [max(map(len, [name, *cells])) for name, cells in zip(names, columns, strict=True)]
    if sum(widths) + COLUMN_GAP * len(widths) <= console.width:
        numbers = tuple(name for name in names if str(rows.schema.field(name).type) in ("int64", "double"))
        console.print(grid(names, lines, numbers))
        return
    for number, line in enumerate(lines, 1):
        console.rule(f"{table} {number}", align="left", style="dim")
        block = grid(["", " "], [[styled((name, "dim")), cell] for name, cell in zip(names, line, strict=True) if cell])
        block.show_header, block.box = False, None
        console.print(block)


def _telling_columns(rows: "pa.Table") -> list[str]:
    from tasks.tables.schemas import COMMON

    hidden = set(COMMON) - {"status", "error_type", "error"}
    names = [name for name in rows.column_names if name not in hidden]
    return [name for name in names if any(value not in (None, "", []) for value in rows[name].to_pylist())]


def _cell(value: Any, root: str, is_blob: bool) -> str:
    from tasks.inspecting.table_stats import file_size

    if value is None:
        return ""
    if is_blob:
        return file_size(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).removeprefix(root + "/")


def print_stats(root: str, table: str, version: int | None) -> None:
    """Print counts by status, a histogram of each numeric column, and for selections what each rule drops."""
    from flows.cli.console import PlainConsole
    from tasks.inspecting import table_stats

    console = PlainConsole()
    console.rule(table, align="left")
    for (status, error_type), count in table_stats.status_counts(root, table, version).most_common():
        console.print(f"{count:>8,}  {status} {error_type}".rstrip())
    lines = [
        [drawn.name, drawn.spark, *map(table_stats.compact, (drawn.edges[0], drawn.mean, drawn.edges[-1]))]
        for drawn in table_stats.histograms(root, table, version)
    ]
    if lines:
        print_grid(["column", "distribution", "least", "mean", "most"], lines, right=("least", "mean", "most"))
    if table == "scores":
        labels = [[name, label] for name, *_ in lines if (label := table_stats.score_label(name))]
        if labels:
            print_grid(["scorer", "what it is"], labels)
        for scorer, labels_by_clip in table_stats.labels(root, version).items():
            tally = Counter(labels_by_clip.values()).most_common()
            counts = [[label or "(none)", f"{count:,}"] for label, count in tally]
            print_grid([scorer, "clips"], counts, right=("clips",))
    if table == "duplicates":
        print_duplicates(root, version)
    if table == "selections":
        print_selections(root)


def print_duplicates(root: str, version: int | None) -> None:
    """Print the groups of the last search by method: their number, sizes, and similarities of clips."""
    from flows.cli.console import echo
    from tasks.inspecting.curation_stats import duplicate_stats
    from tasks.inspecting.table_stats import compact
    from tasks.selecting.duplicates import num_equal_files

    rows = []
    for stats in duplicate_stats(root, version):
        counts = [f"{count:,}" for count in (stats.num_groups, stats.num_clips, stats.num_extra)]
        sizes = ", ".join(f"{count:,} of {size}" for size, count in sorted(stats.sizes.items())[:6])
        more = ", …" if len(stats.sizes) > 6 else ""
        drawn = stats.similarity
        similarities = [drawn.spark, compact(drawn.edges[0]), compact(drawn.edges[-1])] if drawn else ["", "", ""]
        rows.append([stats.method, *counts, sizes + more, *similarities])
    names = ["method", "groups", "clips", "extra", "sizes", "similarity", "least", "most"]
    print_grid(names, rows, right=("groups", "clips", "extra", "least", "most"))
    if files := num_equal_files(root):
        echo(f"{files:,} files have the same bytes as another file: they are the same video")


def print_selections(root: str) -> None:
    """Print what each rule of the newest selection (or of each nested set) drops, and the kept clips by group."""
    from flows.cli.console import echo
    from tasks.inspecting.curation_stats import selection_stats
    from tasks.selecting.splits import SPLITS

    for selection in selection_stats(root):
        name = f"newest selection, set {selection.name}" if selection.name else "newest selection"
        echo(f"{name}: {selection.kept:,} of {selection.judged:,} clips kept")
        rules = [[rule.reason, f"{rule.alone:,}", f"{rule.in_order:,}", f"{rule.only:,}"] for rule in selection.rules]
        print_grid(["drop reason", "alone", "in order", "only rule"], rules, right=("alone", "in order", "only rule"))
        for column, counts in selection.shares.items():
            ordered = sorted(counts.items(), key=lambda pair: -pair[1].total())
            rows = [[value, f"{of.total():,}", *(f"{of[split]:,}" for split in SPLITS)] for value, of in ordered]
            print_grid([column, "kept", *SPLITS], rows, right=("kept", *SPLITS))


def print_selection_diff(changes: "SelectionDiff") -> None:
    """Print how many clips are newly kept and dropped, by reason; a clip counts for each of its reasons."""
    from flows.cli.console import echo

    settings = "the same settings" if changes.same_settings else "other settings"
    echo(
        f"newest selection ({settings}): {changes.num_kept[0]:,} of {changes.num_judged[0]:,} clips kept before, "
        f"{changes.num_kept[1]:,} of {changes.num_judged[1]:,} after; {changes.num_moved:,} in another split or bucket"
    )
    for verb, heading, by_reason in (
        ("kept", "dropped before by", changes.newly_kept),
        ("dropped", "dropped now by", changes.newly_dropped),
    ):
        num_clips = len({clip_id for clip_ids in by_reason.values() for clip_id in clip_ids})
        echo(f"newly {verb}: {num_clips:,} clips")
        if by_reason:
            rows = [[reason, f"{len(clip_ids):,}", clip_ids[0]] for reason, clip_ids in by_reason.items()]
            print_grid([heading, "clips", "such as"], rows, right=("clips",))


def print_score_shifts(shifts: "list[ScoreShift]") -> None:
    """Print two histograms on one scale for each scorer whose values changed."""
    from flows.cli.console import echo
    from tasks.inspecting.table_stats import compact

    rows = []
    for shift in shifts:
        name = [shift.scorer, f"{shift.distance:.2f}", f"{shift.num_changed:,}"]
        for when, part, median in zip(("before", "after"), (shift.before, shift.after), shift.medians, strict=True):
            figures = [part.spark, compact(part.mean), compact(median)] if part else ["", "", ""]
            rows.append([*name, when, f"{sum(part.counts):,}" if part else "0", *figures])
            name = ["", "", ""]
    if rows:
        names = ["scorer", "distance", "changed", "", "clips", "distribution", "mean", "median"]
        print_grid(names, rows, right=("distance", "changed", "clips", "mean", "median"))
    else:
        echo("no value of any scorer differs")
