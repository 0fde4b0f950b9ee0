"""Model folders: found by kind in the table `models`, hashed, checked and loaded."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pyramid_model.config import Config, VAEConfig
from pyramid_model.weights.record import TRAINING_FILE, ModelFolder, TrainedModel, parse_record
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.newest import newest_row
from tasks.tables.root_paths import MARK
from tasks.tables.rows import ModelRow
from tasks.tables.stored_folders import local_folder

if TYPE_CHECKING:
    from pyramid_model.dit.transformer import DiT
    from pyramid_model.generate.pipeline import VideoPipeline
    from pyramid_model.text import TextEncoder
    from pyramid_model.vae.autoencoder import CausalVideoVAE


class ModelSet(Config):
    """Models that belong together: a DiT, and the VAE and the text encoder that it works with."""

    dit: ModelFolder
    vae: ModelFolder
    encoder: ModelFolder

    @property
    def hashes(self) -> tuple[str, str, str]:
        """Content hashes of the three models; sets with equal hashes generate the same clips."""
        return self.dit.hash, self.vae.hash, self.encoder.hash


def find_model(run: Run, kind: str, uri: str = "") -> ModelFolder:
    """The model at `uri`, or the newest one of that kind in this root.

    Raises:
        StepError: there is no model, or the newest is outside of the root; the message names what to set or to run.
    """
    where = (pc.field("status") == "ok") & (pc.field("kind") == kind)
    if uri:
        uri = storage.absolute(uri)
        where &= pc.field("uri") == uri
    model = newest_row(read_table(run.root, "models", where=where), ModelRow)
    if model and model["uri"].startswith(MARK):
        raise StepError(
            f"the newest {kind} of {run.root} is at {model['uri'].removeprefix(MARK)}, outside of this root: rows name "
            "the place where they were written, so put a root that was copied or moved back, or train in it again"
        )
    if model:
        return ModelFolder(uri=model["uri"], hash=model["weights_hash"])
    if not uri:
        raise StepError(f"no {kind} in {run.root}: run the train_{kind} step, or set `{kind}` to a model folder")
    return ModelFolder(uri=uri, hash=folder_hash(run, uri, "weights"))


def folder_hash(run: Run, uri: str, kind: str) -> str:
    """Content hash of a folder: `weights` of a model, `text` encoder, `vision`-language model, or any other (`files`).

    Hashing reads gigabytes and may need torch, so the hash is cached under `<root>/models/hashes`. Its key contains
    the sizes and times of the files, also the time of the last change that programs cannot set (ctime), so a copy with
    the times of another file has a hash of its own. Bytes that a disk changes by itself are found by `changed_weights`.

    Raises:
        StepError: the folder does not exist.
    """
    fs, path = storage.filesystem(uri)
    if not fs.isdir(path):
        raise StepError(f"there is no model folder {uri!r}: give the folder that holds config.json and the weights")
    files = sorted(dict(fs.find(path, detail=True)).items())
    stamp = [[name[len(path) :], info["size"], *_times(info)] for name, info in files]
    record = run.models("hashes", content_id(kind, uri, stamp) + ".json")
    if not storage.exists(record):
        with local_folder(uri) as folder:
            entry = {"uri": uri, "hash": _hash_function(kind)(folder)}
        storage.write_bytes(record, json.dumps(entry).encode())
    return json.loads(storage.read_bytes(record))["hash"]


def _times(info: Mapping[str, object]) -> list[str]:
    """What changes with the content of a file. info: of fsspec, which gives the ctime of a local file as `created`."""
    return [str(info.get("mtime") or info.get("etag") or info.get("ETag")), str(info.get("created"))]


def hash_records(root: str) -> list[dict[str, str]]:
    """Every cached hash: {"uri", "hash"}."""
    fs, path = storage.filesystem(storage.join(root, "models", "hashes"))
    return [json.loads(fs.cat_file(name)) for name in sorted(fs.glob(f"{path}/*.json"))]


def _hash_function(kind: str) -> Callable[[str], str]:
    if kind == "text":
        from pyramid_model.weights.files_hash import text_encoder_hash

        return text_encoder_hash
    if kind == "vision":
        from pyramid_model.captioning.vision_model import vision_model_hash

        return vision_model_hash
    if kind == "files":
        return _files_hash
    from pyramid_model.weights.weights import weights_hash

    return weights_hash


def _files_hash(folder: str) -> str:
    """Hash of weights, configs and tokenizer files, without README and licence."""
    from pyramid_model.weights.files_hash import files_hash

    suffixes = {".json", ".safetensors", ".bin", ".pth", ".txt", ".model"}
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in suffixes)
    return files_hash(Path(folder), files)


def read_record(uri: str) -> TrainedModel | None:
    """The record in a model folder at any URI; None for a model that was not trained here.

    Raises:
        ValueError: training.json is damaged.
    """
    file = storage.join(uri, TRAINING_FILE)
    return parse_record(storage.read_bytes(file), file) if storage.exists(file) else None


def vae_config(uri: str) -> VAEConfig:
    """Config of the VAE in a folder at any URI; its weights are not read."""
    from pyramid_model.weights.released_names import CONFIG_FILE, vae_config_from_released

    return vae_config_from_released(json.loads(storage.read_bytes(storage.join(uri, CONFIG_FILE))))


def empty_dit(uri: str) -> "DiT":
    """The DiT of the config in a folder at any URI, without weights.

    Raises:
        OSError: the folder has no config.json.
        ValueError: it is not that of a DiT.
    """
    from pyramid_model.dit.transformer import DiT
    from pyramid_model.weights.released_names import CONFIG_FILE, MINIFLUX_CLASS, MMDIT_CLASS
    from pyramid_model.weights.weights import class_of, empty_model

    released = json.loads(storage.read_bytes(storage.join(uri, CONFIG_FILE)))
    if class_of(released) not in (MINIFLUX_CLASS, MMDIT_CLASS):
        kinds = f"{MINIFLUX_CLASS}, {MMDIT_CLASS}"
        raise ValueError(f"it holds a {class_of(released) or 'model of no class'}, not one of {kinds}")
    dit, _ = empty_model(released)
    assert isinstance(dit, DiT), "its class is one of these two"
    return dit


def changed_weights(uri: str, expected_hash: str, kind: str = "weights") -> str:
    """What is wrong with the files of a model, as a sentence; empty if they have the hash. Reads all bytes.

    kind: as `folder_hash`.
    """
    try:
        with local_folder(uri) as folder:
            _check_weights(folder, uri, expected_hash, kind)
    except StepError as err:
        return str(err)
    except OSError as err:  # a folder of an object store that is not there
        return f"weights in {uri} are missing: {type(err).__name__}"
    return ""


def _check_weights(folder: str, uri: str, expected_hash: str, kind: str = "weights") -> None:
    """Raise StepError if the weights in a local folder do not have the hash. uri: where they are kept."""
    if not expected_hash:
        return
    remedy = "Restore the folder from a copy, or train again; pyramid manifest verify lists all damage"
    try:
        actual = _hash_function(kind)(folder)
    except (OSError, ValueError) as err:
        raise StepError(f"weights in {uri} are missing: {err}. {remedy}") from err
    if actual != expected_hash:
        raise StepError(f"weights in {uri} were changed: their hash is {actual}, expected {expected_hash}. {remedy}")


@functools.cache
def load_vae(uri: str, device: str = "cpu", expected_hash: str = "") -> "CausalVideoVAE":
    """A VAE for this process; loaded once.

    Raises:
        StepError: its weights do not have `expected_hash` ("": not checked).
    """
    from pyramid_model.weights import weights

    with local_folder(uri) as folder:
        _check_weights(folder, uri, expected_hash)
        return weights.load_vae(folder, device)


def read_vae(uri: str) -> "CausalVideoVAE":
    """A VAE of its own for the caller, on the CPU."""
    from pyramid_model.weights import weights

    with local_folder(uri) as folder:
        return weights.load_vae(folder)


def read_dit(uri: str) -> "DiT":
    """A DiT of its own for the caller, on the CPU."""
    from pyramid_model.weights import weights

    with local_folder(uri) as folder:
        return weights.load_dit(folder)


@functools.cache
def load_dit(uri: str, device: str = "cpu", expected_hash: str = "") -> "DiT":
    """A DiT for this process; loaded once.

    Raises:
        StepError: its weights do not have `expected_hash` ("": not checked).
    """
    from pyramid_model.weights import weights

    with local_folder(uri) as folder:
        _check_weights(folder, uri, expected_hash)
        return weights.load_dit(folder, device)


def pipeline_of(
    record: TrainedModel | None,
    dit: "DiT",
    vae: "CausalVideoVAE",
    encoder: "TextEncoder | None" = None,
    device: str = "",
) -> "VideoPipeline":
    """Models that were trained here as one pipeline: stages, units and normalisation are those of the DiT's training.

    Args:
        record: of the DiT; None: it was not trained here, and the defaults and the normalisation of the VAE are used.
        dit: the DiT.
        vae: the VAE of its latents.
        encoder: the text encoder; None: batches bring the features of their prompts.
        device: on which clips are sampled; empty: the best one available.
    """
    from pyramid_model.generate.pipeline import VideoPipeline

    return VideoPipeline(
        dit,
        vae,
        encoder,
        record.pyramid if record else None,
        norm=record.trained_on.latent_norm if record else None,
        device=device,
        autoregressive=record is None or record.autoregressive,
    )


@functools.cache
def encoder_dims(uri: str) -> tuple[int, int]:
    """(values per token, pooled values) of a text encoder."""
    from pyramid_model.text import text_encoder_dims

    with local_folder(uri) as folder:
        return text_encoder_dims(folder)


def load_encoder(uri: str, device: str = "cpu", dtype: str = "float32") -> "TextEncoder":
    """A text encoder for this process; loaded once."""
    import torch

    from pyramid_model.text import load_text_encoder

    with local_folder(uri) as folder:
        return load_text_encoder(folder, device, getattr(torch, dtype))
