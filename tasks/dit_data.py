"""What a DiT is trained and judged on: pairs of a clip's latent and its caption's features."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pyramid_model.config import Config, LatentNorm
from tasks import storage
from tasks.captions import captions_by_kind
from tasks.model_files import ModelFolder
from tasks.pipeline import StepError
from tasks.select import selected_clips
from tasks.step import Run
from tasks.tables import read_table, table_version
from tasks.text_features import NULL_TEXT

if TYPE_CHECKING:
    from torch import Tensor

TABLES = ("clips", "selections", "captions", "latents", "text_features")


class Choice(Config):
    """One of several captions of a clip, and how often it is drawn beside the others."""

    text_feature_id: str
    weight: float


class Pair(Config):
    """One clip for the DiT: ids of its latent and of the features of its (preferred) caption."""

    clip_id: str
    uri: str
    bucket: str
    text: str
    latent_id: str
    text_feature_id: str
    choices: tuple[Choice, ...] = ()  # training draws one of these; empty: always the preferred


class PairSource(Config):
    """Which pairs: everything that decides what a DiT sees, at fixed table versions."""

    run: Run
    selection: str
    captions: str
    caption_weights: dict[str, float] = Field(default_factory=dict)
    vae_hash: str
    encoder_hash: str
    versions: dict[str, int]
    norm: LatentNorm


def pair_source(
    run: Run,
    selection: str,
    captions: str,
    vae: ModelFolder,
    encoder_hash: str,
    caption_weights: Mapping[Any, float] | None = None,
) -> PairSource:
    """Pin the tables as they are now.

    Without `captions`, those of the kinds that have a weight count; without weights, the newest of each clip.

    Raises:
        StepError: the VAE's folder does not say how its latents are normalised.
    """
    return PairSource(
        run=run,
        selection=selection,
        captions=captions or ";".join(caption_weights or ()),
        caption_weights=dict(caption_weights or {}),
        vae_hash=vae.weights_hash,
        encoder_hash=encoder_hash,
        versions={name: table_version(run.root, name) for name in TABLES},
        norm=latent_norm(vae.uri),
    )


def latent_norm(vae_uri: str) -> LatentNorm:
    """Shift and scale of a VAE's latents, from its config.json.

    Raises:
        StepError: there are none in it.
    """
    norm = vae_settings(vae_uri).get("latent_norm")
    if not norm:
        raise StepError(
            f"{vae_uri}/config.json has no `latent_norm`: VAEs trained here have it; to a released VAE add the "
            "constants of its DiT, MINIFLUX_LATENT_NORM or SD3_LATENT_NORM of pyramid_model.config"
        )
    return LatentNorm.model_validate(norm)


def vae_settings(vae_uri: str) -> dict[str, Any]:
    """config.json of a VAE folder."""
    return json.loads(storage.read_bytes(storage.join(vae_uri, "config.json")))


def find_pairs(source: PairSource, split: str) -> list[Pair]:
    """The pairs of a split, in the order of the selection; clips that lack a latent or a caption are left out."""
    clips = _clips(source, split)
    texts = _texts(source, clips)
    latents = _latent_ids(source)
    features = text_feature_ids(source)
    pairs = []
    for clip in clips:
        known = {kind: text for kind, text in texts.get(clip["clip_id"], {}).items() if text in features}
        weights = {kind: source.caption_weights[kind] for kind in known if source.caption_weights.get(kind)}
        if source.caption_weights:
            known = {kind: known[kind] for kind in sorted(weights, key=lambda kind: -weights[kind])}
        latent_id = latents.get((clip["clip_id"], clip["bucket"]))
        if not known or not latent_id:
            continue
        preferred = next(iter(known.values()))
        choices = tuple(Choice(text_feature_id=features[known[kind]], weight=weights[kind]) for kind in weights)
        columns = {name: clip[name] for name in ("clip_id", "uri", "bucket")}
        ids = {"latent_id": latent_id, "text_feature_id": features[preferred]}
        pairs.append(Pair(**columns, **ids, text=preferred, choices=choices))
    return pairs


def _texts(source: PairSource, clips: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Captions by clip id and kind."""
    ids = [clip["clip_id"] for clip in clips]
    return captions_by_kind(source.run, ids, source.captions, source.versions["captions"])


def _clips(source: PairSource, split: str) -> list[dict[str, Any]]:
    return selected_clips(source.run, source.selection, split, ("clip_id", "uri"), source.versions).to_pylist()


