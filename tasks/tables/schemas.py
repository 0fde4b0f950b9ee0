"""Columns of every table: names, Arrow types and the id column, in one place for readers and writers."""

import pyarrow as pa

# Figures of a clip itself, which may have limits as scores do: name -> what it is, with its unit.
CLIP_FIGURES = {
    "duration_s": "length of the clip, s",
    "fps": "frames a second",
    "height": "height of the picture, px",
    "width": "width of the picture, px",
    "aspect": "width over height",
}
# How the duplicates step compares clips; methods run, and a selection applies them, in this order.
DUPLICATE_METHODS = ("exact", "phash", "semantic")

STRING, INT, FLOAT, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

COMMON: dict[str, pa.DataType] = {
    "status": STRING,  # ok | failed | skipped
    "error_type": STRING,  # short, countable: "truncated", "not_media", …
    "error": STRING,  # the sentence for people
    "attempt": INT,  # 1 for the first try; readers take the highest per id
    "run_id": STRING,
    "step": STRING,
    "step_version": STRING,
    "params_hash": STRING,
    "code_version": STRING,
    "created_at": pa.timestamp("us", tz="UTC"),
    "commit_order": INT,  # version from which the commit started, plus 1: decides which row is newest, see `newest`
}

_OWN: dict[str, dict[str, pa.DataType]] = {
    # A file that ingest found; several may hold the same bytes, hence the same video.
    "sources": {
        "source_id": STRING,  # H(uri, size_bytes, mtime_ns)
        "video_id": STRING,  # H(file bytes); empty when the file could not be read
        "uri": STRING,
        "path": STRING,  # relative to the source folder: matches source.yaml and caption sidecars
        "size_bytes": INT,
        "mtime_ns": INT,
        "source": STRING,
        "license": STRING,
        "card": STRING,  # URI of the source.yaml that describes the file; empty when there is none
        "annotations": STRING,  # JSON: [{"start_s":…, "end_s":…, "text":…, …}] from the list that named the file
        "copy": STRING,  # URI of our own copy under media/sources; empty when the file is read where it lies
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
        "color_transfer": STRING,  # this and the next three: empty where the file does not say
        "color_primaries": STRING,
        "color_matrix": STRING,
        "color_range": STRING,  # limited or full
        "is_hdr": BOOL,
        "has_audio": BOOL,
        "bit_rate": INT,
        "source": STRING,
        "license": STRING,
        "clip_ids": pa.list_(STRING),  # its clips under these settings: a clip may also belong to other settings
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
        "crc32": INT,  # of the file
        "cut_method": STRING,
        "crop": pa.list_(pa.int32()),  # left top width height of the picture in px of the video; null: all of it
    },
    "scores": {"score_id": STRING, "clip_id": STRING, "scorer": STRING, "value": FLOAT, "details": STRING},
    # What a vision model sees in a clip, for scores, duplicates and search: computed once, used by many.
    "embeddings": {
        "embedding_id": STRING,  # H(clip_id, model_hash, sampling)
        "clip_id": STRING,
        "model": STRING,
        "model_hash": STRING,
        "sampling": STRING,  # JSON: which frames, at which size, in which precision
        "shape": pa.list_(pa.int32()),  # n d: one row a sampled frame, each of unit length
        "dtype": STRING,
        "embedding": pa.binary(),
        "crc32": INT,
    },
    "duplicates": {
        "duplicate_id": STRING,  # H(clip_id, method, clips)
        "clip_id": STRING,
        "method": STRING,  # one of DUPLICATE_METHODS
        "group_id": STRING,  # H(method, clips of the group); empty when the clip has left its group
        "keeper": BOOL,
        "rank": INT,  # 0 is the keeper; if other rules drop it, the next one is kept
        "num_clips": INT,  # in the group
        "similarity": FLOAT,  # 0..1, to the clip of the group that is most like it
        "clips": STRING,  # params_hash of the clips settings whose clips were compared; empty: the newest of each video
    },
    "selections": {
        "selection_id": STRING,
        "clip_id": STRING,
        "keep": BOOL,
        "drop_reasons": pa.list_(STRING),
        "bucket": STRING,  # "<height>x<width>x<frames>@<fps>"
        "split": STRING,  # train | val | test
        "subset": STRING,  # name of the nested set; empty without sets
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
        "settings": STRING,  # JSON: what decided the model's answer: instruction, frames, decoding
        "quality": STRING,  # JSON: num_words, repetition, opening that was taken off, …
        "num_prompt_tokens": INT,
        "num_completion_tokens": INT,
        "cost_usd": FLOAT,
    },
    "latents": {
        "latent_id": STRING,
        "clip_id": STRING,
        "vae_hash": STRING,
        "bucket": STRING,
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
        "crc32": INT,  # of embeds then pooled
    },
    # A trained model; MLflow holds its curves and whether it is champion.
    "models": {
        "model_id": STRING,  # H(training config, data ids): the same training is never done twice
        "kind": STRING,  # vae | dit
        "weights_hash": STRING,
        "uri": STRING,
        "num_steps": INT,
        "config": STRING,  # JSON
        "metrics": STRING,  # JSON: final figures
        "curve": STRING,  # JSON: [{"step":…, "loss":…, …}]
        "mlflow_run_id": STRING,
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
    },
    "generations": {
        "generation_id": STRING,
        "prompt": STRING,
        "prompt_rewritten": STRING,
        "seed": INT,
        "settings": STRING,  # JSON
        "weights_hash": STRING,
        "uri": STRING,
        "timings": STRING,  # JSON
        "peak_memory_bytes": INT,
    },
}

SCHEMAS: dict[str, pa.Schema] = {name: pa.schema(list((own | COMMON).items())) for name, own in _OWN.items()}

ID_COLUMNS: dict[str, str] = {name: next(iter(own)) for name, own in _OWN.items()}

BLOB_COLUMNS: dict[str, tuple[str, ...]] = {
    "embeddings": ("embedding",),
    "latents": ("latent",),
    "text_features": ("embeds", "pooled"),
}
