"""Checks of this machine: Python, packages, CPUs, memory, disk, a root that can be written."""

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tasks.tables import storage

PACKAGE = "pyramid-pipeline"
MIN_DISK_GB, MIN_RAM_GB, MIN_SHM_GB = 2.0, 4.0, 0.5
UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    status: str  # ok | warn: something may cause problems | fail: the demo cannot run here
    facts: str  # such as a version or a size
    advice: str = ""  # what to do unless it is ok


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Whether this is Python 3.11 or 3.12."""
    text = f"{'.'.join(map(str, version))} ({platform.system()} {platform.machine()})"
    if (3, 11) <= version[:2] < (3, 13):
        return Check("Python", "ok", text)
    return Check("Python", "fail", text, "use Python 3.11 or 3.12: uv python install 3.12 && uv sync")


def check_packages(requirements: list[str] | None = None) -> list[Check]:
    """Whether the required packages are installed, in the required versions. All correct packages share one line."""
    from packaging.requirements import Requirement

    names = metadata.requires(PACKAGE) or [] if requirements is None else requirements
    required = [package for package in map(Requirement, names) if package.marker is None or package.marker.evaluate()]
    bad, good = [], []
    for package in required:
        try:
            version = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            bad.append(Check(package.name, "fail", "not installed", f"uv sync (needs {package})"))
            continue
        if package.specifier.contains(version, prereleases=True):
            good.append(package.name)
        else:
            bad.append(Check(package.name, "fail", version, f"uv sync (needs {package.name}{package.specifier})"))
    return [*bad, Check("packages", "ok" if good else "warn", f"{len(good)} of {len(required)} as required")]


def check_hf_datasets() -> Check:
    """Whether `import datasets` is Hugging Face's library, and not a folder of data cards."""
    spec = importlib.util.find_spec("datasets")
    origin = spec.origin if spec else None
    if origin and "site-packages" in origin:
        return Check("Hugging Face datasets", "ok", metadata.version("datasets"))
    advice = "install it (uv sync), and keep __init__.py out of folders named datasets"
    return Check("Hugging Face datasets", "fail", f"`import datasets` gives {origin or 'a bare folder'}", advice)


def check_bytecode(package: str = "torch") -> Check:
    """Whether compiled modules are on disk; without them every process of Ray compiles its packages at each start."""
    spec = importlib.util.find_spec(package)
    compiled = bool(spec and spec.origin and Path(importlib.util.cache_from_source(spec.origin)).exists())
    if compiled or not sys.dont_write_bytecode:
        return Check("bytecode cache", "ok", "written at the first start" if not compiled else "present")
    advice = "unset it, or run uv sync --compile-bytecode; otherwise each start takes about ten seconds longer"
    return Check("bytecode cache", "warn", f"PYTHONDONTWRITEBYTECODE is set and {package} is not compiled", advice)


def check_cpus() -> Check:
    """CPUs that this process may use; Ray itself needs one of them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if usable < 2:
        return Check("CPUs", "fail", str(usable), "a run needs two: one for actors, one for Ray's own work")
    return Check("CPUs", "ok", str(usable))


def check_ram() -> Check:
    """Free memory, within the limit of the container."""
    import psutil

    free_bytes = psutil.virtual_memory().available
    limit = _container_limit()
    free_bytes = min(free_bytes, limit) if limit else free_bytes
    text = f"{free_bytes / 1e9:.1f} GB free"
    return Check(
        "memory", *_enough(free_bytes / 1e9, MIN_RAM_GB, text, "close programs, or give the container more memory")
    )


def _container_limit() -> int | None:
    """Memory limit of the cgroup (v2), bytes; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    return None


def _enough(value: float, least: float, text: str, advice: str) -> tuple[str, str, str]:
    return ("ok", text, "") if value >= least else ("warn", f"{text}, {least:g} GB are recommended", advice)


def check_shm(path: str = "/dev/shm") -> Check:
    """Free shared memory, in which Ray keeps its objects on Linux."""
    if not os.path.isdir(path):
        return Check("shared memory", "ok", f"no {path} on this system; Ray needs none")
    free_gb = shutil.disk_usage(path).free / 1e9
    advice = "start the container with --shm-size=2g (or ipc: host); otherwise Ray uses the disk, which is slow"
    return Check("shared memory", *_enough(free_gb, MIN_SHM_GB, f"{free_gb:.1f} GB free in {path}", advice))


def check_root(root: str) -> Check:
    """Whether tables and media can be written; the test file is removed."""
    try:
        if storage.is_local(root):
            with tempfile.TemporaryDirectory(prefix=".pyramid-doctor-", dir=_nearest_folder(root)):
                pass
        else:
            storage.check_writable(root)
    except (OSError, ImportError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        return Check("root", "fail", f"{root} cannot be written: {reason}", "name a writable folder with --root")
    return Check("root", "ok", f"{root} can be written")


def _nearest_folder(root: str) -> Path:
    """The root, or if it does not exist, the nearest folder above it that does.

    Raises:
        NotADirectoryError: there is a file in place of a folder.
    """
    path = Path(root.removeprefix("file://")).expanduser().resolve()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(20, f"{path} is a file")
    return path


def check_disk(root: str) -> Check:
    """Free space for tables, clips and checkpoints."""
    if not storage.is_local(root):
        return Check("disk", "ok", "the root is remote")
    try:
        free_gb = shutil.disk_usage(_nearest_folder(root)).free / 1e9
    except OSError as err:
        return Check("disk", "warn", str(err), "see the check of the root")
    return Check(
        "disk", *_enough(free_gb, MIN_DISK_GB, f"{free_gb:.1f} GB free at the root", "free space, or move the root")
    )


def check_uv() -> Check:
    """Whether Ray's hook for `uv run` is off: it would start workers in an environment of their own."""
    if os.environ.get(UV_HOOK, "0").lower() in ("1", "true"):
        return Check(
            "uv and Ray", "warn", f"{UV_HOOK} is on", f"unset {UV_HOOK}: workers would run in another environment"
        )
    return Check("uv and Ray", "ok", "workers use this environment")
