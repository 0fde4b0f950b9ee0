"""Training data of the DiT: pairs of a clip's latent and its caption's features; also used to evaluate it."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import NULL_TEXT, CaptionsOfKind, Config, Kind, LatentNorm
from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import vae_config
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables.current import captions_by_kind, selected_clips
from tasks.tables.delta import read_table, table_version
from tasks.tables.rows import SelectedClipRow, as_rows
from tasks.training.pair_columns import Pair, Pairs

if TYPE_CHECKING:
    from torch import Tensor

POSTERIOR = "mean,logvar"  # latents stored with their log-variances after the means
TABLES = ("clips", "selections", "captions", "latents", "text_features")


class PairSource(Config):
    """Identifies the pairs: selection, captions, model hashes and table versions."""

    run: Run
    selection: str
    captions: tuple[CaptionsOfKind, ...]
    caption_weights: dict[Kind, float] = Field(default_factory=dict)
    vae_hash: str
    encoder_hash: str
    versions: dict[str, int]
    norm: LatentNorm
    latent_channels: int
    sample_posterior: bool = False  # draw latents, in place of the posterior means


def pair_source(
    run: Run,
    selection: str,
    captions: Sequence[CaptionsOfKind],
    vae: ModelFolder,
    encoder_hash: str,
    caption_weights: Mapping[Kind, float] | None = None,
    sample_posterior: bool = False,
) -> PairSource:
    """Pin the tables as they are now.

    Without `captions`, the captions of kinds with a weight are used; without weights, the newest of each clip.

    Raises:
        StepError: the VAE's folder does not say how its latents are normalised.
    """
    return PairSource(
        run=run,
        selection=selection,
        captions=tuple(captions) or tuple(CaptionsOfKind(kind=kind) for kind in caption_weights or ()),
        caption_weights=dict(caption_weights or {}),
        vae_hash=vae.hash,
        encoder_hash=encoder_hash,
        versions={name: table_version(run.root, name) for name in TABLES},
        norm=latent_norm(vae.uri),
        latent_channels=vae_config(vae.uri).latent_channels,
        sample_posterior=sample_posterior,
    )


def latent_norm(vae_uri: str) -> LatentNorm:
    """Shift and scale of a VAE's latents, from its config.json.

    Raises:
        StepError: config.json has no `latent_norm`.
    """
    norm = vae_config(vae_uri).latent_norm
    if norm is None:
        raise StepError(
            f"{vae_uri}/config.json has no `latent_norm`: VAEs trained here have it; to a released VAE add the "
            "constants of its DiT, MINIFLUX_LATENT_NORM or SD3_LATENT_NORM of pyramid_model.config"
        )
    return norm


def find_pairs(source: PairSource, split: str, views: bool = False) -> Pairs:
    """The pairs of a split, in the order of the selection; clips that lack a latent or a caption are left out.

    views: also a pair for each view of a clip (see `latents.views`), with the clip's caption.
    """
    return Pairs.of(_pair_rows(source, split, views))


def _pair_rows(source: PairSource, split: str, views: bool) -> Iterator[dict[str, Any]]:
    clips = _clips(source, split)
    texts = _texts(source, clips)
    latents = _latent_ids(source)
    features = text_feature_ids(source)
    for clip in clips:
        captions: dict[Kind, str] = {
            kind: text for kind, text in texts.get(clip["clip_id"], {}).items() if text in features
        }
        weights: dict[Kind, float] = {
            kind: source.caption_weights[kind] for kind in captions if source.caption_weights.get(kind)
        }
        if source.caption_weights:
            captions = {kind: captions[kind] for kind in sorted(weights, key=lambda kind: -weights[kind])}
        of_views = latents.get((clip["clip_id"], clip["bucket"]), {})
        if not captions or 0 not in of_views:
            continue
        preferred = next(iter(captions.values()))
        choices = [{"text_feature_id": features[captions[kind]], "weight": weights[kind]} for kind in weights]
        of_clip = {name: clip[name] for name in ("clip_id", "uri", "bucket")}
        of_text = {"text": preferred, "text_feature_id": features[preferred], "choices": choices}
        for view in sorted(of_views) if views else [0]:
            yield {**of_clip, "latent_id": of_views[view], **of_text}


def _texts(source: PairSource, clips: Sequence[SelectedClipRow]) -> dict[str, dict[Kind, str]]:
    """Captions by clip id and kind."""
    ids = [clip["clip_id"] for clip in clips]
    return captions_by_kind(source.run.root, ids, source.captions, source.versions["captions"])


def _clips(source: PairSource, split: str) -> list[SelectedClipRow]:
    clips = selected_clips(source.run.root, source.selection, split, ("clip_id", "uri"), source.versions)
    return as_rows(clips, SelectedClipRow)


def explain_no_pairs(source: PairSource, split: str) -> str:
    """Error message: why a split gives no pairs, and which step fixes it."""
    clips = _clips(source, split)
    if not clips:
        return f"no clip is selected for the split {split!r}: loosen the select step, or pin a split in source.yaml"
    if not _texts(source, clips):
        return f"none of the {len(clips)} clips of the split {split!r} has a caption: see the captions step"
    if not any(key in _latent_ids(source) for key in ((clip["clip_id"], clip["bucket"]) for clip in clips)):
        kind = f" with latents.parts {POSTERIOR}" if source.sample_posterior else ""
        return f"no latents by VAE {source.vae_hash[:8]} for the split {split!r}: run the latents step{kind} for it"
    return f"no text features by encoder {source.encoder_hash[:8]} for the split {split!r}: run the text_features step"


def _latent_ids(source: PairSource) -> dict[tuple[str, str], dict[int, str]]:
    """Latent id by (clip id, bucket) and view.

    Of several: means alone unless log-variances are needed, then the widest type.
    """
    rows = read_table(
        source.run.root,
        "latents",
        ["latent_id", "clip_id", "bucket", "view", "dtype", "parts"],
        source.versions["latents"],
        (pc.field("status") == "ok") & (pc.field("vae_hash") == source.vae_hash),
    ).to_pylist()
    if source.sample_posterior:
        rows = [row for row in rows if row["parts"] == POSTERIOR]
    # Later rows replace earlier ones: bfloat16 sorts before float32.
    rows.sort(key=lambda row: (row["parts"] != POSTERIOR, row["dtype"], row["latent_id"]))
    ids: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        ids.setdefault((row["clip_id"], row["bucket"]), {})[row["view"] or 0] = row["latent_id"]
    return ids


def text_feature_ids(source: PairSource) -> dict[str, str]:
    """Feature id by text; if there are several types, the widest."""
    rows = read_table(
        source.run.root,
        "text_features",
        ["text_feature_id", "text", "dtype"],
        source.versions["text_features"],
        (pc.field("status") == "ok") & (pc.field("encoder_hash") == source.encoder_hash),
    ).sort_by([("dtype", "ascending"), ("text_feature_id", "ascending")])
    return {row["text"]: row["text_feature_id"] for row in rows.to_pylist()}


def sources_of(source: PairSource, pairs: Pairs) -> list[str]:
    """Name of the source that the clip of each pair comes from."""
    of_clips = pc.field("clip_id").isin(pairs.column("clip_id"))
    names = ["clip_id", "video_id"]
    clips = read_table(source.run.root, "clips", names, source.versions["clips"], of_clips).to_pylist()
    videos = read_table(source.run.root, "videos", ["video_id", "source"]).to_pylist()
    by_video = {row["video_id"]: row["source"] for row in videos}
    by_clip = {row["clip_id"]: by_video[row["video_id"]] for row in clips}
    return [by_clip[clip_id] for clip_id in pairs.column("clip_id").to_pylist()]


class PairReader:
    """Pairs on disk, each read on request, so that memory grows by about 1 kB a clip only.

    pairs: pairs that have rows in both tables. shapes: (c t h w) of the latent of each. bad: pairs that could not be
    read so far, "clip …: reason".
    """

    def __init__(self, source: PairSource, pairs: Sequence[Pair]):
        from tasks.tables.blob_reader import BlobReader

        def reader(table: str, ids: pa.ChunkedArray) -> BlobReader:
            return BlobReader(source.run.root, table, source.versions[table], ids)

        pairs = pairs if isinstance(pairs, Pairs) else Pairs.of(pairs)
        self._channels = source.latent_channels * (2 if source.sample_posterior else 1)
        self._latents = reader("latents", pairs.column("latent_id"))
        self._texts = reader("text_features", pairs.text_ids)
        self.pairs = pairs.with_data(self._latents.ids, self._texts.ids)
        stored = self._latents.shapes(self.pairs.column("latent_id"))
        read = {shape: (self._channels, *shape[1:]) for shape in set(stored)}
        self.shapes = [read[shape] for shape in stored]
        pa.default_memory_pool().release_unused()  # columns and indices of all rows were several times as large
        self.bad: list[str] = []
        self._damaged: set[tuple[int, str]] = set()  # (position, id of the row)

    def read(self, position: int, chance: random.Random | None = None) -> "tuple[Tensor, tuple[Tensor, Tensor]] | None":
        """The raw latent (c t h w) and the text (embeds (n d), pooled (p)) of a pair, as stored and read-only.

        The text is that of the preferred caption, or with `chance` of one that is drawn by its weight. With
        `sample_posterior` the latent is (2c t h w): means, then log-variances. None for a pair whose latent or text is
        damaged; `bad` then lists it.
        """
        from tasks.tables.blobs import CorruptBlobError

        pair = self.pairs[position]
        # Drawn also where the latent is damaged, so that the random numbers of a step do not depend on earlier reads.
        text_id = pair.drawn_text_id(chance) if chance else pair.text_feature_id
        blobs = []
        for kind, reader, row_id in (("latent", self._latents, pair.latent_id), ("text", self._texts, text_id)):
            if (position, row_id) in self._damaged:
                return None
            try:
                blobs.append(reader.read(row_id))
            except CorruptBlobError as err:
                self._damaged.add((position, row_id))
                self.bad.append(f"clip {pair.clip_id} ({kind} {row_id}): {err}")
                return None
        (latent,), (embeds, pooled) = blobs
        return latent[: self._channels], (embeds, pooled)


@dataclass
class LoadedPairs:
    """Pairs in memory. latents: normalised (c t h w); texts: (embeds (n d), pooled (p)); bad: pairs left out."""

    pairs: list[Pair] = field(default_factory=list)
    latents: "list[Tensor]" = field(default_factory=list)
    texts: "list[tuple[Tensor, Tensor]]" = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(c, t, h, w) of every latent."""
        return [tuple(latent.shape) for latent in self.latents]


