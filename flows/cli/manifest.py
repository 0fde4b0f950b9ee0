"""`pyramid manifest`: show, check and export the tables of a root."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import echo, styled
from flows.cli.manifest_view import (
    MARKS,
    print_grid,
    print_overview,
    print_rows,
    print_score_shifts,
    print_selection_diff,
    print_stats,
)
from tasks.tables.plain_text import visible

if TYPE_CHECKING:
    from tasks.tables.manifest import Filter

app = typer.Typer(no_args_is_help=True, help="Show, check and export the tables of a root.")

Uri = Annotated[str, typer.Argument(metavar="ROOT|TABLE_URI", help="root folder or URI, or ROOT/tables/NAME")]
TableName = Annotated[str | None, typer.Argument(metavar="[TABLE]", help="table, or clips-with-scores")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", "-w", help="COLUMN OPERATOR VALUE with = != < > <= >= ~ (contains); repeat for 'and'"),
]
Columns = Annotated[str | None, typer.Option(help="columns to include, separated by commas")]
Version = Annotated[int | None, typer.Option(min=0, help="table version; default: the newest")]


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors that a user can cause into a message and exit code 2, without a traceback.

    Args:
        uri: root or table of the command; if a table is damaged, the message names it.
    """
    from flows.cli.launch import BAD_INPUT, complain
    from tasks.running.errors import EXPECTED_ERRORS
    from tasks.tables.delta import TableError

    try:
        yield
    except (TableError, *EXPECTED_ERRORS) as err:
        damage = [] if isinstance(err, TableError) else _damage(uri)
        complain("\n".join(damage) or str(err))
        raise typer.Exit(BAD_INPUT) from err


def _damage(uri: str) -> list[str]:
    from tasks.tables.delta import TableError
    from tasks.tables.manifest import damage_report, locate

    try:
        return damage_report(locate(uri)[0])
    except (TableError, OSError, ValueError):
        return []  # the original error is more informative


@app.command()
def show(
    uri: Uri,
    table: TableName = None,
    version: Version = None,
    limit: Annotated[int, typer.Option(min=1, help="rows to print")] = 20,
    where: Where = None,
    columns: Columns = None,
) -> None:
    """List the tables of a root, or rows of one table; exit code 1 if a table of the list is damaged."""
    from tasks.tables import manifest

    with explained(uri):
        root, table = manifest.locate(uri, table)
        if table is None:
            _refuse_row_options({"--where": where, "--columns": columns, "--version": version})
            raise typer.Exit(0 if print_overview(root) else 1)
        manifest.check_written(root, table)
        rows = manifest.select_rows(root, table, _filters(where), _names(columns), version)
        print_rows(root, table, rows.slice(0, limit), every_column=columns is not None)
        if rows.num_rows > limit:
            echo(f"{limit} of {rows.num_rows:,} rows (--limit, --where; or pyramid manifest export)")


def _refuse_row_options(options: dict[str, Any]) -> None:
    from tasks.tables.delta import TableError

    if names := [name for name, value in options.items() if value not in (None, [])]:
        raise TableError(f"{', '.join(names)}: rows belong to one table; name it, as in ROOT clips {names[0]} …")


@app.command()
def stats(uri: Uri, table: TableName = None, version: Version = None) -> None:
    """Print counts by status and error, histograms of numeric columns, and what each rule of the selection drops."""
    from tasks.tables import manifest

    with explained(uri):
        root, table = manifest.locate(uri, table)
        if table:
            table = "scores" if table == manifest.CLIPS_WITH_SCORES else table
            manifest.check_written(root, table)
            print_stats(root, table, version)
            return
        tables = manifest.overview(root)
        for facts in tables:
            if facts.damage:
                echo(facts.damage)
            else:
                print_stats(root, facts.table, version)
        raise typer.Exit(1 if any(facts.damage for facts in tables) else 0)


