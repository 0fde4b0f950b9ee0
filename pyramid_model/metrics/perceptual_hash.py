"""Perceptual hashes of clips: 256 bits per frame, robust to re-encoding, scaling and small crops."""

import hashlib

import numpy as np

HASH_SIZE = 16  # frequencies per side; with the usual 8, two gestures in front of the same wall have equal hashes
INTERVAL_S = 0.25  # between hashed frames, doubled for long clips; at 0.5, copies with a shifted start are missed
MAX_HASHES = 64
MIN_CONTRAST = 6.0  # standard deviation of gray levels below which a frame is flat


def clip_hashes(frames: np.ndarray, fps: float) -> list[str]:
    """Perceptual hashes of frames that are spread evenly over a clip, 64 hex digits each, in order of time.

    Flat frames (black, white, a fade) are omitted: all flat frames have similar hashes, which consist of noise.

    frames: gray, (t h w) uint8; fps: frames per second.

    Source: DCT hash of `imagehash.phash`, row by row from the lowest vertical frequency.
    """
    import imagehash
    from PIL import Image

    sampled = [frames[index] for index in hashed_frames(len(frames), fps)]
    return [str(imagehash.phash(Image.fromarray(frame), HASH_SIZE)) for frame in sampled if frame.std() >= MIN_CONTRAST]


def hashed_frames(num_frames: int, fps: float) -> list[int]:
    """Indices of the frames to hash: the middle frames of equal parts of the clip, at least one."""
    duration_s, interval_s = num_frames / fps, INTERVAL_S
    while duration_s / interval_s > MAX_HASHES:
        interval_s *= 2
    count = max(1, int(duration_s / interval_s))
    return [int((part + 0.5) * num_frames / count) for part in range(count)]


def frames_hash(frames: np.ndarray) -> str:
    """Hash of all pixels of a clip, 32 hex digits: equal only for clips with equal frames. frames: uint8 (t h w)."""
    digest = hashlib.blake2b(np.ascontiguousarray(frames).data, digest_size=16)
    digest.update(repr(frames.shape).encode())
    return digest.hexdigest()
