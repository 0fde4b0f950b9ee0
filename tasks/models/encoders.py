"""Folders of text encoders: built, fetched, or found by the content hash in the rows of `text_features`."""

import json
from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from pyramid_model.config import ENCODER_FILE
from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import folder_hash, hash_records
from tasks.models.hub import model_folder
from tasks.running.cluster import on_ray
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.newest import ORDER, newest_row
from tasks.tables.rows import TextFeatureRow
from tasks.tables.stored_folders import local_folder, writing_folder

TINY = "tiny"
TINY_VERSION = "2"


def find_encoder(run: Run, uri: str = "") -> ModelFolder:
    """The encoder at `uri`, or the one that made the newest text features.

    Raises:
        StepError: there are no text features yet, or the folder does not exist.
    """
    if not uri:
        newest = newest_encoder_hash(run)
        if not newest:
            raise StepError(f"no text features in {run.root}: run the text_features step, or set `encoder` to a folder")
        folders = [record["uri"] for record in hash_records(run.root) if record["hash"] == newest]
        folders = [folder for folder in folders if storage.exists(folder)]
        if not folders:
            raise StepError(f"the folder of text encoder {newest[:8]} is missing: set `encoder` to its present folder")
        uri = folders[0]
    uri = storage.absolute(uri)
    return ModelFolder(uri=uri, hash=folder_hash(run, uri, "text"), random_init=_is_random(uri))


def newest_encoder_hash(run: Run) -> str:
    """Content hash of the encoder that made the newest text features; empty if there are none."""
    rows = read_table(run.root, "text_features", ["encoder_hash", *ORDER], where=pc.field("status") == "ok")
    newest = newest_row(rows, TextFeatureRow)
    return newest["encoder_hash"] if newest else ""


def prepare_encoder(run: Run, name: str, texts: Sequence[str], tiny: Mapping[str, int]) -> ModelFolder:
    """The encoder called `name`. If it is not in the root, it is built or fetched first.

    Args:
        run: where models go.
        name: "tiny", a folder, or a model on the Hugging Face Hub.
        texts: the tokenizer of a tiny encoder is trained on them.
        tiny: arguments of `build_tiny_text_encoder`.

    Raises:
        StepError: `name` is none of these, or it cannot be fetched.
    """
    if name == TINY:
        uri = run.models("text_encoder-" + content_id(TINY, TINY_VERSION, dict(tiny), list(texts)))
        if not storage.exists(uri):
            on_ray(run, _build_tiny, run, uri, list(texts), dict(tiny))
    elif storage.exists(name):
        uri = name
    else:
        uri = on_ray(run, _fetch, run, name)
    return find_encoder(run, uri)


def _build_tiny(run: Run, uri: str, texts: list[str], settings: dict[str, int]) -> None:
    """Build the small encoder: a tokenizer trained on the captions, random weights."""
    from pyramid_model.text import build_tiny_text_encoder

    with writing_folder(uri) as folder:
        build_tiny_text_encoder(texts, folder, **settings)
    folder_hash(run, uri, "text")


def _fetch(run: Run, name: str) -> str:
    """URI of an encoder of the Hub in the root, where every node finds it."""
    from pyramid_model.weights.files_hash import text_encoder_hash

    # a released directory has all parts of a model; only its text encoders are needed
    parts = ("diffusion_transformer*", "causal_video_vae*")
    uri = model_folder(run, "text_encoder", name, "text_features.encoder", left_out=parts)
    with local_folder(uri) as folder:
        text_encoder_hash(folder)
    folder_hash(run, uri, "text")
    return uri


def _is_random(uri: str) -> bool:
    note = storage.join(uri, ENCODER_FILE)
    return storage.exists(note) and bool(json.loads(storage.read_bytes(note)).get("random_init"))
