"""Share of the picture that is covered by text: titles, subtitles, logos with letters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

MIN_LETTERS = 2  # a single letter is usually a misread shape


def covered_area(boxes: Iterable[np.ndarray], height: int, width: int) -> float:
    """Share of a picture that is covered by at least one box, 0..1.

    boxes: (x, y) of the four corners in px, (4 2) each. height, width: of the picture, px.
    """
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillConvexPoly(mask, np.round(box).astype(np.int32), 1)
    return float(mask.mean())


class TextFinder:
    """PP-OCR by rapidocr, on the CPU: boxes of the text detector in which the recogniser can read text.

    The detector alone is not sufficient: in a picture without text it often reports one box over most of the picture.

    Args:
        detector, recogniser: paths of the ONNX weights.
        min_confidence: of the recogniser, 0..1; text with less is ignored.
        num_threads: of each network.
    """

    def __init__(self, detector: str, recogniser: str, min_confidence: float = 0.5, num_threads: int = 1):
        from rapidocr import RapidOCR

        cv2.setNumThreads(num_threads)  # rapidocr uses OpenCV, which uses all cores by default
        self.ocr = RapidOCR(
            params={
                "Global.use_cls": False,  # the orientation of text is not needed
                "Global.log_level": "critical",  # otherwise it logs a warning for every frame without text
                "Global.text_score": min_confidence,
                "Det.model_path": detector,
                "Det.limit_type": "max",  # do not scale up small frames, which is the default
                "Det.limit_side_len": 1 << 14,
                "Rec.model_path": recogniser,
                "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Share of each frame that text covers, 0..1, one array (t,) per clip. clips: uint8 RGB, (t h w c) each."""
        return [np.array([self.area(frame) for frame in frames]) for frames in clips]

    def area(self, frame: np.ndarray) -> float:
        """Share of one frame, uint8 RGB (h w c), that text covers, 0..1."""
        result: Any = self.ocr(np.ascontiguousarray(frame[..., ::-1]))  # rapidocr expects BGR
        texts = zip(result.boxes, result.txts, strict=True) if result.txts else ()
        return covered_area((box for box, text in texts if len(text.strip()) >= MIN_LETTERS), *frame.shape[:2])
