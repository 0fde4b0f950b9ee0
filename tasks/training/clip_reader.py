"""Frames of the clips that a VAE is trained on, decoded when a step needs them."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import numpy as np

from pyramid_model.train.buckets import parse_bucket
from pyramid_model.video.video import VideoError, read_clip


class SelectedClip(TypedDict):
    """A clip of a selection. bucket: the size it is decoded at."""

    clip_id: str
    uri: str
    bucket: str
    split: str


class ClipReader:
    """Clips on disk. The clips that were used last stay decoded, so memory does not grow with the number of clips.

    Args:
        clips: to read.
        cache_bytes: most bytes of decoded frames that stay in memory.
        num_threads: clips that are decoded at the same time.

    threads: the pool for callers that read several clips.
    """

    def __init__(self, clips: Sequence[SelectedClip], cache_bytes: float, num_threads: int = 1):
        self.clips, self.cache_bytes = clips, cache_bytes
        self.threads = ThreadPoolExecutor(num_threads, "clips")
        self._damage: dict[int, str] = {}
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(3, 1, h, w) of every clip: excerpts of clips of one height and width can be stacked."""
        buckets = [parse_bucket(clip["bucket"]) for clip in self.clips]
        return [(3, 1, bucket.height, bucket.width) for bucket in buckets]

    @property
    def bad(self) -> list[str]:
        """Clips that could not be read so far, "id: reason"."""
        return [f"{self.clips[position]['clip_id']}: {reason}" for position, reason in sorted(self._damage.items())]

    def read(self, position: int) -> np.ndarray | None:
        """Frames of a clip at the size of its bucket, uint8 (t h w 3); None for a clip that cannot be read."""
        with self._lock:
            if position in self._damage:
                return None
            if position in self._decoded:
                self._decoded.move_to_end(position)
                return self._decoded[position]
        bucket = parse_bucket(self.clips[position]["bucket"])
        size = {"height": bucket.height, "width": bucket.width}
        try:
            frames = read_clip(self.clips[position]["uri"], **size, fps=bucket.fps, num_frames=bucket.num_frames)
        except (VideoError, ValueError) as err:
            self._damage[position] = str(err)
            return None
        self._keep(position, frames)
        return frames

    def _keep(self, position: int, frames: np.ndarray) -> None:
        with self._lock:
            if position not in self._decoded:
                self._decoded[position] = frames
                self._num_bytes += frames.nbytes
            while self._num_bytes > self.cache_bytes:
                self._num_bytes -= self._decoded.popitem(last=False)[1].nbytes