def explain_no_pairs(source: PairSource, split: str) -> str:
    """Why a split gives no pairs, and which step mends it."""
    clips = _clips(source, split)
    if not clips:
        return f"no clip is selected for the split {split!r}: loosen the select step, or pin a split in source.yaml"
    if not _texts(source, clips):
        return f"none of the {len(clips)} clips of the split {split!r} has a caption: see the captions step"
    if not any(key in _latent_ids(source) for key in ((clip["clip_id"], clip["bucket"]) for clip in clips)):
        return f"no latents by VAE {source.vae_hash[:8]} for the split {split!r}: run the latents step with that VAE"
    return f"no text features by encoder {source.encoder_hash[:8]} for the split {split!r}: run the text_features step"


def _latent_ids(source: PairSource) -> dict[tuple[str, str], str]:
    """Latent id by (clip id, bucket); of several types the widest."""
    rows = read_table(
        source.run.root,
        "latents",
        ["latent_id", "clip_id", "bucket", "dtype"],
        source.versions["latents"],
        (pc.field("status") == "ok") & (pc.field("vae_hash") == source.vae_hash),
    ).sort_by([("dtype", "ascending"), ("latent_id", "ascending")])  # bfloat16 before float32, which then wins
    return {(row["clip_id"], row["bucket"]): row["latent_id"] for row in rows.to_pylist()}


def text_feature_ids(source: PairSource) -> dict[str, str]:
    """Feature id by text; of several types the widest."""
    rows = read_table(
        source.run.root,
        "text_features",
        ["text_feature_id", "text", "dtype"],
        source.versions["text_features"],
        (pc.field("status") == "ok") & (pc.field("encoder_hash") == source.encoder_hash),
    ).sort_by([("dtype", "ascending"), ("text_feature_id", "ascending")])
    return {row["text"]: row["text_feature_id"] for row in rows.to_pylist()}


@dataclass
class LoadedPairs:
    """Pairs in memory.

    latents: normalised (c t h w); texts: (embeds (n d), pooled (p)) of the preferred caption; choices: of each pair
    the texts that training draws from, with their weights (none: the preferred); bad: what was left out.
    """

    pairs: list[Pair] = field(default_factory=list)
    latents: "list[Tensor]" = field(default_factory=list)
    texts: "list[tuple[Tensor, Tensor]]" = field(default_factory=list)
    choices: "list[list[tuple[tuple[Tensor, Tensor], float]]]" = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def drawn_text(self, position: int, chance: random.Random) -> "tuple[Tensor, Tensor]":
        """Features of one of a pair's captions, by weight."""
        choices = self.choices[position]
        if not choices:
            return self.texts[position]
        return chance.choices([text for text, _ in choices], [weight for _, weight in choices])[0]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(c, t, h, w) of every latent."""
        return [tuple(latent.shape) for latent in self.latents]


def load_pairs(source: PairSource, pairs: Sequence[Pair]) -> LoadedPairs:
    """Read latents and features, check them, and normalise the latents. A pair with a damaged blob is left out."""
    from tasks.blobs import CorruptBlobError, latent_of, text_features_of

    latents = _by_id(source, "latents", "latent_id", {pair.latent_id for pair in pairs})
    wanted = {pair.text_feature_id for pair in pairs} | {one.text_feature_id for pair in pairs for one in pair.choices}
    features = _by_id(source, "text_features", "text_feature_id", wanted)
    loaded = LoadedPairs()
    for pair in pairs:
        try:
            latent = latent_of(latents[pair.latent_id])
            text = text_features_of(features[pair.text_feature_id])
            choices = [(text_features_of(features[one.text_feature_id]), one.weight) for one in pair.choices]
        except CorruptBlobError as err:
            loaded.bad.append(f"clip {pair.clip_id} (latent {pair.latent_id}): {err}")
            continue
        loaded.pairs.append(pair)
        loaded.latents.append(source.norm.normalise(latent[None])[0])
        loaded.texts.append(text)
        loaded.choices.append(choices)
    return loaded


def load_null_text(source: PairSource) -> "tuple[Tensor, Tensor]":
    """Features of the empty text.

    Raises:
        StepError: the text_features step has not run for this encoder.
    """
    from tasks.blobs import text_features_of

    feature_id = text_feature_ids(source).get(NULL_TEXT)
    if feature_id is None:
        raise StepError(
            f"no features of the empty text by encoder {source.encoder_hash[:8]}: run the text_features step"
        )
    return text_features_of(_by_id(source, "text_features", "text_feature_id", {feature_id})[feature_id])


def _by_id(source: PairSource, table: str, id_column: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Whole rows by id. Everything asked for is held in memory."""
    wanted = pc.field(id_column).isin(pa.array(sorted(ids), pa.string()))
    rows = read_table(source.run.root, table, None, source.versions[table], wanted)
    return {row[id_column]: row for row in rows.to_pylist()}
