"""Any image classifier of transformers as a score: the probability that a frame has one of its labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyramid_model.metrics.frame_batches import over_frames


class ImageClassifier:
    """A model folder as `save_pretrained` writes it, with its image processor.

    Raises:
        ValueError: the folder holds no image classifier, weights are missing or of other shapes, or there is no such
            label.
    """

    def __init__(
        self, folder: str | Path, label: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 32
    ):
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.index = label_index(folder, label)
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, info = AutoModelForImageClassification.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
            )
        except Exception as err:  # transformers raises what its parts raise
            raise ValueError(f"{folder} holds no image classifier that transformers can load: {err}") from err
        if absent := sorted(str(name) for name in info["missing_keys"]):
            raise ValueError(f"{folder}: the weights of {len(absent)} layers are missing, {absent[0]} the first")
        self.model: Any = model.to(device).eval()
        self.device, self.dtype, self.batch_size = device, getattr(torch, dtype), batch_size

    def __call__(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Probability of the label for each frame, 0..1, (t,) a clip. clips: uint8 RGB, (t h w c) each."""
        return [found.numpy() for found in over_frames(clips, self._prepare, self._probability, self.batch_size)]

    def _prepare(self, frame: np.ndarray) -> Tensor:
        return self.processor(frame, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]

    def _probability(self, pictures: Tensor) -> Tensor:
        logits = self.model(pictures.to(self.device, self.dtype)).logits.float()
        # Labels that may hold together, and a single one, are a yes or no each; others share one probability.
        apart = logits.shape[-1] == 1 or self.model.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if apart else logits.softmax(-1))[:, self.index]


def label_index(folder: str | Path, label: str) -> int:
    """Which output of the classifier in a folder is called `label` (or has that number); loads no model.

    Raises:
        ValueError: there is no config, or no such label.
    """
    try:
        labels = json.loads((Path(folder) / "config.json").read_text()).get("id2label", {})
    except (OSError, ValueError) as err:
        raise ValueError(f"{folder} has no readable config.json: it is no image classifier ({err})") from err
    found = [int(number) for number, name in labels.items() if label in (name, number)]
    if not found:
        known = ", ".join(repr(name) for name in list(labels.values())[:20])
        raise ValueError(f"the classifier {folder} has no label {label!r}: it has {known or 'no names for its labels'}")
    return found[0]
