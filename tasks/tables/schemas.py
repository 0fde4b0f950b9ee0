"""The schema of every table: names, Arrow types and the id column, for readers and writers."""

from typing import Literal, get_args

import pyarrow as pa

# Figures of a clip itself, on which a selection may have limits as on scores: name -> meaning and unit.
CLIP_FIGURES = {
    "duration_s": "length of the clip, s",
    "fps": "frames a second",
    "height": "height of the picture, px",
    "width": "width of the picture, px",
    "aspect": "width over height",
}
# How the duplicates step compares clips; methods run, and a selection applies them, in this order.
DuplicateMethod = Literal["exact", "phash", "semantic"]
DUPLICATE_METHODS: tuple[DuplicateMethod, ...] = get_args(DuplicateMethod)

STRING, INT, FLOAT, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

COMMON: dict[str, pa.DataType] = {
    "status": STRING,  # ok | failed | skipped
    "error_type": STRING,  # short, countable: "truncated", "not_media", …
    "error": STRING,  # message as a sentence
    "attempt": INT,  # 1 for the first try; readers take the newest attempt of each id
    "run_id": STRING,
    "step": STRING,
    "step_version": STRING,
    "params_hash": STRING,
    "code_version": STRING,
    "created_at": pa.timestamp("us", tz="UTC"),
    "commit_order": INT,  # version from which the commit started, plus 1; orders rows, see `newest`
}