@app.command()
def diff(
    arguments: Annotated[
        list[str], typer.Argument(metavar="ROOT TABLE BEFORE AFTER", help="or TABLE_URI BEFORE AFTER")
    ],
) -> None:
    """Print what changed between two versions of a table: ids, statuses, columns, kept and dropped clips, scores."""
    from tasks.inspecting import table_diff
    from tasks.tables import manifest
    from tasks.tables.delta import TableError

    with explained(arguments[0]):
        *place, before, after = arguments if len(arguments) in (3, 4) else [*arguments, "", ""]
        if not (before.isdecimal() and after.isdecimal()):
            raise TableError(
                "give ROOT TABLE BEFORE AFTER (or TABLE_URI BEFORE AFTER), the last two as version numbers"
            )
        root, table = manifest.locate(*place)
        if table is None or table == manifest.CLIPS_WITH_SCORES:
            raise TableError("versions belong to one table: name it, as in ROOT clips 3 7")
        manifest.check_written(root, table)
        changes = table_diff.diff(root, table, int(before), int(after))
        echo(
            f"{table} {before} -> {after}: {len(changes.added)} added, {len(changes.removed)} removed, "
            f"{len(changes.status_changes)} changed status"
        )
        for row_id in changes.added[:10]:
            echo(f"  + {row_id}")
        if len(changes.added) > 10:
            echo(f"  + {len(changes.added) - 10} more")
        for row_id in changes.removed:
            echo(f"  - {row_id}")
        for row_id, old, new in changes.status_changes:
            echo(f"  ~ {row_id}: {old} -> {new}")
        if changes.columns:
            print_grid(
                ["column", f"version {before}", f"version {after}"],
                [[name, *both] for name, both in changes.columns.items()],
            )
        if table == "selections":
            print_selection_diff(table_diff.selection_diff(root, int(before), int(after)))
        elif table == "scores":
            print_score_shifts(table_diff.score_shifts(root, int(before), int(after)))


@app.command()
def verify(
    uri: Uri,
    table: TableName = None,
    blobs: Annotated[bool, typer.Option(help="also read all binary values and check their crc32")] = True,
    media: Annotated[bool, typer.Option("--media", help="also read all clips and check their crc32")] = False,
) -> None:
    """Check logs, files, ids, checksums, references, weights, media and counts; exit code 1 if a check fails."""
    from tasks.inspecting.verify import verify as run_checks
    from tasks.tables import manifest

    with explained(uri):
        root, table = manifest.locate(uri, table)
        if table not in (None, manifest.CLIPS_WITH_SCORES):
            manifest.check_written(root, table)
        findings = list(run_checks(root, table, blobs, media))
    print_grid(
        ["", "table", "check", "checked", "bad"],
        [[styled(MARKS[f.level]), f.table, f.check, f"{f.num_checked:,}", str(f.num_bad or "")] for f in findings],
        right=("checked", "bad"),
    )
    for finding in findings:
        if finding.level != "ok":
            echo(f"{finding.table}: {finding.check}: {finding.num_bad}, such as {finding.example}")
            echo(f"  what to do: {finding.advice}")
    failed = sum(finding.level == "fail" for finding in findings)
    echo(f"{len(findings)} checks, {failed} failed" if failed else f"{len(findings)} checks, none failed")
    raise typer.Exit(1 if failed else 0)


@app.command()
def repair(
    uri: Uri,
    table: TableName = None,
    apply: Annotated[bool, typer.Option("--apply", help="do it; default: only say what would be done")] = False,
    give_up_damaged: Annotated[
        bool,
        typer.Option(
            "--give-up-damaged",
            help="take missing and damaged Parquet files out of their tables: the next run computes their rows again",
        ),
    ] = False,
) -> None:
    """Bring back tables whose log is damaged, and rows whose commit was lost. No run may use the root meanwhile.

    Nothing is deleted: damaged files of a log are renamed to NAME.damaged.
    """
    from tasks.tables import manifest
    from tasks.tables.repair import repair as repair_table
    from tasks.tables.schemas import SCHEMAS

    with explained(uri):
        root, table = manifest.locate(uri, table)
        count = 0
        for name in [table] if table else SCHEMAS:
            for action in repair_table(root, name, apply, give_up_damaged):
                echo(action)
                count += 1
    if not count:
        echo("nothing to repair")
    elif not apply:
        echo("nothing was changed: --apply does this")


@app.command()
def report(
    root: Annotated[str, typer.Argument(help="root folder or URI")],
    title: Annotated[str, typer.Option(help="heading of the page")] = "",
    max_media: Annotated[int | None, typer.Option(min=0, help="most clips with a preview")] = None,
) -> None:
    """Write ROOT/report.html: one page about all tables, which opens from disk."""
    from tasks.report.report import ReportConfig
    from tasks.report.report import report as write_report
    from tasks.running.run import Run
    from tasks.tables import manifest

    with explained(root):
        root, _ = manifest.locate(root)
        options = {"title": title or None, "max_media": max_media}
        config = ReportConfig(**{name: value for name, value in options.items() if value is not None})
        result = write_report(Run(root=root), config)
    echo(f"{result.uri}  ({result.note})")


