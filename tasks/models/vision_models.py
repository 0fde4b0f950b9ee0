"""Vision-language models as folders in the root: fetched once, known by the hash of their files."""

from typing import Literal

from pydantic import Field

from pyramid_model.captioning.question import Decoding
from pyramid_model.config import Config
from tasks.models.folders import absolute, folder_hash, writing_folder
from tasks.running.errors import StepError
from tasks.running.pipeline import on_ray
from tasks.running.run import Run
from tasks.tables import storage
from tasks.tables.delta import content_id

FETCHED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


class VisionModelConfig(Decoding):
    """A vision-language model that runs in Ray actors, through transformers."""

    name: str = Field(
        description="folder, or Hugging Face name, of a model that chats about images or videos (Qwen2.5-VL, LLaVA, …)"
    )
    revision: str = Field("", description="commit, tag or branch of it on Hugging Face")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="of its weights")
    batch_size: int = Field(8, ge=1, description="clips at a time; halved where memory does not suffice")
    num_cpus: float = Field(1, gt=0, description="CPUs, and so torch threads, of an actor")
    num_gpus: float = Field(1, ge=0, description="GPUs of an actor, also a fraction of one; 0: on the CPU")


class VisionModelFolder(Config):
    """A model on disk, and the hash of everything in it that decides what it writes."""

    uri: str
    hash: str


def prepare_vision_model(run: Run, config: VisionModelConfig) -> VisionModelFolder:
    """The folder of a model, which is fetched into the root first if need be.

    Raises:
        StepError: it is neither a folder nor to be had on Hugging Face.
    """
    if storage.exists(config.name):
        uri = absolute(config.name)
    else:
        uri = run.models("vision_model-" + content_id(config.name, config.revision))
        if not storage.exists(uri):
            on_ray(run, _fetch, run, uri, config.name, config.revision)
    return VisionModelFolder(uri=uri, hash=folder_hash(run, uri, "vision"))


def _fetch(run: Run, uri: str, name: str, revision: str) -> None:
    """Fetch a model from Hugging Face into the root, where every node finds it."""
    from huggingface_hub import snapshot_download

    try:
        with writing_folder(uri) as folder:
            snapshot_download(name, revision=revision or None, local_dir=folder, allow_patterns=list(FETCHED))
    except Exception as err:
        raise StepError(
            f"{name!r} is no folder, and Hugging Face does not give it: set captions.local.name "
            f"({type(err).__name__}: {err})"
        ) from err
    folder_hash(run, uri, "vision")