_OWN: dict[str, dict[str, pa.DataType]] = {
    # Files of the sources; files with the same bytes have the same video.
    "sources": {
        "source_id": STRING,  # H(uri, size_bytes, mtime_ns)
        "video_id": STRING,  # H(file bytes); empty if the file could not be read
        "uri": STRING,
        "path": STRING,  # relative to the source folder, as in source.yaml and caption sidecars
        "size_bytes": INT,
        "mtime_ns": INT,
        "source": STRING,
        "license": STRING,
        "card": STRING,  # URI of the source.yaml that describes the file; empty: none
        "annotations": STRING,  # JSON: [{"start_s":…, "end_s":…, "text":…, …}] from the list that named the file
        "copy": STRING,  # URI of the copy under media/sources; empty: the file is read at `uri`
    },
    "videos": {
        "video_id": STRING,
        "uri": STRING,
        "path": STRING,
        "size_bytes": INT,
        "container": STRING,
        "codec": STRING,
        "pix_fmt": STRING,
        "width": INT,  # display size: after rotation and sample aspect
        "height": INT,
        "coded_width": INT,
        "coded_height": INT,
        "rotation": INT,
        "fps_num": INT,
        "fps_den": INT,
        "is_vfr": BOOL,
        "num_frames_header": INT,
        "num_frames": INT,  # decoded
        "num_frames_corrupt": INT,
        "num_shots": INT,
        "num_clips": INT,
        "duration_s": FLOAT,
        "start_pts": INT,
        "time_base_num": INT,
        "time_base_den": INT,
        "color_transfer": STRING,  # this and the next three: empty if the file does not have them
        "color_primaries": STRING,
        "color_matrix": STRING,
        "color_range": STRING,  # limited or full
        "is_hdr": BOOL,
        "has_audio": BOOL,
        "bit_rate": INT,
        "source": STRING,
        "license": STRING,
        "clip_ids": pa.list_(STRING),  # its clips with these settings; other settings may share clips
    },
    "clips": {
        "clip_id": STRING,
        "video_id": STRING,
        "shot": INT,  # index of the shot in its video
        "start_frame": INT,  # decoder order, first frame included
        "end_frame": INT,  # first frame after the clip
        "start_pts": INT,
        "end_pts": INT,
        "start_s": FLOAT,  # after the first frame of the video
        "end_s": FLOAT,
        "num_frames": INT,
        "fps_num": INT,
        "fps_den": INT,
        "width": INT,
        "height": INT,
        "uri": STRING,
        "size_bytes": INT,
        "crc32": INT,  # of the media file
        "cut_method": STRING,
        "crop": pa.list_(pa.int32()),  # left top width height of the picture, px of the video; null: not cropped
    },
    "scores": {"score_id": STRING, "clip_id": STRING, "scorer": STRING, "value": FLOAT, "details": STRING},
    # Features of clips by a vision model, for scores, duplicates and search.
    "embeddings": {
        "embedding_id": STRING,  # H(clip_id, model_hash, sampling)
        "clip_id": STRING,
        "model": STRING,
        "model_hash": STRING,
        "sampling": STRING,  # JSON: number and size of frames, and precision
        "shape": pa.list_(pa.int32()),  # n d: one vector of unit length for each sampled frame
        "dtype": STRING,
        "embedding": pa.binary(),
        "crc32": INT,
    },
    "duplicates": {
        "duplicate_id": STRING,  # H(clip_id, method, clips)
        "clip_id": STRING,
        "method": STRING,  # one of DUPLICATE_METHODS
        "group_id": STRING,  # H(method, clips of the group); empty: the clip is no longer in a group
        "keeper": BOOL,
        "rank": INT,  # 0 is the keeper; if another rule drops it, the next rank is kept
        "num_clips": INT,  # in the group
        "similarity": FLOAT,  # 0..1, to the most similar clip of the group
        "clips": STRING,  # params_hash of the clips settings whose clips were compared; empty: the newest of each video
    },
    "selections": {
        "selection_id": STRING,
        "clip_id": STRING,
        "keep": BOOL,
        "drop_reasons": pa.list_(STRING),
        "bucket": STRING,  # "<height>x<width>x<frames>@<fps>"
        "split": STRING,  # train | val | test
        "subset": STRING,  # name of the nested set; empty: no sets
    },
    "captions": {
        "caption_id": STRING,
        "clip_id": STRING,
        "kind": STRING,  # human | short | dense | structured | rewritten
        "text": STRING,
        "json": STRING,
        "language": STRING,
        "model": STRING,
        "model_revision": STRING,
        "prompt_hash": STRING,
        "parent_caption_id": STRING,
        "settings": STRING,  # JSON: instruction, frames and decoding of the model
        "quality": STRING,  # JSON: num_words, repetition, removed opening, …
        "num_prompt_tokens": INT,
        "num_completion_tokens": INT,
        "cost_usd": FLOAT,
    },
    "latents": {
        "latent_id": STRING,
        "clip_id": STRING,
        "vae_hash": STRING,
        "bucket": STRING,
        "view": INT,  # 0: the clip itself; others: see latents.views; null: 0, in rows of older versions and imports
        "shape": pa.list_(pa.int32()),  # c t h w, or 2c t h w with the log-variances behind the means
        "dtype": STRING,
        "parts": STRING,  # mean | mean,logvar
        "latent_norm": STRING,  # JSON: shift and scale of this VAE; not applied
        "latent": pa.binary(),  # raw, unscaled values
        "crc32": INT,
    },
    "text_features": {
        "text_feature_id": STRING,
        "text": STRING,
        "encoder_hash": STRING,
        "shape": pa.list_(pa.int32()),  # n d, valid tokens only
        "dtype": STRING,
        "embeds": pa.binary(),
        "pooled": pa.binary(),  # (p,) of the same dtype
        "crc32": INT,  # of the bytes of embeds followed by pooled
    },
    # Trained models; MLflow has their curves, and says which model is champion.
    "models": {
        "model_id": STRING,  # H(line_id, settings, data_id, parent): the same training never runs twice
        "kind": STRING,  # vae | dit
        "weights_hash": STRING,
        "uri": STRING,
        "line_id": STRING,  # H(model, loss, seed, for a DiT VAE and text encoder): trainings that may continue another
        "parent_id": STRING,  # model_id of the training that was continued; empty: initial weights
        "data_id": STRING,  # H(ids of the training data)
        "first_step": INT,  # steps before this training
        "num_steps": INT,  # of this training
        "config": STRING,  # JSON
        "metrics": STRING,  # JSON: final figures
        "curve": STRING,  # JSON: [{"step":…, "loss":…, …}]
        "mlflow_run_id": STRING,
        "prefect_flow_run": STRING,  # id; empty if trained without Prefect
        "ray_job": STRING,  # submission id; empty if trained without a Ray job
    },
    "evaluations": {
        "evaluation_id": STRING,
        "model_id": STRING,
        "weights_hash": STRING,
        "vae_hash": STRING,
        "metrics": STRING,  # JSON
        "checks": STRING,  # JSON: [{"name":…, "value":…, "limit":…, "passed":…}]
        "passed": BOOL,
        "media": pa.list_(STRING),
        "crc32": pa.list_(INT),  # of each file of media
    },
    "generations": {
        "generation_id": STRING,
        "prompt": STRING,
        "prompt_rewritten": STRING,
        "seed": INT,
        "settings": STRING,  # JSON
        "weights_hash": STRING,
        "uri": STRING,
        "size_bytes": INT,
        "crc32": INT,  # of the media file
        "timings": STRING,  # JSON
        "notes": pa.list_(STRING),  # sentences for the user
        "peak_memory_bytes": INT,
    },
}

SCHEMAS: dict[str, pa.Schema] = {name: pa.schema(list((columns | COMMON).items())) for name, columns in _OWN.items()}

ID_COLUMNS: dict[str, str] = {name: next(iter(columns)) for name, columns in _OWN.items()}

# Columns, besides the id, that are the same in all attempts of an id, since the id is a hash of them.
FIXED_COLUMNS: dict[str, tuple[str, ...]] = {
    "clips": ("video_id",),
    "scores": ("clip_id", "scorer"),
    "embeddings": ("clip_id",),
    "duplicates": ("clip_id", "method"),
    "selections": ("clip_id",),
    "captions": ("clip_id", "kind"),
    "latents": ("clip_id",),
}

BLOB_COLUMNS: dict[str, tuple[str, ...]] = {
    "embeddings": ("embedding",),
    "latents": ("latent",),
    "text_features": ("embeds", "pooled"),
}
