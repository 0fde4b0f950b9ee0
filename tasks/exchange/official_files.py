"""Import and export of the training files of the published Pyramid Flow code.

An annotation has one JSON line per clip, `{"video", "text", "latent", "text_fea"}`. A latent file is a bare tensor
(1 c t h w), not normalised; a text file is a dict of `prompt_embed` (1 128 d), `prompt_attention_mask` (1 128) and
`pooled_prompt_embed` (1 p). The published code writes bfloat16; the import reads any float type.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import NOT_IDENTITY, Config
from pyramid_model.weights.record import ModelFolder
from tasks.encoding.latents import latent_id
from tasks.encoding.text_features import MAX_TOKENS, text_feature_id
from tasks.models.encoders import find_encoder
from tasks.models.folders import encoder_dims, find_model, vae_config
from tasks.running.errors import StepError
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult, report_progress
from tasks.running.step import step
from tasks.running.work import PerItemWork, Produced
from tasks.selecting.select import select
from tasks.selecting.select_config import SelectConfig, SelectResult
from tasks.selecting.splits import SPLITS
from tasks.sources.ingest import hash_file
from tasks.tables import storage
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.delta import read_table
from tasks.tables.pending import pending
from tasks.tables.rows import Row, bad_row, ok_row
from tasks.tables.schemas import ID_COLUMNS
from tasks.training.pairs import PairReader, find_pairs, pair_source

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "1"
SPACE_FACTOR = TIME_FACTOR = 8  # of the published VAE
CUT_METHOD = "imported"


class ImportConfig(Config):
    """Files to import, and the models that made them."""

    annotation: str = Field(default="", description="jsonl with the keys video, text, latent and text_fea")
    folder: str = Field(default="", description="folder that paths are relative to; empty: the annotation's folder")
    vae: str = Field(default="", description="folder of the VAE that made the latents")
    encoder: str = Field(default="", description="folder of the text encoders that made the text features")
    fps: float = Field(default=24, gt=0, description="frame rate of the clips")
    dtype: str = Field(default="bfloat16", description="type in the table, float32 or bfloat16")
    block_size: int = Field(
        default=16,
        ge=1,
        description="clips in a block, which is computed and committed together",
        json_schema_extra=NOT_IDENTITY,
    )


class UnusableFile(ValueError):
    """A file that the annotation names is missing or has the wrong content. `kind` is the error_type of its row."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


# ---- import ----------------------------------------------------------------------------------------------------------


class ImportResult(StepResult):
    """Result of the import: the models that made the latents and text features."""

    vae: str = Field(description="folder of the VAE")
    encoder: str = Field(description="folder of the text encoder")


class AnnotationLine(TypedDict):
    """A line of the annotation.

    video, latent, text_fea: URIs of the files.
    path: of the video, as in the line.
    number: of the line, from 1.
    """

    video: str
    latent: str
    text_fea: str
    path: str
    text: str
    number: int


class ImportItem(AnnotationLine):
    """Work item of `OfficialReader`."""

    clip_id: str
    latent_id: str


@step
def import_official(run: Run, config: ImportConfig) -> ImportResult:
    """Import clips with their latents and text features. A line that cannot be used becomes a failed row.

    Raises:
        ValueError: the annotation is missing or empty, or a line is not a JSON object with the expected keys.
        StepError: the VAE or the text encoder does not exist.
    """
    vae, encoder = find_model(run, "vae", config.vae), find_encoder(run, config.encoder)
    lines = list(_lines(config))
    if not lines:
        raise ValueError(f"annotation {config.annotation!r} has no lines: give a file with one JSON object per clip")
    all_items = [_item(line, vae, config) for line in lines]
    todo = pending(run.root, "latents", [item["latent_id"] for item in all_items], run.retry_failed)
    work = PerItemWork(
        step="import_official",
        version=VERSION,
        config=config,
        worker=partial(OfficialReader, vae=vae, encoder=encoder, config=config),
        done_table="latents",
        since={"latents": todo.version},
        block_size=config.block_size,
    )
    items = todo.items({item["latent_id"]: item for item in all_items}.values(), "latent_id")
    result = run_blocks(run, work, items, todo.num_done)
    return ImportResult(**dict(result), vae=vae.uri, encoder=encoder.uri)


