"""A CLIP model of open_clip: features of frames and of texts, and scores computed from them.

Features have unit length, so their dot products are cosines. In this module `clip` means a video clip.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pyramid_model.foreign_code import REFUSED, loading_problem, never_ask
from pyramid_model.metrics.frame_batches import over_frames

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class OpenCLIP:
    """A CLIP model.

    Args:
        folder: with `open_clip_config.json` and the weights, as open_clip writes them.
        device: of the model.
        dtype: torch's name of the weights' dtype.
        batch_size: frames or texts at a time.
        with_text: also load the tokenizer, for `embed_texts`; a Hugging Face tokenizer must be in the folder.

    Raises:
        ValueError: a file is missing, or the weights do not fit the config.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
        with_text: bool = False,
    ):
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        name = f"local-dir:{folder}"
        precision = PRECISIONS[dtype]
        never_ask()
        try:
            _check_tokenizer_arguments(folder)
            self.model: Any = open_clip.create_model(name, precision=precision, device=device, require_pretrained=True)
            self.tokenize: Any = open_clip.get_tokenizer(name) if with_text else None
        except Exception as err:  # open_clip raises exceptions of many libraries
            raise ValueError(f"{folder} holds no CLIP model that open_clip can load: {loading_problem(err)}") from err
        self.model.eval()
        settings = open_clip.get_model_preprocess_cfg(self.model)
        self.preprocess: Any = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        self.device, self.dtype, self.batch_size = device, getattr(torch, dtype), batch_size

    def embed_frames(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """Features of every frame, one tensor (t d) float32 per clip. clips: uint8 RGB, (t h w c) each."""
        return over_frames(clips, self._prepare, self._embed, self.batch_size)

    def _prepare(self, frame: np.ndarray) -> Tensor:
        return self.preprocess(Image.fromarray(frame))

    def _embed(self, pictures: Tensor) -> Tensor:
        features = self.model.encode_image(pictures.to(self.device, self.dtype))
        return F.normalize(features.float(), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, (n d) float32; a text longer than the model's context is truncated."""
        tokens = self.tokenize(list(texts))
        batches = [self.model.encode_text(part.to(self.device)) for part in tokens.split(self.batch_size)]
        return F.normalize(torch.cat(batches).float(), dim=-1).cpu()

    @property
    def logit_scale(self) -> float:
        """Factor by which the model multiplies a cosine to get a logit."""
        return float(self.model.logit_scale.detach().exp())


def _check_tokenizer_arguments(folder: str | Path) -> None:
    """Raise ValueError if the config would make open_clip run code of the folder: it passes them to transformers."""
    config = json.loads((Path(folder) / "open_clip_config.json").read_text())
    arguments = config.get("model_cfg", {}).get("text_cfg", {}).get("tokenizer_kwargs") or {}
    if arguments.get("trust_remote_code"):
        raise ValueError(REFUSED)


def consistency(features: Tensor) -> Tensor:
    """Cosine of each sampled frame with the next one, (t-1,); for a single frame (1,) with the value 1.

    features: unit length, (t d). 1 means a still picture; a cut gives a low value.
    """
    if len(features) < 2:
        return torch.ones(1)
    return (features[1:] * features[:-1]).sum(-1)


def text_match(features: Tensor, text: Tensor) -> float:
    """Cosine of the mean frame with a text, -1..1. features: unit length, (t d); text: unit length, (d)."""
    return float(F.normalize(features.mean(0), dim=0) @ text)


def zero_shot(features: Tensor, prompts: Tensor, against: Tensor, logit_scale: float) -> Tensor:
    """Probability that each frame matches `prompts` rather than `against`, 0..1, (t,).

    Args:
        features: of frames, unit length, (t d).
        prompts: features of the texts of the first class, unit length, (n d); their mean represents the class.
        against: features of the texts of the other class, unit length, (m d).
        logit_scale: of the model.

    Source: Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020, section 3.1.4.
    """
    classes = torch.stack([F.normalize(texts.mean(0), dim=0) for texts in (prompts, against)])
    return (logit_scale * features @ classes.T).softmax(-1)[:, 0]
