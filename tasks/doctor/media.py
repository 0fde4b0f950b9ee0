"""Codecs that this machine has, and the device on which models run."""

import os
import shutil
import sys
from typing import Any

from tasks.doctor.machine import Check

# (name, encoder of the test clip, decoder, whether the demo needs it)
CODECS = (
    ("h264", "libx264", "h264", True),
    ("vp9", "libvpx-vp9", "vp9", True),
    ("mpeg4", "mpeg4", "mpeg4", True),
    ("hevc", "libx265", "hevc", False),
    ("av1", "libsvtav1", "libdav1d", False),
)
CODEC_FRAMES = 4


def check_codec(name: str, encoder: str, decoder: str, needed: bool) -> Check:
    """Whether a few frames can be encoded and decoded; without the encoder, whether the decoder exists."""
    import av.error
    from av.codec import Codec

    advice = "uv sync --reinstall-package av (the wheels of PyAV carry the codecs)"
    level = "fail" if needed else "warn"
    try:
        Codec(decoder, "r")
    except (ValueError, av.error.FFmpegError):
        return Check(f"codec {name}", level, f"no decoder {decoder}", advice)
    try:
        count = _encode_and_decode(encoder, decoder)
    except (ValueError, av.error.FFmpegError) as err:
        if name == "h264":  # the codec of our clips
            return Check(f"codec {name}", "fail", f"cannot encode with {encoder}: {err}", advice)
        return Check(f"codec {name}", "ok", f"decoder {decoder} is installed (not tried: no {encoder})")
    if count != CODEC_FRAMES:
        return Check(f"codec {name}", level, f"{count} of {CODEC_FRAMES} frames decoded", advice)
    return Check(f"codec {name}", "ok", "decodes; encodes" if name == "h264" else "decodes")


def _encode_and_decode(encoder: str, decoder: str) -> int:
    """Encode CODEC_FRAMES frames; returns the number of frames that are decoded again."""
    from fractions import Fraction

    import av
    import numpy as np

    os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 and x265 print their settings
    writer: Any = av.CodecContext.create(encoder, "w")
    writer.options = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
    writer.width, writer.height, writer.pix_fmt, writer.time_base = 64, 64, "yuv420p", Fraction(1, 24)
    reader: Any = av.CodecContext.create(decoder, "r")
    packets = []
    for index in range(CODEC_FRAMES):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * index, np.uint8), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts = index
        packets += writer.encode(frame)
    packets += writer.encode(None)
    return sum(len(reader.decode(packet)) for packet in [*packets, None])


def check_decord() -> Check:
    """Whether decord can be imported: on Linux it reads batches of our own clips; elsewhere PyAV does."""
    if sys.platform != "linux":
        return Check("decord", "ok", "not used on this system: PyAV reads clips")
    try:
        import decord
    except (ImportError, OSError) as err:
        return Check("decord", "fail", str(err), "uv sync --reinstall-package decord")
    return Check("decord", "ok", str(decord.__version__))


def check_torch() -> Check:
    """Version of torch, and the device on which models run."""
    try:
        import torch
    except (ImportError, OSError) as err:
        return Check("torch", "fail", str(err), "uv sync --reinstall-package torch")
    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Check(
            "device", "ok", f"{version}, " + ", ".join(f"{p.name} {p.total_memory / 1e9:.0f} GB" for p in names)
        )
    if torch.backends.mps.is_available():
        return Check("device", "ok", f"{version}, Apple GPU (MPS)")
    if shutil.which("nvidia-smi"):
        advice = "the driver may be too old for this torch, or the container lacks --gpus all: compare with nvidia-smi"
        return Check("device", "warn", f"{version} finds no GPU although nvidia-smi is installed", advice)
    return Check("device", "ok", f"{version}, CPU only: enough for the demo, not for real models")