def _lines(config: ImportConfig) -> Iterator[AnnotationLine]:
    """Lines of the annotation, with URIs instead of paths.

    Raises:
        ValueError: the annotation is missing, or a line has no such keys or a path outside the folder.
    """
    if not config.annotation or not storage.exists(config.annotation):
        raise ValueError(f"there is no annotation {config.annotation!r}: give a .jsonl file")
    uri = storage.absolute(config.annotation)
    folder = storage.absolute(config.folder) if config.folder else uri.rpartition("/")[0]
    for number, text in enumerate(storage.read_bytes(uri).decode().splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            # As for other lists, a list on this machine may name any video of the machine.
            may_be_anywhere = storage.is_local(uri) and line["video"].startswith("/")
            yield {
                "latent": _inside(folder, line["latent"]),
                "text_fea": _inside(folder, line["text_fea"]),
                "video": line["video"] if may_be_anywhere else _inside(folder, line["video"]),
                "path": line["video"],
                "text": str(line["text"]),
                "number": number,
            }
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise ValueError(
                f"{uri}, line {number}: expected the keys video, text, latent and text_fea with paths below {folder} "
                f"({type(err).__name__}: {err})"
            ) from err


def _inside(folder: str, path: str) -> str:
    """URI of a path of the annotation. Absolute paths must be inside the folder, too."""
    return storage.join(folder, path.removeprefix(folder.rstrip("/") + "/"))


def _item(line: AnnotationLine, vae: ModelFolder, config: ImportConfig) -> ImportItem:
    """A line as a work item. Its ids depend on the names and sizes of its files."""
    sizes = [_size(line["video"]), _size(line["latent"]), _size(line["text_fea"])]
    clip_id = content_id(CUT_METHOD, line["video"], line["latent"], line["text_fea"], line["text"], sizes, config.fps)
    # The bucket is not known before the latent is read: CUT_METHOD takes its place in the hash.
    return {**line, "clip_id": clip_id, "latent_id": latent_id(clip_id, vae.hash, CUT_METHOD, config.dtype, "mean")}


def _size(uri: str) -> int | None:
    """Size of a file in bytes; None if the file is missing."""
    fs, path = storage.filesystem(uri)
    try:
        return fs.size(path)
    except FileNotFoundError:
        return None


class OfficialReader:
    """Actor: reads the files of each line and makes all rows that training on the clip needs."""

    def __init__(self, vae: ModelFolder, encoder: ModelFolder, config: ImportConfig):
        self.vae, self.encoder, self.config = vae, encoder, config
        of_vae = vae_config(vae.uri)
        self.channels = of_vae.latent_channels
        self.dims = encoder_dims(encoder.uri)
        self.latent_norm = json.dumps(of_vae.latent_norm.model_dump()) if of_vae.latent_norm else ""

    def __call__(self, items: Sequence[ImportItem]) -> Produced:
        """Rows of all tables; the row in `latents` has the status of the line."""
        rows: dict[str, list[Row]] = {
            name: [] for name in ("sources", "videos", "clips", "captions", "text_features", "latents")
        }
        for item in items:
            columns: Row = {"latent_id": item["latent_id"], "clip_id": item["clip_id"], "vae_hash": self.vae.hash}
            try:
                latent, text = self._latent(item["latent"]), self._text(item["text_fea"])
                video = self._video(item, latent)
            except UnusableFile as err:
                rows["latents"].append(bad_row(item, err, bucket="", **columns))
                continue
            rows["latents"].append(self._latent_row(item, latent, columns))
            rows["text_features"].append(self._text_row(item, *text))
            caption_id = content_id(item["clip_id"], "human", CUT_METHOD)
            caption = {"caption_id": caption_id, "clip_id": item["clip_id"], "kind": "human", "text": item["text"]}
            rows["captions"].append(ok_row({}, **caption, prompt_hash=CUT_METHOD))
            for table, row in video.items():
                rows[table].append(ok_row({}, **row))
        # Lines may have the same text or video: one row per id.
        by_id = {table: {row[ID_COLUMNS[table]]: row for row in of_table} for table, of_table in rows.items()}
        return Produced({table: list(unique.values()) for table, unique in by_id.items()})

    def _latent(self, uri: str) -> "Tensor":
        """Latent of a file, (c t h w)."""
        content = _load(uri)
        shape = getattr(content, "shape", None)
        if shape is None or len(shape) != 5 or shape[0] != 1 or not content.is_floating_point():
            raise UnusableFile("bad_latent", f"{uri} holds {_described(content)}, expected floats (1 c t h w)")
        if shape[1] != self.channels:
            raise UnusableFile(
                "other_vae", f"{uri} has {shape[1]} channels and the VAE {self.vae.uri} makes {self.channels}"
            )
        if not content.isfinite().all():
            raise UnusableFile("not_finite", f"{uri} has NaN or Inf")
        return content[0]

    def _text(self, uri: str) -> "tuple[Tensor, Tensor]":
        """Text features of a file: (embeds (n d) of the valid tokens, pooled (p))."""
        content = _load(uri)
        try:
            embeds, mask, pooled = (
                content[name][0] for name in ("prompt_embed", "prompt_attention_mask", "pooled_prompt_embed")
            )
            embeds = embeds[mask.bool()]
        except (KeyError, TypeError, IndexError, AttributeError) as err:
            raise UnusableFile(
                "bad_text",
                f"{uri} holds {_described(content)}, expected prompt_embed, prompt_attention_mask and pooled",
            ) from err
        if embeds.ndim != 2 or pooled.ndim != 1:
            shapes = tuple(content["prompt_embed"].shape), tuple(content["pooled_prompt_embed"].shape)
            raise UnusableFile(
                "bad_text", f"{uri} holds tensors {shapes[0]} and {shapes[1]}, expected (1 n d) and (1 p)"
            )
        widths = embeds.shape[1], pooled.shape[0]
        if widths != self.dims:
            raise UnusableFile(
                "other_encoder",
                f"{uri} has {widths[0]} values per token and {widths[1]} pooled, and the text encoder "
                f"{self.encoder.uri} gives {self.dims[0]} and {self.dims[1]}: set the encoder that made the file",
            )
        if not len(embeds) or not (embeds.isfinite().all() and pooled.isfinite().all()):
            raise UnusableFile("bad_text", f"{uri} has no valid token, or NaN or Inf")
        return embeds, pooled

    def _video(self, item: ImportItem, latent: "Tensor") -> dict[str, Row]:
        """Rows of the video, of its source, and of its one clip, by table."""
        try:
            video_id, size_bytes = hash_file(item["video"])
        except OSError as err:
            raise UnusableFile("missing", f"{item['video']} cannot be read: {err.strerror or err}") from err
        _, t, h, w = latent.shape
        num_frames, (num, den) = TIME_FACTOR * (t - 1) + 1, self.config.fps.as_integer_ratio()
        file: Row = {"video_id": video_id, "uri": item["video"], "size_bytes": size_bytes}
        shape = {"height": SPACE_FACTOR * h, "width": SPACE_FACTOR * w, "fps_num": num, "fps_den": den}
        span = {"start_frame": 0, "end_frame": num_frames, "start_s": 0.0, "end_s": num_frames / self.config.fps}
        clip = {"clip_id": item["clip_id"], "num_frames": num_frames, "shot": 0, "cut_method": CUT_METHOD}
        origin = {"path": item["path"], "source": PurePosixPath(self.config.annotation).stem}
        return {
            "sources": {"source_id": content_id(item["video"], size_bytes)} | file | origin,
            "videos": file | origin | shape | {"num_frames": num_frames, "num_clips": 1, "clip_ids": [item["clip_id"]]},
            "clips": file | shape | span | clip,
        }

    def _latent_row(self, item: ImportItem, latent: "Tensor", columns: Row) -> Row:
        from tasks.tables.blobs import tensor_bytes

        _, t, h, w = latent.shape
        data = tensor_bytes(latent, self.config.dtype)
        num_frames = TIME_FACTOR * (t - 1) + 1
        bucket = f"{SPACE_FACTOR * h}x{SPACE_FACTOR * w}x{num_frames}@{self.config.fps:g}"
        stored = {"latent": data, "crc32": crc32(data), "shape": list(latent.shape), "dtype": self.config.dtype}
        return ok_row(item, **columns, **stored, bucket=bucket, parts="mean", latent_norm=self.latent_norm)

    def _text_row(self, item: ImportItem, embeds: "Tensor", pooled: "Tensor") -> Row:
        from tasks.tables.blobs import tensor_bytes

        dtype = self.config.dtype
        data = tensor_bytes(embeds, dtype), tensor_bytes(pooled, dtype)
        return ok_row(
            {},
            text_feature_id=text_feature_id(item["text"], self.encoder.hash, dtype),
            text=item["text"],
            encoder_hash=self.encoder.hash,
            shape=list(embeds.shape),
            dtype=dtype,
            embeds=data[0],
            pooled=data[1],
            crc32=crc32(*data),
        )


def _load(uri: str) -> Any:
    """Content of a file of `torch.save`: tensors and containers of tensors. Code in the file is never run."""
    import pickle

    import torch

    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)  # pyright: ignore[reportArgumentType]
    except FileNotFoundError as err:
        raise UnusableFile("missing", f"{uri} is missing") from err
    except pickle.UnpicklingError as err:  # torch's message advises to run the code in the file
        raise UnusableFile("unreadable", f"{uri} is not a file of tensors: it is damaged, or contains code") from err
    except Exception as err:  # unpickling of a damaged file can raise any exception
        reason = (str(err).splitlines() or [""])[0]
        raise UnusableFile("unreadable", f"{uri} is not a file of tensors: {type(err).__name__}: {reason}") from err


