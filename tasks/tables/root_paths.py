"""URIs in tables: a row of media or models may name files of its own root only.

A root may come from elsewhere, and its rows may name any file of this machine. `read_table` marks URIs that lead out of
the root, so that no step, export or report opens them: such a file counts as missing, and its name says why.

Rows of imported files name videos that stay where they are. Nothing in the root can allow that, or a hostile root could
allow itself: the user names their folders in the environment variable PYRAMID_MEDIA_FOLDERS.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import os
import re

import pyarrow as pa
import pyarrow.compute as pc

MARK = "outside-of-the-root:"
FOLDERS = "PYRAMID_MEDIA_FOLDERS"
# Columns with files that the pipeline wrote into the root; `sources.uri` is outside by its nature.
MEDIA_COLUMNS = {"sources": "copy", "clips": "uri", "models": "uri", "evaluations": "media", "generations": "uri"}
LEADS_OUT = r"(^|/)\.\.?(/|$)|::|\x00"
OUR_MEDIA = re.compile(r"/media/(clips|generated|evaluations|sources)/[^/]+$")


def media_folders() -> list[str]:
    """Folders outside of the root whose files its rows may name, from the environment: paths or URIs between colons."""
    folders = re.split(r":(?!//)", os.environ.get(FOLDERS, ""))
    return [folder.rstrip("/") for folder in folders if folder.rstrip("/")]


def inside(root: str, uri: str) -> str:
    """A URI that a row of the root names; with MARK before it if it leads out of the root and of `media_folders`."""
    homes = [home for home in (root, *media_folders()) if uri.startswith(f"{home}/")]
    is_inside = any(not re.search(LEADS_OUT, uri.removeprefix(f"{home}/")) for home in homes)
    return uri if is_inside or not uri or uri.startswith(MARK) else f"{MARK}{uri}"


def with_uris_inside(root: str, table: str, rows: pa.Table) -> pa.Table:
    """Rows in which every URI of MEDIA_COLUMNS is as `inside` gives it."""
    name = MEDIA_COLUMNS.get(table)
    if name not in rows.column_names or not rows.num_rows:
        return rows
    place = rows.column_names.index(name)
    if pa.types.is_list(rows.schema.field(name).type):
        lists = [None if uris is None else [inside(root, uri or "") for uri in uris] for uris in rows[name].to_pylist()]
        return rows.set_column(place, rows.schema.field(name), pa.array(lists, rows.schema.field(name).type))
    uris = rows[name]
    fits = pc.equal(uris, "")
    for home in (root, *media_folders()):
        below = pc.utf8_slice_codeunits(uris, len(home))
        is_below = pc.and_(pc.starts_with(uris, f"{home}/"), pc.invert(pc.match_substring_regex(below, LEADS_OUT)))
        fits = pc.or_(fits, is_below)
    if pc.all(fits, skip_nulls=True).as_py() in (True, None):
        return rows
    marked = pc.if_else(fits, uris, pc.binary_join_element_wise(MARK, uris, ""))
    return rows.set_column(place, rows.schema.field(name), marked)


def check_no_link(path: str) -> None:
    """Raise an error for a media file that is a link: the pipeline writes none, so it may lead anywhere.

    Raises:
        FileNotFoundError: it is one.
    """
    if OUR_MEDIA.search(path) and os.path.islink(path):
        raise FileNotFoundError(f"{path} is a link, and no file of ours: files of media/ may not lead out of the root")