@app.command()
def export(
    uri: Uri,
    table: TableName = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="file or, for webdataset, folder")] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Rows to standard output: csv or jsonl. Selected clips with captions: webdataset, pyramid-flow, "
            "open-sora.",
        ),
    ] = "csv",
    where: Where = None,
    columns: Columns = None,
    version: Version = None,
    shard_mb: Annotated[float, typer.Option(min=1, help="largest size of a webdataset shard, MB of clips")] = 1000,
) -> None:
    """Write rows to a file or to standard output, or the selected clips with their captions as a data set.

    Rows: `pyramid manifest export ROOT clips -o clips.parquet` (the suffix sets the format: .csv, .jsonl or .parquet).

    A data set: `pyramid manifest export ROOT --format webdataset -o shards/ --where split=train`. webdataset: tar files
    of CLIP.mp4, .json and .txt; after an interruption the same command continues. pyramid-flow: JSON lines with video
    and text. open-sora: CSV with path, text, num_frames, height, width, aspect_ratio, fps, resolution and all scores.
    """
    from tasks.exchange.dataset_export import DATASETS
    from tasks.inspecting import export
    from tasks.tables import manifest
    from tasks.tables.delta import TableError

    with explained(uri):
        root, table = manifest.locate(uri, table)
        if form in DATASETS:
            if columns or version is not None or table not in (None, manifest.CLIPS_WITH_SCORES) or not output:
                raise TableError(f"--format {form} takes ROOT, --output and --where, and no table, columns or version")
            echo(_export_dataset(root, form, output, where, shard_mb))
            return
        if form not in ("csv", "jsonl"):
            formats = f"csv or jsonl for rows (Parquet with --output), {', '.join(DATASETS)} for clips"
            raise TableError(f"there is no format {form!r}: {formats}")
        if table is None:
            raise TableError("name the table to export, or clips-with-scores; or a data set with --format webdataset")
        schema, batches = export.export_rows(root, table, _filters(where), _names(columns), version)
        if output is None:
            for line, _ in export.text_lines(form, schema, batches):
                sys.stdout.write(visible(line) if sys.stdout.isatty() else line)
            return
        count = export.write_export(output, schema, batches)
    echo(f"{count:,} rows of {table} -> {output}")


def _export_dataset(root: str, form: str, output: str, where: list[str] | None, shard_mb: float) -> str:
    """Write a data set; returns a summary line."""
    from tasks.exchange.dataset_export import export_dataset

    result = export_dataset(root, form, output, _filters(where), shard_mb * 1e6)
    shards = f" in {result.num_shards} shards ({result.num_written} new)" if result.num_shards else ""
    left_out = "" if form == "webdataset" else ", which are left out"
    uncaptioned = f"; {result.num_without_caption:,} have no caption{left_out}" if result.num_without_caption else ""
    return f"{result.num_clips:,} clips{shards} -> {output}{uncaptioned}"


@app.command()
def vacuum(
    root: Annotated[str, typer.Argument(help="root folder or URI")],
    older_than_h: Annotated[
        int,
        typer.Option(
            "--older-than", min=0, help="age in hours of the newest files to list; protects files of running steps"
        ),
    ] = 24,
    delete: Annotated[bool, typer.Option("--delete", help="remove the files; default: only list them")] = False,
) -> None:
    """List or remove what killed steps left: files that no row names, and states of trainings."""
    from tasks.inspecting.leftovers import vacuum as find_leftovers
    from tasks.tables import manifest

    with explained(root):
        root, _ = manifest.locate(root)
        leftovers = find_leftovers(root, older_than_h, delete)
    for path in leftovers:
        echo(path)
    verb = "removed" if delete else "found, none removed (--delete removes them)"
    echo(f"{len(leftovers)} left-over files {verb}" if leftovers else f"no left-over files older than {older_than_h} h")


def _filters(where: list[str] | None) -> "list[Filter]":
    from tasks.tables.manifest import parse_filter

    return [parse_filter(text) for text in where or ()]


def _names(columns: str | None) -> list[str] | None:
    return [name.strip() for name in columns.split(",") if name.strip()] if columns else None
