"""What this machine has and lacks for a run: small checks, each with what was found and what to do.

`fail` means that the demo cannot run here, `warn` that something is worth knowing or slower than it could be.
"""

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tasks import storage

PACKAGE = "pyramid-pipeline"
PORTS = {4200: "Prefect server", 5000: "MLflow server", 8265: "Ray dashboard and jobs", 8000: "generation API"}
MIN_DISK_GB, MIN_RAM_GB, MIN_SHM_GB = 2.0, 4.0, 0.5
UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    name: str
    status: str  # ok | warn | fail
    found: str
    advice: str = ""


def all_checks(root: str) -> Iterator[Check]:
    """Every check, as they come. A check that itself breaks is reported, not raised."""
    checks: list[Callable[[], Check | list[Check]]] = [
        check_python,
        check_packages,
        check_hf_datasets,
        check_cpus,
        check_ram,
        check_shm,
        lambda: check_root(root),
        lambda: check_disk(root),
        *(lambda codec=codec: check_codec(*codec) for codec in CODECS),
        check_decord,
        check_torch,
        *(lambda port=port: check_port(port) for port in PORTS),
        check_ray_auth,
        check_uv,
        check_prefect,
        lambda: check_mlflow(root),
    ]
    for check in checks:
        try:
            found = check()
        except Exception as err:
            found = Check("a check broke", "warn", f"{type(err).__name__}: {err}", "please report this")
        yield from found if isinstance(found, list) else [found]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Python 3.11 or 3.12."""
    text = f"{'.'.join(map(str, version))} ({platform.system()} {platform.machine()})"
    if (3, 11) <= version[:2] < (3, 13):
        return Check("Python", "ok", text)
    return Check("Python", "fail", text, "use Python 3.11 or 3.12: uv python install 3.12 && uv sync")


def check_packages(requirements: list[str] | None = None) -> list[Check]:
    """Installed versions against what this package asks for; one line for all that fit."""
    from packaging.requirements import Requirement

    names = metadata.requires(PACKAGE) or [] if requirements is None else requirements
    wanted = [one for one in map(Requirement, names) if one.marker is None or one.marker.evaluate()]
    bad, good = [], []
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            bad.append(Check(one.name, "fail", "not installed", f"uv sync (needs {one})"))
            continue
        if one.specifier.contains(version, prereleases=True):
            good.append(one.name)
        else:
            bad.append(Check(one.name, "fail", version, f"uv sync (needs {one.name}{one.specifier})"))
    return [*bad, Check("packages", "ok" if good else "warn", f"{len(good)} of {len(wanted)} as required")]


def check_hf_datasets() -> Check:
    """`import datasets` must be Hugging Face's library, not a folder of data cards."""
    spec = importlib.util.find_spec("datasets")
    origin = spec.origin if spec else None
    if origin and "site-packages" in origin:
        return Check("Hugging Face datasets", "ok", metadata.version("datasets"))
    advice = "install it (uv sync), and keep __init__.py out of folders named datasets"
    return Check("Hugging Face datasets", "fail", f"`import datasets` finds {origin or 'a bare folder'}", advice)


def check_cpus() -> Check:
    """CPUs that this process may use; one stays free for Ray itself."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if usable < 2:
        return Check("CPUs", "fail", str(usable), "a run needs two: one for actors, one for Ray's own work")
    return Check("CPUs", "ok", str(usable))


def check_ram() -> Check:
    """Memory that is free, within the limit of a container."""
    import psutil

    free = psutil.virtual_memory().available
    limit = _container_limit()
    free = min(free, limit) if limit else free
    text = f"{free / 1e9:.1f} GB free"
    return Check("memory", *_enough(free / 1e9, MIN_RAM_GB, text, "close other programs, or give the container more"))


def _container_limit() -> int | None:
    """Memory limit of a cgroup (v2), bytes; None without one."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    return None


def _enough(value: float, least: float, text: str, advice: str) -> tuple[str, str, str]:
    return ("ok", text, "") if value >= least else ("warn", f"{text}, {least:g} GB are recommended", advice)


