"""How much of the picture is covered by writing: titles, subtitles, logos with letters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

MIN_LETTERS = 2  # a single one is more often a shape than writing


def covered_area(boxes: Iterable[np.ndarray], height: int, width: int) -> float:
    """Share of a picture that lies in at least one of the boxes, 0..1.

    boxes: (x, y) of the corners of each, px, (4 2).
    """
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillConvexPoly(mask, np.round(box).astype(np.int32), 1)
    return float(mask.mean())


class TextFinder:
    """PP-OCR through rapidocr, on the CPU: boxes that its detector finds and in which its recogniser can read.

    The detector alone will not do: of a picture without any writing it often takes the greater part for one letter.

    Args:
        detector: path of the ONNX weights; the same for `recogniser`.
        min_confidence: what is read with less, 0..1, is no writing.
        num_threads: of each network.
    """

    def __init__(self, detector: str, recogniser: str, min_confidence: float = 0.5, num_threads: int = 1):
        from rapidocr import RapidOCR

        cv2.setNumThreads(num_threads)  # rapidocr resizes and draws with it, on all cores by default
        self.ocr = RapidOCR(
            params={
                "Global.use_cls": False,  # whether writing stands on its head does not matter here
                "Global.log_level": "critical",  # it warns of every frame without text
                "Global.text_score": min_confidence,
                "Det.model_path": detector,
                "Det.limit_type": "max",  # frames as they are: by default small ones are scaled up
                "Det.limit_side_len": 1 << 14,
                "Rec.model_path": recogniser,
                "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Share of each frame that writing covers, (t,) a clip. clips: uint8 RGB, (t h w c) each."""
        return [np.array([self.area(frame) for frame in frames]) for frames in clips]

    def area(self, frame: np.ndarray) -> float:
        """Share of one frame, uint8 RGB (h w c), that writing covers."""
        found: Any = self.ocr(np.ascontiguousarray(frame[..., ::-1]))  # it expects BGR
        read = zip(found.boxes, found.txts, strict=True) if found.txts else ()
        return covered_area((box for box, text in read if len(text.strip()) >= MIN_LETTERS), *frame.shape[:2])
