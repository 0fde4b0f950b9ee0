"""Files under a root that is a folder or any fsspec URI (`s3://…`, `gs://…`)."""

import contextlib
import functools
import os
import re
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import fsspec
from fsspec.utils import get_protocol

from tasks.tables.root_paths import MARK, check_no_link
from tasks.tables.web_hosts import Allowed, check_host, web_client

WEB = re.compile(r"(^|::)https?://", re.IGNORECASE)  # also inside a chain such as zip://a.mp4::http://…
PIECE_BYTES = 4 * 2**20
PRIVATE = 0o700  # mode of a new root: its tables and media are for its owner, until the owner opens it
MAX_BYTES = 8 * 2**30  # of a file that is read into memory as a whole


class NotAFileError(OSError, ValueError):
    """A path is that of a folder, a pipe or a device: it cannot be read, or not to an end."""


def is_local(uri: str) -> bool:
    """Whether `uri` is a plain path (or `file://`) on this machine."""
    return get_protocol(uri) in ("file", "local")


def absolute_root(uri: str) -> str:
    """A root or path as an absolute path if it is local, otherwise the URI; without trailing slash.

    Raises:
        ValueError: it is empty, or contains characters that a path of a Delta table cannot have.
    """
    if not uri:
        raise ValueError("the root is empty: give a folder or URI with --root, or set PYRAMID_ROOT")
    if is_local(uri):
        uri = str(Path(uri.removeprefix("file://")).expanduser().resolve())
    if bad := re.search(r"[\[\]\\]|%[0-9A-Fa-f]{2}", uri):
        raise ValueError(f"root {uri!r} contains {bad[0]!r}, which Delta tables cannot have in their path")
    return uri.rstrip("/")


def join(root: str, *parts: str) -> str:
    """Path of a file under `root`.

    Raises:
        ValueError: a part is absolute or contains `..`: names in manifests must not lead out of the root.
    """
    for part in parts:
        if part.startswith("/") or ".." in Path(part).parts:
            raise ValueError(f"{part!r} would leave the root {root!r}: use a path inside it, without '..'")
    return "/".join((root.rstrip("/"), *parts))