def check_shm(path: str = "/dev/shm") -> Check:
    """Shared memory, where Ray keeps its objects on Linux."""
    if not os.path.isdir(path):
        return Check("shared memory", "ok", f"no {path} on this system; Ray does without")
    free = shutil.disk_usage(path).free / 1e9
    advice = "start the container with --shm-size=2g (or ipc: host); else Ray uses the disk, which is slow"
    return Check("shared memory", *_enough(free, MIN_SHM_GB, f"{free:.1f} GB free in {path}", advice))


def check_root(root: str) -> Check:
    """Whether tables and media can be written; nothing stays behind."""
    try:
        if storage.is_local(root):
            with tempfile.TemporaryDirectory(prefix=".pyramid-doctor-", dir=_nearest_folder(root)):
                pass
        else:
            storage.check_writable(root)
    except (OSError, ImportError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        return Check("root", "fail", f"{root} cannot be written: {reason}", "choose a folder you own with --root")
    return Check("root", "ok", f"{root} can be written")


def _nearest_folder(root: str) -> Path:
    """The root, or the nearest folder above it that exists.

    Raises:
        NotADirectoryError: what exists there is a file.
    """
    path = Path(root.removeprefix("file://")).expanduser().resolve()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(20, f"{path} is a file")
    return path


def check_disk(root: str) -> Check:
    """Space for tables, clips and checkpoints."""
    if not storage.is_local(root):
        return Check("disk", "ok", "the root is remote")
    try:
        free = shutil.disk_usage(_nearest_folder(root)).free / 1e9
    except OSError as err:
        return Check("disk", "warn", str(err), "see root")
    return Check("disk", *_enough(free, MIN_DISK_GB, f"{free:.1f} GB free at the root", "free some, or move the root"))


# (name, encoder that makes the test clip, decoder, pixel format, whether the demo needs it)
CODECS = (
    ("h264", "libx264", "h264", True),
    ("vp9", "libvpx-vp9", "vp9", True),
    ("mpeg4", "mpeg4", "mpeg4", True),
    ("hevc", "libx265", "hevc", False),
    ("av1", "libsvtav1", "libdav1d", False),
)
CODEC_FRAMES = 4


def check_codec(name: str, encoder: str, decoder: str, needed: bool) -> Check:
    """Encode a few frames and decode them again; where the encoder is missing, ask for the decoder alone."""
    import av.error
    from av.codec import Codec

    advice = "uv sync --reinstall-package av (the wheels of PyAV carry the codecs)"
    level = "fail" if needed else "warn"
    try:
        Codec(decoder, "r")
    except (ValueError, av.error.FFmpegError):
        return Check(f"codec {name}", level, f"no decoder {decoder}", advice)
    try:
        count = _encode_and_decode(encoder, decoder)
    except (ValueError, av.error.FFmpegError) as err:
        if name == "h264":  # the one that we write
            return Check(f"codec {name}", "fail", f"cannot encode with {encoder}: {err}", advice)
        return Check(f"codec {name}", "ok", f"decoder {decoder} is there (not tried: no {encoder})")
    if count != CODEC_FRAMES:
        return Check(f"codec {name}", level, f"{count} of {CODEC_FRAMES} frames came back", advice)
    return Check(f"codec {name}", "ok", "decodes; encodes" if name == "h264" else "decodes")


def _encode_and_decode(encoder: str, decoder: str) -> int:
    """How many of CODEC_FRAMES frames come back."""
    from fractions import Fraction

    import av
    import numpy as np

    os.environ.setdefault("SVT_LOG", "0")  # these two encoders print a page about themselves
    writer: Any = av.CodecContext.create(encoder, "w")
    writer.options = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
    writer.width, writer.height, writer.pix_fmt, writer.time_base = 64, 64, "yuv420p", Fraction(1, 24)
    reader: Any = av.CodecContext.create(decoder, "r")
    packets = []
    for index in range(CODEC_FRAMES):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * index, np.uint8), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts = index
        packets += writer.encode(frame)
    packets += writer.encode(None)
    return sum(len(reader.decode(packet)) for packet in [*packets, None])