def _described(content: object) -> str:
    shape = getattr(content, "shape", None)
    return f"a tensor {tuple(shape)}" if shape is not None else f"a {type(content).__name__}"


def select_imported(run: Run, val_fraction: float) -> SelectResult:
    """Select all clips that have a latent in the bucket of their size. Every imported clip has one.

    Raises:
        StepError: the root has no latents.
    """
    rows = read_table(run.root, "latents", ["bucket"], where=pc.field("status") == "ok")
    buckets = tuple(sorted(set(rows["bucket"].to_pylist())))
    if not buckets:
        raise StepError(f"no line could be used: `pyramid manifest show {run.root} latents` shows the reasons")
    return select(run, SelectConfig(buckets=buckets, val_fraction=val_fraction))


# ---- export ----------------------------------------------------------------------------------------------------------


def export_official(run: Run, folder: str, selection: str = "", vae: str = "", encoder: str = "") -> StepResult:
    """Write latents, text features and one annotation per split into a folder. Existing files are not written again.

    Raises:
        StepError: there is no VAE, no text encoder, or no clip with both a latent and a caption.
    """
    model = find_model(run, "vae", vae)
    source = pair_source(run, selection, (), model, find_encoder(run, encoder).hash)
    folder, num_bad = storage.absolute(folder), 0
    splits = {split: PairReader(source, find_pairs(source, split)) for split in SPLITS}
    total, done = sum(len(reader.pairs) for reader in splits.values()), 0
    if not total:
        raise StepError(f"no selected clip in {run.root} has both latents and text features: run `pyramid extract`")
    for split, reader in splits.items():
        lines = []
        for position, pair in enumerate(reader.pairs):
            latent, text = f"latents/{pair.latent_id}.pt", f"text/{pair.text_feature_id}.pt"
            exists = all(storage.exists(storage.join(folder, name)) for name in (latent, text))
            if exists or _write_pair(reader, position, storage.join(folder, latent), storage.join(folder, text)):
                lines.append({"video": pair.uri, "text": pair.text, "latent": latent, "text_fea": text})
            done += 1
            report_progress("export", done, total)
        if lines:
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            storage.write_bytes(storage.join(folder, f"{split}.jsonl"), content.encode())
        num_bad += len(reader.bad)
    note = f"{total - num_bad} clips in {folder}" + (f"; {num_bad} damaged clips left out" if num_bad else "")
    return StepResult(step="export", num_in=total, num_ok=total - num_bad, num_failed=num_bad, note=note)


def _write_pair(reader: PairReader, position: int, latent_uri: str, text_uri: str) -> bool:
    """Write the two files of a pair; returns False if one of its blobs is damaged."""
    import torch
    from torch.nn import functional as F

    sample = reader.read(position)
    if sample is None:
        return False
    latent, (embeds, pooled) = sample
    mask = (torch.arange(MAX_TOKENS) < len(embeds)).long()[None]
    text = {
        "prompt_embed": F.pad(embeds, (0, 0, 0, MAX_TOKENS - len(embeds)))[None].bfloat16(),
        "prompt_attention_mask": mask,
        "pooled_prompt_embed": pooled[None].bfloat16(),
    }
    for uri, content in ((latent_uri, latent[None].bfloat16()), (text_uri, text)):
        with storage.writing(uri) as path:
            torch.save(content, path)
    return True