def filesystem(uri: str, hosts: Allowed = ()) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of `uri` and the path on it; a URI that `root_paths` marked is a file that does not exist.

    hosts: web hosts that may be asked though their address is not public, as `tasks.tables.web_hosts.is_allowed`.

    Raises:
        AddressRefusedError: the address of a web host is neither public nor among `hosts`.
    """
    if uri.startswith(MARK):  # whatever follows is no name of a file of ours: the path does not exist
        return fsspec.filesystem("file"), f"/dev/{quote(uri, safe=':')[:200]}"
    if url := WEB.search(uri):
        import aiohttp

        from tasks.tables.host_budget import process_rate_limiting

        check_host(uri[url.start() :].lstrip(":"), hosts)

        # Large files take long, so a transfer times out only when no data arrives, and not after five minutes in all.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)
        options = {"timeout": timeout, "trust_env": True, "trace_configs": [process_rate_limiting(hosts)]}
        web = {"client_kwargs": options, "get_client": functools.partial(web_client, hosts)}
        if "::" in uri:
            return fsspec.core.url_to_fs(uri, http=web, https=web)
        return fsspec.core.url_to_fs(uri, **web)
    if is_local(uri):
        check_no_link(uri)
        return fsspec.core.url_to_fs(uri)
    # A cached listing does not know the files that other processes have written since.
    return fsspec.core.url_to_fs(uri, use_listings_cache=False)


def exists(uri: str, hosts: Allowed = ()) -> bool:
    """Whether a file or folder exists. hosts: as `filesystem`."""
    fs, path = filesystem(uri, hosts)
    return fs.exists(path)


def size_bytes(uri: str) -> int | None:
    """Size of a file; None where its file system does not know it."""
    fs, path = filesystem(uri)
    return fs.size(path)


def read_bytes(uri: str, max_bytes: int = MAX_BYTES, hosts: Allowed = ()) -> bytes:
    """Content of a small file. hosts: as `filesystem`.

    Raises:
        ValueError: the file has more than `max_bytes`; no more than that is read, since hosts may send without end.
        NotAFileError: it is a folder, pipe or device.
        FileNotFoundError: the file does not exist. Other exceptions are those of its file system.
    """
    fs, path = filesystem(uri, hosts)
    if is_local(uri) and os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
        raise NotAFileError(f"{uri} is a folder, pipe or device, where a file is expected")
    # Without blocks, HTTP reads one stream; with blocks, a read to the end ignores the size that the host gave.
    options = {"block_size": 0} if WEB.match(uri) else {}
    content = bytearray()
    with fs.open(path, "rb", **options) as file:
        while piece := file.read(PIECE_BYTES):
            content += piece  # pyright: ignore[reportOperatorIssue]
            if len(content) > max_bytes:
                raise ValueError(f"{uri} has more than {max_bytes} bytes, which is too much for a file of this kind")
    return bytes(content)


def read_pieces(uri: str, start: int = 0, size_bytes: int | None = None, hosts: Allowed = ()) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` on, in pieces.

    size_bytes: number of bytes; None: up to the end. hosts: as `filesystem`.

    Raises:
        FileNotFoundError: the file does not exist. Other exceptions are those of its file system.
    """
    fs, path = filesystem(uri, hosts)
    with fs.open(path, "rb") as file:
        if start:
            file.seek(start)
        remaining = size_bytes
        while piece := file.read(PIECE_BYTES if remaining is None else min(PIECE_BYTES, remaining)):
            assert isinstance(piece, bytes), "opened in binary mode"
            yield piece
            remaining = None if remaining is None else remaining - len(piece)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically: under a temporary name, then renamed; in object stores by one put."""
    if is_local(uri):
        with writing(uri) as temporary:
            Path(temporary).write_bytes(data)
        return
    fs, path = filesystem(uri)
    fs.pipe_file(path, data)


@contextlib.contextmanager
def writing(uri: str) -> Iterator[str]:
    """A local path to write to; on exit without an error the complete file is moved to `uri`.

    The temporary file has the suffix of `uri`, since encoders choose the container by it.
    """
    suffix = Path(uri).suffix
    if is_local(uri):
        folder = os.path.dirname(filesystem(uri)[1])
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=suffix, prefix=".writing-", dir=folder)
    else:
        handle, temporary = tempfile.mkstemp(suffix=suffix)
    os.close(handle)
    try:
        yield temporary
        publish(temporary, uri)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def publish(path: str, uri: str) -> None:
    """Move a finished local file to `uri`, atomically if that is local."""
    if is_local(uri):
        _, target = filesystem(uri)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.chmod(path, 0o644)
        os.replace(path, target)
        return
    fs, target = filesystem(uri)
    fs.put_file(path, target)


def move(uri: str, target: str) -> None:
    """Rename a file on its file system; an existing target is replaced."""
    fs, path = filesystem(uri)
    if is_local(uri):
        os.replace(path, filesystem(target)[1])
    else:
        fs.mv(path, filesystem(target)[1])


@contextlib.contextmanager
def reading(uri: str, folder: str | None = None, hosts: Allowed = ()) -> Iterator[str]:
    """A local path with the content of `uri`: the file itself, or a copy under `folder` that is deleted on exit.

    hosts: as `filesystem`.
    """
    if is_local(uri):
        yield filesystem(uri)[1]
        return
    fs, path = filesystem(uri, hosts)
    with tempfile.TemporaryDirectory(dir=folder) as copy_folder:
        # The query of a URL may be longer than a file name may be.
        local = os.path.join(copy_folder, os.path.basename(path.partition("?")[0])[-100:] or "copy")
        fs.get_file(path, local)
        yield local


CREDENTIALS = (
    "check the name of the bucket, and set in the environment of every machine AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (gs://: GOOGLE_APPLICATION_CREDENTIALS; not AWS's own S3: AWS_ENDPOINT_URL)"
)


def check_readable(root: str) -> None:
    """Raise an error, with the remedy, if the object store of `root` does not answer or refuses.

    Raises:
        PermissionError: the object store cannot be reached, or its credentials are missing or wrong.
        ValueError: no installed package can reach a URI of this scheme.
    """
    if is_local(root):
        return
    try:
        fs, path = filesystem(root)
        fs.exists(path)
    except (ImportError, ValueError) as err:  # fsspec: a package is missing, or no such protocol
        raise ValueError(
            f"root {root!r} cannot be reached: {err}. With uv: uv run --with s3fs pyramid … (gcsfs, adlfs, …)"
        ) from err
    except Exception as err:  # each package has its own classes, which are not OSErrors
        raise PermissionError(f"root {root!r} cannot be reached ({type(err).__name__}: {err}): {CREDENTIALS}") from err


def check_writable(root: str) -> None:
    """Raise an error, with the remedy, if `root` cannot be written.

    Raises:
        PermissionError: no file can be written in the folder, or as `check_readable`.
        ValueError: no installed package can reach a URI of this scheme.
    """
    check_readable(root)
    probe = join(root, f".pyramid-write-test-{uuid.uuid4().hex}")  # steps of several runs may probe at once
    try:
        if is_local(root) and not os.path.exists(root):
            os.makedirs(os.path.dirname(root), exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another process was first
                os.mkdir(root, PRIVATE)
        write_bytes(probe, b"")
        fs, path = filesystem(probe)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)
    except OSError as err:
        remedy = "choose a folder you own with --root" if is_local(root) else CREDENTIALS
        raise PermissionError(f"cannot write under root {root!r} ({err.strerror or err}): {remedy}") from err


def file_crc32(uri: str) -> int:
    """CRC-32 of a file, which is read in pieces."""
    value = 0
    for piece in read_pieces(uri):
        value = zlib.crc32(piece, value)
    return value


def absolute(uri: str) -> str:
    """A URI that means the same in every process: local paths are made absolute."""
    return filesystem(uri)[1] if is_local(uri) else uri.rstrip("/")
