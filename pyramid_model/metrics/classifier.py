"""Image classifiers of transformers as scorers: the probability that a frame has one of the labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyramid_model.foreign_code import loading_problem
from pyramid_model.metrics.frame_batches import over_frames


class ImageClassifier:
    """An image classifier with its image processor.

    Args:
        folder: as `save_pretrained` writes it.
        label: name or number of the label.
        device: of the model.
        dtype: torch's name of the weights' dtype.
        batch_size: frames at a time.

    Raises:
        ValueError: the folder contains no image classifier, weights are missing or have other shapes, or the label
            does not exist.
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
        except Exception as err:  # transformers raises exceptions of many libraries
            raise ValueError(
                f"{folder} holds no image classifier that transformers can load: {loading_problem(err)}"
            ) from err
        if missing := sorted(str(name) for name in info["missing_keys"]):
            raise ValueError(f"{folder}: the weights of {len(missing)} layers are missing, {missing[0]} the first")
        self.model: Any = model.to(device).eval()
        self.device, self.dtype, self.batch_size = device, getattr(torch, dtype), batch_size

    def __call__(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Probability of the label for each frame, 0..1, one array (t,) per clip. clips: uint8 RGB, (t h w c) each."""
        return [values.numpy() for values in over_frames(clips, self._prepare, self._probability, self.batch_size)]

    def _prepare(self, frame: np.ndarray) -> Tensor:
        return self.processor(frame, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]

    def _probability(self, pictures: Tensor) -> Tensor:
        logits = self.model(pictures.to(self.device, self.dtype)).logits.float()
        # Independent labels, or a single label, have a sigmoid each; mutually exclusive labels have a softmax.
        is_independent = logits.shape[-1] == 1 or self.model.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if is_independent else logits.softmax(-1))[:, self.index]


def label_index(folder: str | Path, label: str) -> int:
    """Index of the classifier's output with a label (name or number). Reads config.json only.

    Raises:
        ValueError: the folder has no config, or the label does not exist.
    """
    try:
        labels = json.loads((Path(folder) / "config.json").read_text()).get("id2label", {})
    except (OSError, ValueError) as err:
        raise ValueError(f"{folder} has no readable config.json: it is not an image classifier ({err})") from err
    indices = [int(number) for number, name in labels.items() if label in (name, number)]
    if not indices:
        names = ", ".join(repr(name) for name in list(labels.values())[:20])
        raise ValueError(f"the classifier {folder} has no label {label!r}: it has {names or 'no names for its labels'}")
    return indices[0]