def load_pairs(source: PairSource, pairs: Sequence[Pair]) -> LoadedPairs:
    """A few pairs in memory, checked, with normalised latents. Pairs with a damaged blob are left out."""
    reader, loaded = PairReader(source, pairs), LoadedPairs()
    for position, pair in enumerate(reader.pairs):
        if sample := reader.read(position):
            latent, (embeds, pooled) = sample[0][: source.latent_channels], sample[1]
            loaded.pairs.append(pair)
            loaded.latents.append(source.norm.normalise(latent[None].float())[0])
            loaded.texts.append((embeds.float(), pooled.float()))
    return LoadedPairs(loaded.pairs, loaded.latents, loaded.texts, reader.bad)


def load_null_text(source: PairSource) -> "tuple[Tensor, Tensor]":
    """Features of the empty text.

    Raises:
        StepError: the text_features step has not run for this encoder.
    """
    from tasks.tables.blob_reader import BlobReader

    feature_id = text_feature_ids(source).get(NULL_TEXT)
    if feature_id is None:
        raise StepError(
            f"no features of the empty text by encoder {source.encoder_hash[:8]}: run the text_features step"
        )
    reader = BlobReader(source.run.root, "text_features", source.versions["text_features"], [feature_id])
    embeds, pooled = reader.read(feature_id)
    return embeds.float(), pooled.float()