def check_decord() -> Check:
    """decord reads batches of our own clips on Linux; elsewhere PyAV does."""
    if sys.platform != "linux":
        return Check("decord", "ok", "not used on this system: PyAV reads clips")
    try:
        import decord
    except (ImportError, OSError) as err:
        return Check("decord", "fail", str(err), "uv sync --reinstall-package decord")
    return Check("decord", "ok", str(decord.__version__))


def check_torch() -> Check:
    """torch and the device that models would run on."""
    try:
        import torch
    except (ImportError, OSError) as err:
        return Check("torch", "fail", str(err), "uv sync --reinstall-package torch")
    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Check(
            "device", "ok", f"{version}, " + ", ".join(f"{p.name} {p.total_memory / 1e9:.0f} GB" for p in names)
        )
    if torch.backends.mps.is_available():
        return Check("device", "ok", f"{version}, Apple GPU (MPS)")
    if shutil.which("nvidia-smi"):
        advice = "the driver may be too old for this torch, or the container lacks --gpus all: compare with nvidia-smi"
        return Check("device", "warn", f"{version} sees no GPU although nvidia-smi is there", advice)
    return Check("device", "ok", f"{version}, CPU only: enough for the demo, not for real models")


def check_port(port: int) -> Check:
    """Whether a server of ours could listen there; taken is fine when it is that very server."""
    name = f"port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as err:
            what = PORTS.get(port, "server")
            advice = f"fine if that is the {what}; else give the {what} another port, or stop what holds this one"
            return Check(name, "warn", f"taken ({err.strerror})", advice)
    return Check(name, "ok", f"free for the {PORTS.get(port, 'server')}")


def check_ray_auth() -> Check:
    """Token authentication of Ray clusters: asked for, is there a token?"""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    address = os.environ.get("RAY_ADDRESS", "")
    where = f", RAY_ADDRESS={address}" if address else ""
    if mode == "token" and not has_token:
        advice = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token (an embedded Ray makes its own)"
        return Check("Ray token", "warn", f"RAY_AUTH_MODE=token and no token{where}", advice)
    if address and mode != "token":
        advice = "a cluster that others can reach needs RAY_AUTH_MODE=token on the head, the nodes and here"
        return Check("Ray token", "warn", f"no authentication{where}", advice)
    return Check("Ray token", "ok", f"mode {mode or 'not set'}, {'a token' if has_token else 'no token'}{where}")


def check_uv() -> Check:
    """Under `uv run` Ray would start its workers in an environment of their own, unless it is told not to."""
    if os.environ.get(UV_HOOK, "0").lower() in ("1", "true"):
        return Check(
            "uv and Ray", "warn", f"{UV_HOOK} is on", f"unset {UV_HOOK}: workers would get another environment"
        )
    return Check("uv and Ray", "ok", "workers use this environment")


def check_prefect() -> Check:
    """The Prefect server of PREFECT_API_URL, when one is named."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Check("Prefect server", "ok", "none set: flows start a temporary one")
    return _server("Prefect server", "PREFECT_API_URL", url, url.rstrip("/") + "/health")


def check_mlflow(root: str) -> Check:
    """The MLflow server of MLFLOW_TRACKING_URI, when one is named."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        if storage.is_local(root):
            return Check("MLflow", "ok", "none set: an SQLite file under the root")
        return Check(
            "MLflow", "fail", "the root is remote and MLFLOW_TRACKING_URI is not set", "set it to an MLflow server"
        )
    if not uri.startswith("http"):
        return Check("MLflow", "ok", _without_password(uri))
    return _server("MLflow", "MLFLOW_TRACKING_URI", uri, uri.rstrip("/") + "/health")


def _server(name: str, variable: str, shown: str, url: str, timeout_s: float = 5.0) -> Check:
    import urllib.error
    import urllib.request

    shown = _without_password(shown)
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            return Check(name, "ok", f"{shown} answers")
    except urllib.error.HTTPError as err:
        if err.code in (401, 403):
            return Check(name, "warn", f"{shown} asks who we are", "set its user and password in the environment")
        return Check(name, "fail", f"{shown} answers {err.code}", f"is {variable} right?")
    except (OSError, ValueError) as err:
        reason = getattr(err, "reason", None) or err
        return Check(name, "fail", f"{shown} does not answer: {reason}", f"start it, or unset {variable}")


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", uri)
