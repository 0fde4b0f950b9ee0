"""What a clip looks like, in a few hashes of 256 bits that survive re-encoding, scaling and small crops."""

import hashlib

import numpy as np

HASH_SIZE = 16  # frequencies a side; 8, which is common, cannot tell two gestures before the same wall
INTERVAL_S = 0.25  # between hashed frames: at 0.5 copies that start a little later are lost; doubled for long clips
MAX_HASHES = 64
MIN_CONTRAST = 6.0  # standard deviation of gray levels below which a frame shows nothing that a hash could tell


def clip_hashes(frames: np.ndarray, fps: float) -> list[str]:
    """Perceptual hashes of frames that are spread evenly over a clip, 64 hex digits each, in the order of time.

    Flat frames (black, white, a fade) are left out: their hashes are noise and would be those of every other one.

    frames: gray, (t h w) uint8; fps: frames a second.

    Source: DCT hash of `imagehash.phash`, row by row from the lowest vertical frequency.
    """
    import imagehash
    from PIL import Image

    shown = [frames[index] for index in hashed_frames(len(frames), fps)]
    return [str(imagehash.phash(Image.fromarray(frame), HASH_SIZE)) for frame in shown if frame.std() >= MIN_CONTRAST]


def hashed_frames(num_frames: int, fps: float) -> list[int]:
    """Indices of the frames to hash: the middles of equal parts of the clip, one at least."""
    duration_s, interval_s = num_frames / fps, INTERVAL_S
    while duration_s / interval_s > MAX_HASHES:
        interval_s *= 2
    count = max(1, int(duration_s / interval_s))
    return [int((part + 0.5) * num_frames / count) for part in range(count)]


def frames_hash(frames: np.ndarray) -> str:
    """Identity of a clip's pixels, 32 hex digits: equal for two clips only if all their frames are. frames: uint8."""
    digest = hashlib.blake2b(np.ascontiguousarray(frames).data, digest_size=16)
    digest.update(repr(frames.shape).encode())
    return digest.hexdigest()
