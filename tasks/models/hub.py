"""Models from the Hugging Face Hub: fetched once per node, at a recorded commit. Code in a model is never run.

A name is `owner/model`, or `owner/model@revision` with a commit, tag or branch; without one the newest commit is taken
once and kept. `source.yaml` in the folder says which commit it is.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.stored_folders import writing_folder

SOURCE_FILE = "source.yaml"  # not .json, since the content hash of a model includes JSON files
SAFE_WEIGHTS = ("*.safetensors",)
OTHER_WEIGHTS = ("*.bin", "*.pth")
CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja")


def model_folder(
    run: Run,
    kind: str,
    name: str,
    setting: str,
    *,
    other_weights: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> str:
    """URI of a model's folder: `name` itself if it is a folder, else the copy of the Hub model in the root.

    Args:
        run: where models go.
        kind: first part of the folder's name, such as `text_encoder`.
        name: a folder, or a name on the Hub.
        setting: of the recipe, for messages.
        other_weights: patterns of weights to fetch if the model has no safetensors; empty: safetensors only.
        left_out: patterns of files that are not fetched.

    Raises:
        StepError: `name` is not a folder, and cannot be fetched from the Hub; the message says what to do.
    """
    if storage.exists(name):
        return storage.absolute(name)
    uri = run.models(f"{kind}-{name.replace('/', '--')}")
    with once_a_node(uri):
        if not storage.exists(uri):
            snapshot = fetch(name, setting, [*CONFIGS, *SAFE_WEIGHTS], left_out)
            if not any(snapshot.rglob(SAFE_WEIGHTS[0])) and other_weights:
                snapshot = fetch(
                    f"{repository_of(name)}@{snapshot.name}", setting, [*CONFIGS, *other_weights], left_out
                )
            with writing_folder(uri) as folder:
                copy_snapshot(snapshot, Path(folder))
                write_source(folder, source_of(name, snapshot))
    return uri


def fetch(name: str, setting: str, patterns: Sequence[str], left_out: Sequence[str] = ()) -> Path:
    """The Hub's own cache folder of a model on this node, called after its commit; a cached one needs no network.

    Raises:
        StepError: the Hub does not give it; the message says what was asked for, whether HF_HUB_OFFLINE is set, and how
            to give a local folder.
    """
    from huggingface_hub import constants, snapshot_download

    revision = name.partition("@")[2] or None
    try:
        return Path(
            snapshot_download(
                repository_of(name), revision=revision, allow_patterns=list(patterns), ignore_patterns=list(left_out)
            )
        )
    except Exception as err:  # the Hub has many exceptions: no network, no such name, no access
        reason = f"{type(err).__name__}: {' '.join(str(err).split())}"
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set, so nothing is fetched, and this machine's cache does not hold it"
        raise StepError(
            f"{setting}: {name!r} is not a folder here, and the Hugging Face Hub does not give it ({reason}). Set "
            f"{setting} to a local folder with the model's files ({', '.join(patterns)}), or to a name that can be "
            "reached; with HF_HUB_OFFLINE=1 fetch it once before (`hf download NAME`)"
        ) from err


def repository_of(name: str) -> str:
    """`owner/model` of a name that may end in @revision."""
    return name.partition("@")[0]


def source_of(name: str, snapshot: Path) -> dict[str, str]:
    """Origin of a fetched model, for `write_source`. snapshot: its folder, as `fetch` returns it."""
    return {"name": repository_of(name), "revision": name.partition("@")[2], "commit": snapshot.name}


def write_source(folder: str, source: Mapping[str, object]) -> None:
    """Write `source.yaml`, which records the origin of the files in a model's folder."""
    Path(folder, SOURCE_FILE).write_text(yaml.safe_dump(dict(source), sort_keys=False))


def copy_snapshot(snapshot: Path, folder: Path) -> None:
    """Fill a folder with the files of a snapshot (links into the cache): as hard links, or copied to another disk."""
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():
            copy = folder / path.relative_to(snapshot)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), copy)
            except OSError:  # another disk, or no hard links on it
                shutil.copyfile(path, copy)


@contextlib.contextmanager
def once_a_node(name: str) -> Iterator[None]:
    """Lock for the processes of this machine; a process that waited finds the result of the one before it."""
    lock = Path(tempfile.gettempdir(), f"pyramid-{os.getuid()}-{content_id(name)[:16]}.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
