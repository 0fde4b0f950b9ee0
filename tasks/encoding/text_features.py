"""Step `text_features`: encodes each distinct caption and prompt once."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict

from pydantic import Field

from pyramid_model.config import NOT_IDENTITY, NULL_TEXT, CaptionsOfKind, Config, identity
from pyramid_model.weights.record import ModelFolder
from tasks.captioning.prompts import read_prompts
from tasks.models.encoders import newest_encoder_hash, prepare_encoder
from tasks.models.folders import load_encoder
from tasks.running.errors import StepError
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult, lineage
from tasks.running.step import step
from tasks.running.stopwatch import Stopwatch
from tasks.running.work import PerItemWork, Produced
from tasks.tables.appending import append_again
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.current import captions_by_kind, selected_clips
from tasks.tables.pending import pending
from tasks.tables.rows import Row, bad_row, ok_row

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "1"
MAX_TOKENS = 128  # longer texts are truncated, as for the released models


class TinyEncoderConfig(Config):
    """The small random encoder `tiny`."""

    dim: int = Field(default=64, ge=8, description="width of the encoder `tiny`")
    num_layers: int = Field(default=2, ge=1, description="layers of the encoder `tiny`")
    vocab_size: int = Field(default=512, ge=64, description="largest vocabulary of the tokenizer of `tiny`")
    seed: int = Field(default=0, ge=0, description="seed of the random weights of `tiny`")


class TextFeaturesConfig(TinyEncoderConfig):
    """The texts to encode, and the encoder."""

    selection: str = Field(default="", description="id of the selection; empty: the newest")
    captions: tuple[CaptionsOfKind, ...] = Field(
        default=(),
        description="captions to use, the preferred kind first, e.g. [{kind: dense}, {kind: short}]; empty: the newest "
        "of each clip",
    )
    encoder: str = Field(
        default="tiny",
        description="tiny: a small random T5 with a tokenizer trained on the captions; else a released directory, a T5 "
        "folder, or a Hugging Face name[@revision]",
    )
    prompts: tuple[str, ...] = Field(default=(), description="texts to encode besides the captions")
    prompts_file: str = Field(default="", description="text file of such texts, one on each line")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the features and of the encoder's weights"
    )
    block_size: int = Field(
        default=64,
        ge=1,
        description="texts in a block, which is computed and committed together",
        json_schema_extra=NOT_IDENTITY,
    )
    num_cpus: float = Field(default=0.5, gt=0, description="CPUs of an actor", json_schema_extra=NOT_IDENTITY)
    num_gpus: float = Field(
        default=0,
        ge=0,
        description="GPUs of an actor; above 0 encodes on the GPU, above 1 spreads T5 over several",
        json_schema_extra=NOT_IDENTITY,
    )
    batch_size: int = Field(
        default=16, ge=1, description="texts that are encoded at a time", json_schema_extra=NOT_IDENTITY
    )

    def tiny(self) -> TinyEncoderConfig:
        """The settings that the encoder `tiny` depends on, besides the captions."""
        return TinyEncoderConfig.model_validate(self.model_dump(include=set(TinyEncoderConfig.model_fields)))


class TextItem(TypedDict):
    """Work item of `TextEncoder`: a text and the id of its features."""

    text_feature_id: str
    text: str


class TextEncoder:
    """Actor: loads the encoder once, then encodes texts."""

    def __init__(self, encoder: ModelFolder, dtype: str, num_gpus: float, batch_size: int):
        self.encoder_hash = encoder.hash
        self.dtype, self.batch_size = dtype, batch_size
        device = "auto" if num_gpus > 1 else "cuda" if num_gpus else "cpu"
        self.encoder = load_encoder(encoder.uri, device, dtype)
        self.stopwatch = Stopwatch()

    def __call__(self, items: Sequence[TextItem]) -> Produced:
        """One row per text."""
        with self.stopwatch:
            features = self.encoder.encode([item["text"] for item in items], self.batch_size)
        rows = [self.row(item, *embedding) for item, embedding in zip(items, features, strict=True)]
        return Produced({"text_features": rows}, self.stopwatch.spent("encoder"))

    def row(self, item: TextItem, embeds: "Tensor", pooled: "Tensor") -> Row:
        """Row of one text. embeds: features of the valid tokens (n d); pooled: (p)."""
        from tasks.tables.blobs import tensor_bytes

        columns = {name: item[name] for name in ("text_feature_id", "text")} | {"encoder_hash": self.encoder_hash}
        if not (embeds.isfinite().all() and pooled.isfinite().all()):
            error = "not_finite", f"the text encoder gives NaN or Inf for {item['text']!r}"
            return bad_row(item, error, **columns)
        data, pooled_data = tensor_bytes(embeds, self.dtype), tensor_bytes(pooled, self.dtype)
        blobs = {"embeds": data, "pooled": pooled_data, "crc32": crc32(data, pooled_data)}
        return ok_row(item, **columns, **blobs, shape=list(embeds.shape), dtype=self.dtype)


class TextFeaturesResult(StepResult):
    """Result of the text_features step."""

    encoder: str = Field(description="folder of the text encoder")
    encoder_hash: str = Field(description="hash of its files")
    random_init: bool = Field(description="its weights are random, so features do not depend on the meaning of a text")


@step
def text_features(run: Run, config: TextFeaturesConfig) -> TextFeaturesResult:
    """Encode the captions of the selected clips, the prompts, and the empty text.

    Raises:
        StepError: no selected clip has a caption, or the encoder does not exist.
    """
    clip_ids = selected_clips(run.root, config.selection, columns=("clip_id",))["clip_id"].to_pylist()
    captions = captions_by_kind(run.root, clip_ids, config.captions)
    caption_texts = sorted({text for of_clip in captions.values() for text in of_clip.values()})
    if not caption_texts:
        raise StepError(
            f"no captions for the {len(clip_ids)} selected clips in {run.root}: run the captions step first"
        )
    encoder = prepare_encoder(run, config.encoder, caption_texts, identity(config.tiny()))
    texts = list(dict.fromkeys([NULL_TEXT, *caption_texts, *read_prompts(config.prompts, config.prompts_file)]))
    all_items: list[TextItem] = [
        {"text_feature_id": text_feature_id(text, encoder.hash, config.dtype), "text": text} for text in texts
    ]
    # Sorted by length, so that batches need little padding.
    all_items.sort(key=lambda item: len(item["text"]))
    todo = pending(run.root, "text_features", [item["text_feature_id"] for item in all_items], run.retry_failed)
    work = PerItemWork(
        step="text_features",
        version=VERSION,
        config=config,
        worker=partial(
            TextEncoder, encoder=encoder, dtype=config.dtype, num_gpus=config.num_gpus, batch_size=config.batch_size
        ),
        done_table="text_features",
        since={"text_features": todo.version},
        block_size=config.block_size,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    result = run_blocks(run, work, todo.items(all_items, "text_feature_id"), todo.num_done)
    if newest_encoder_hash(run) != encoder.hash:
        # Another encoder was used since: one row of this encoder is appended again, which makes it the newest.
        null_id = text_feature_id(NULL_TEXT, encoder.hash, config.dtype)
        append_again(run.root, "text_features", [null_id], lineage(run, "text_features", VERSION, config))
    return TextFeaturesResult(
        **dict(result), encoder=encoder.uri, encoder_hash=encoder.hash, random_init=encoder.random_init
    )


def text_feature_id(text: str, encoder_hash: str, dtype: str) -> str:
    """Id of the features of a text: a hash of the text, the encoder and the stored form."""
    return content_id(text, encoder_hash, dtype, MAX_TOKENS)
