"""Removal of black bars: detected in sampled frames of a video, cropped from all of its frames."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
import av.error
import numpy as np

from pyramid_model.video.borders import Box, picture_box
from pyramid_model.video.footage import MAX_PIXELS, Footage
from pyramid_model.video.frame import turned, yuv420p_image, yuv420p_planes
from pyramid_model.video.probe import VideoProbe

NUM_SAMPLED = 24  # frames in which the bars must be black
LEAST_SAMPLED = 8  # key frames; if there are fewer, other frames are decoded too
LEAST_SIDE = 16  # px; a smaller picture is not cropped


def find_picture(path: str, max_pixels: int = MAX_PIXELS) -> Box | None:
    """Box of the picture within black bars, in px of the displayed video; None without bars.

    Uses frames spread over the whole video, key frames if there are enough. An area that is black in one scene only is
    not a bar, so a video whose format changes has none.

    Args:
        path: a local file.
        max_pixels: largest number of pixels of a coded frame.

    Raises:
        VideoError: the file cannot be decoded.
    """
    with Footage(path, max_pixels) as footage:
        probe = footage.probe
        num_sampled, brightest = _brightest(_key_frames(footage))
    if num_sampled < LEAST_SAMPLED:
        with Footage(path, max_pixels) as footage:
            num_sampled, brightest = _brightest(_spread_frames(footage))
    if brightest is None:
        return None
    upright = turned(brightest, probe)
    box = picture_box(upright[None])
    if box is None:
        return None
    scale_x, scale_y = probe.width / upright.shape[1], probe.height / upright.shape[0]  # sample aspect ratio
    left, top = math.ceil(box.left * scale_x), math.ceil(box.top * scale_y)
    return Box(left, top, int(box.right * scale_x), int(box.bottom * scale_y))


def _brightest(images: Iterable[av.VideoFrame]) -> tuple[int, np.ndarray | None]:
    """(number of frames, highest luma of each pixel (h w) as coded; None without frames)."""
    count, brightest = 0, None
    for image in images:
        luma = image.to_ndarray(format="gray")
        brightest = luma if brightest is None else np.maximum(brightest, luma)
        count += 1
    return count, brightest


def _key_frames(footage: Footage) -> Iterator[av.VideoFrame]:
    """Yield the key frames before evenly spread times, each once; fewer or none if the file is not seekable."""
    probe, returned_pts = footage.probe, set()
    with contextlib.suppress(av.error.FFmpegError):
        for number in range(NUM_SAMPLED):
            time_s = probe.duration_s * (number + 0.5) / NUM_SAMPLED
            footage.container.seek(probe.start_pts + round(time_s / probe.time_base), stream=footage.stream)
            image = next(footage.container.decode(footage.stream), None)
            if image is not None and image.pts not in returned_pts and not image.is_corrupt:
                returned_pts.add(image.pts)
                yield image


def _spread_frames(footage: Footage) -> Iterator[av.VideoFrame]:
    """Yield evenly spread frames of a file, which is decoded from start to end."""
    stride = max(1, (footage.probe.num_frames_header or NUM_SAMPLED**2) // NUM_SAMPLED)
    for frame in footage.frames():
        if frame.index % stride == 0 and not frame.is_corrupt:
            yield frame.image


@dataclass(frozen=True)
class Framing:
    """Conversion from frames of a video to frames of its clips: scale, then crop."""

    scaled: tuple[int, int]  # (height, width) to which the whole frame is scaled, px
    box: Box | None = None  # crop of the scaled frame, even numbers; None: no crop

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clips, px."""
        return self.scaled if self.box is None else (self.box.bottom - self.box.top, self.box.right - self.box.left)

    def crop_of(self, video: VideoProbe) -> list[int] | None:
        """[left, top, width, height] of the crop in px of the displayed video; None: no crop."""
        if self.box is None:
            return None
        scale_x, scale_y = video.width / self.scaled[1], video.height / self.scaled[0]
        height, width = self.size
        left, top = round(self.box.left * scale_x), round(self.box.top * scale_y)
        return [left, top, round(width * scale_x), round(height * scale_y)]

    def crop(self, image: av.VideoFrame) -> av.VideoFrame:
        """Crop a scaled yuv420p frame to the box."""
        if self.box is None:
            return image
        left, top, right, bottom = self.box
        luma, *colors = yuv420p_planes(image)
        planes = [luma[top:bottom, left:right]]
        planes += [color[top // 2 : bottom // 2, left // 2 : right // 2] for color in colors]
        return yuv420p_image(planes, image)


def framing(video: VideoProbe, max_side: int | None, picture: Box | None = None) -> Framing:
    """Framing of a video's clips. All sizes are even; the box of a picture is shrunk to even coordinates.

    Args:
        video: properties of the video.
        max_side: largest longer side of the clips, px; None: no limit.
        picture: crop in px of the displayed video; None, or a picture that is too small: no crop.
    """
    left, top, right, bottom = picture or Box(0, 0, video.width, video.height)
    scale = min(1.0, (max_side or 1 << 30) / max(bottom - top, right - left))
    height, width = (max(2, round(side * scale / 2) * 2) for side in (video.height, video.width))
    if picture is None:
        return Framing((height, width))
    scale_x, scale_y = width / video.width, height / video.height
    starts = (math.ceil(left * scale_x / 2) * 2, math.ceil(top * scale_y / 2) * 2)
    ends = (math.floor(right * scale_x / 2) * 2, math.floor(bottom * scale_y / 2) * 2)
    box = Box(*starts, *ends)
    if min(box.right - box.left, box.bottom - box.top) < LEAST_SIDE:
        return framing(video, max_side)
    return Framing((height, width), box)
