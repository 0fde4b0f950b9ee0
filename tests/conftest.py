"""Fixtures for every test folder."""

import os

import pytest

# As `tasks.pipeline.connect` sets it, for tests that import Ray before they come there: Ray looks once, at its import.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


@pytest.fixture(scope="session")
def ray_local():
    """An embedded Ray with two CPUs, started once for the whole session the way the steps start it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tasks.pipeline import connect
    from tasks.step import RayConfig

    connect(RayConfig(num_cpus=2))
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def shoot():
    """Makes small real videos: `shoot(path, [30, 25])` films two shots, each a texture of its own that moves.

    Options: size (height, width), fps, codec, pix_fmt, times (pts of every frame, 1/1000 s), rotation (degrees
    counterclockwise, as metadata), aspect (of samples), transfer (H.273 code), audio_s (of a silent sound track) and
    movflags. Returns the frames, (t h w c) uint8.
    """
    from fractions import Fraction

    import av
    import cv2
    import numpy as np

    def texture(seed: int, height: int, width: int) -> np.ndarray:
        small = np.random.default_rng(seed).integers(20, 236, (6, 8, 3), dtype=np.uint8)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)

    def film(shots, height, width) -> np.ndarray:
        frames = [
            np.roll(texture(seed, height, width), 2 * frame, axis=1)
            for seed, length in enumerate(shots)
            for frame in range(length)
        ]
        return np.stack(frames)

    def shoot(
        path,
        shots=(30,),
        *,
        size=(96, 160),
        fps=24,
        codec="libx264",
        pix_fmt="yuv420p",
        times=None,
        rotation=0,
        aspect=None,
        transfer=0,
        audio_s=0.0,
        movflags="+faststart",
    ):
        frames = film(shots, *size)
        container = av.open(str(path), "w", options={"movflags": movflags} if str(path).endswith("mp4") else {})
        stream = container.add_stream(codec, rate=fps, options={"crf": "12"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if transfer:
            stream.codec_context.color_trc = transfer
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio_s else None
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = times[index] if times else index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * audio_s)), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
            container.mux([*sound.encode(silence), *sound.encode()])
        container.close()
        return frames

    return shoot


@pytest.fixture(scope="session")
def shared_assets():
    """Folder of real test videos beside the repository, where there is one."""
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip(f"the shared test videos are not at {folder}")
    return folder
