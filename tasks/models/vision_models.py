"""Vision-language models as folders in the root: fetched once, identified by the hash of their files."""

from typing import Literal

from pydantic import Field

from pyramid_model.captioning.question import Decoding
from pyramid_model.config import NOT_IDENTITY
from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import folder_hash
from tasks.models.hub import model_folder
from tasks.running.cluster import on_ray
from tasks.running.run import Run
from tasks.tables import storage


class VisionModelConfig(Decoding):
    """A vision-language model that runs in Ray actors, through transformers."""

    name: str = Field(
        description="folder, or Hugging Face name[@revision], of a model that chats about images or videos "
        "(Qwen2.5-VL, LLaVA, …)",
        json_schema_extra=NOT_IDENTITY,
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="type of the weights")
    batch_size: int = Field(
        default=8, ge=1, description="clips in one batch; halved if memory is too small", json_schema_extra=NOT_IDENTITY
    )
    num_cpus: float = Field(
        default=1, gt=0, description="CPUs and torch threads of an actor", json_schema_extra=NOT_IDENTITY
    )
    num_gpus: float = Field(
        default=1,
        ge=0,
        description="GPUs of an actor, may be a fraction; 0: runs on the CPU",
        json_schema_extra=NOT_IDENTITY,
    )


def prepare_vision_model(run: Run, config: VisionModelConfig) -> ModelFolder:
    """The folder of a model; if the root does not have it, it is fetched first.

    Raises:
        StepError: the name is not a folder, and cannot be downloaded from Hugging Face.
    """
    uri = config.name if storage.exists(config.name) else on_ray(run, _fetch, run, config.name)
    return ModelFolder(uri=storage.absolute(uri), hash=folder_hash(run, storage.absolute(uri), "vision"))


def _fetch(run: Run, name: str) -> str:
    """URI of a model of the Hub in the root, where every node finds it."""
    uri = model_folder(run, "vision_model", name, "captions.local.name")
    folder_hash(run, uri, "vision")
    return uri
