"""Embeddings: CLIP features of sampled frames of every clip, stored once for scores, duplicates and search."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import NOT_IDENTITY, identity
from tasks.models.score_models import load_open_clip
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.running.work import Produced
from tasks.scoring.frames import TorchModelConfig, limit_torch_threads, over_clips
from tasks.scoring.newest import TRIES
from tasks.tables.appending import append_again
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import read_table, table_version
from tasks.tables.newest import ORDER, newest_row
from tasks.tables.rows import ClipFile, EmbeddingRow, Lineage, Row, as_rows, bad_row, ok_row

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "1"
STORED = "float16"


class EmbeddingsConfig(TorchModelConfig):
    """The CLIP model, and the frames that it embeds."""

    model: str = Field(
        default="ViT-L-14",
        min_length=1,
        description="a name of open_clip's (with `pretrained`), the Hugging Face name of an open_clip model, or its "
        "folder",
        json_schema_extra=NOT_IDENTITY,
    )
    pretrained: str = Field(
        default="openai",
        description="weights for a name of open_clip: a tag, or the path of a checkpoint",
        json_schema_extra=NOT_IDENTITY,
    )

    @property
    def sampling(self) -> str:
        """Number and size of frames and precision, as JSON for the column `sampling`."""
        return json.dumps(identity(self))


def embedding_id(clip_id: str, model_hash: str, sampling: str) -> str:
    """Id of the features of a clip."""
    return content_id(clip_id, model_hash, sampling, STORED, VERSION)


class EmbeddingItem(ClipFile):
    """Work item of `Embedder`: a clip and the id of its features."""

    embedding_id: str


class Embedder:
    """Actor: loads the CLIP model once, then embeds sampled frames of one block of clips after another."""

    def __init__(self, uri: str, model_hash: str, config: EmbeddingsConfig):
        limit_torch_threads(config.num_threads)
        self.model = load_open_clip(uri, **config.placement())
        self.model_hash, self.config = model_hash, config

    def __call__(self, items: Sequence[EmbeddingItem]) -> Produced:
        """One row of `embeddings` per clip; a clip that cannot be read gets a failed row."""
        results = over_clips(items, self.config, self.model.embed_frames)
        rows = [self.row(item, features) for item, features in zip(items, results, strict=True)]
        return Produced({"embeddings": rows})

    def row(self, item: EmbeddingItem, features: "Tensor | Exception") -> Row:
        """Row of one clip. features: (n d), or the error of its file."""
        from tasks.tables.blobs import tensor_bytes

        columns = {name: item[name] for name in ("embedding_id", "clip_id")}
        columns |= {"model": self.config.model, "model_hash": self.model_hash, "sampling": self.config.sampling}
        if isinstance(features, Exception):
            return bad_row(item, features, **columns)
        if not features.isfinite().all():
            reason = "not_finite", f"the CLIP model gives NaN or Inf for clip {item['clip_id']}"
            return bad_row(item, reason, **columns)
        data = tensor_bytes(features, STORED)
        shape = list(features.shape)
        return ok_row(item, **columns, embedding=data, crc32=crc32(data), shape=shape, dtype=STORED)


def newest_source(root: str, version: int | None = None) -> tuple[str, str]:
    """(model_hash, sampling) of the newest embeddings at a version of the table; both empty when there are none."""
    newest = newest_row(read_table(root, "embeddings", ["model_hash", "sampling", *ORDER], version), EmbeddingRow)
    return (newest["model_hash"], newest["sampling"]) if newest else ("", "")


def make_newest_source(run: Run, embedding_id: str, settings: Lineage) -> int:
    """Make the model and sampling of an embedding the newest ones: append its row again, unless they are already.

    Returns:
        A version of the table at which they are the newest; another run with another model may follow it.

    Raises:
        StepError: another run was faster at each try.
    """
    row = embedding_rows(run.root, [embedding_id])[embedding_id]
    for _ in range(TRIES):
        version = table_version(run.root, "embeddings")
        if newest_source(run.root, version) == (row["model_hash"], row["sampling"]):
            return version
        append_again(run.root, "embeddings", [embedding_id], settings)
    raise StepError("another run on this root embeds the clips again and again: let one run at a time")


def embedding_rows(root: str, embedding_ids: Iterable[str]) -> dict[str, EmbeddingRow]:
    """Rows of `embeddings` by id, failed ones included."""
    with_ids = pc.field("embedding_id").isin(pa.array(sorted(set(embedding_ids)), pa.string()))
    rows = as_rows(read_table(root, "embeddings", where=with_ids), EmbeddingRow)
    return {row["embedding_id"]: row for row in rows}
