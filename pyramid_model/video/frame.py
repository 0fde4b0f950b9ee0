"""A decoded frame of a video file from outside, and its conversion to the displayed picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from pyramid_model.video.probe import VideoProbe


class Scaler:
    """Scales the frames of one file in one thread. Caches a prepared scaler for each size and format."""

    def __init__(self) -> None:
        self._reformatters: dict[tuple[int, int, str], VideoReformatter] = {}

    def scaled(self, image: av.VideoFrame, height: int, width: int, pix_fmt: str, **options: Any) -> av.VideoFrame:
        """The image in that size and format; the image itself if it already has both.

        One thread, because distributing a frame over threads costs more time than scaling it.
        """
        reformatter = self._reformatters.setdefault((height, width, pix_fmt), VideoReformatter())
        return reformatter.reformat(image, width, height, pix_fmt, threads=1, **options)


@dataclass(frozen=True)
class Frame:
    """A decoded frame. Frames are in the order in which the decoder returns them."""

    index: int
    pts: int  # strictly increasing, in the time base of the probe
    is_corrupt: bool
    image: av.VideoFrame  # as coded: not rotated, not corrected for sample aspect ratio
    rotation: int
    is_mirrored: bool
    scaler: Scaler

    def upright(self, height: int, width: int, interpolation: Interpolation = Interpolation.BICUBIC) -> av.VideoFrame:
        """The frame as displayed, as yuv420p of limited range; height and width: of the result, even."""
        coded_size = (width, height) if self.rotation in (90, 270) else (height, width)
        # In yuv420p an unspecified range means limited. Stating it avoids a copy if the size does not change.
        is_unspecified = self.image.format.name == "yuv420p" and self.image.color_range == ColorRange.UNSPECIFIED
        scaled = self.scaler.scaled(
            self.image,
            *coded_size,
            "yuv420p",
            interpolation=interpolation,
            src_color_range=ColorRange.MPEG if is_unspecified else None,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709 if self.image.format.is_rgb else None,
        )
        if not (self.rotation or self.is_mirrored):
            return scaled
        # Plane by plane, which is lossless because the size is even.
        return yuv420p_image([turned(plane, self) for plane in yuv420p_planes(scaled)], scaled)

    def small(self, height: int, width: int) -> np.ndarray:
        """The frame scaled down, not rotated, BGR uint8 (h w c): input of shot detection and of scores."""
        scaled = self.scaler.scaled(self.image, height, width, "bgr24", interpolation=Interpolation.AREA)
        return scaled.to_ndarray()

    def rgb(self) -> np.ndarray:
        """The frame as displayed, but not corrected for sample aspect ratio, RGB uint8 (h w c)."""
        return np.ascontiguousarray(turned(self.image.to_ndarray(format="rgb24"), self))


def turned(picture: np.ndarray, coded: Frame | VideoProbe) -> np.ndarray:
    """Rotate and flip a coded picture (h w …) to the displayed one; coded: the frame or file that it belongs to."""
    return np.rot90(np.flipud(picture) if coded.is_mirrored else picture, -coded.rotation // 90)


def yuv420p_planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Luma (h w) and two chroma planes (h/2 w/2) of a yuv420p frame of even size, uint8."""
    height, width = frame.height, frame.width
    planes = np.split(frame.to_ndarray().reshape(-1), [height * width, height * width * 5 // 4])
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    return [plane.reshape(shape) for plane, shape in zip(planes, shapes, strict=True)]


def yuv420p_image(planes: Sequence[np.ndarray], like: av.VideoFrame) -> av.VideoFrame:
    """Inverse of `yuv420p_planes`; range and color space are copied from `like`."""
    height, width = planes[0].shape
    flat = np.concatenate([plane.reshape(-1) for plane in planes]).astype(np.uint8, copy=False)
    result = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")
    result.color_range, result.colorspace = like.color_range, like.colorspace
    return result
