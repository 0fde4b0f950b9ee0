"""Which files an entry of a list may name, and how a name is written."""

import os

import fsspec

from tasks.sources.fetch import is_web
from tasks.tables import storage

STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")  # file systems whose servers a name cannot choose
ALLOWED = ("file", "local", "memory", "http", "https", *STORES)


def foreign(name: str, *folders: str) -> str:
    """Why an entry of a list may not be opened: it names a file system that lists may not name; "" if it may.

    folders: of the list and of its media; their file systems may be named.
    """
    scheme = name.partition("://")[0].lower() if "://" in name else ""
    after_host = name.split("/", 3)[3:] if is_web(name) else [name]  # `::` in a host is part of an IPv6 address
    if "://" in name and any("::" in part for part in after_host):
        return f"{name} is a chain of file systems, which a list may not name: unpack or copy the file first"
    shipped = scheme in fsspec.available_protocols()  # others are registered by the user
    if not shipped or scheme in ALLOWED or any(folder.startswith(f"{scheme}://") for folder in folders):
        return ""
    return f"a list may not name files of {scheme}://, but local files, http, https and {', '.join(STORES)}, not {name}"


def is_of_this_machine(name: str) -> bool:
    """Whether an entry of a list names a file of this machine, or a chain of file systems."""
    return name.startswith(("/", "~")) or "::" in name or ("://" in name and storage.is_local(name))


def printable(name: str) -> str:
    """A name without invalid characters: bytes that are not UTF-8, and NUL, become `\\x` and two hex digits."""
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate, which is possible in JSON but not in a file name
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
