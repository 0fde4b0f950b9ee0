"""The picture of a video without its black bars: found in a few of its frames, cut out of all of them."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
import av.error
import numpy as np

from pyramid_model.video.borders import Box, picture_box
from pyramid_model.video.footage import MAX_PIXELS, Footage, VideoProbe, turned, yuv420p_image, yuv420p_planes

NUM_SAMPLED = 24  # frames in which the bars must be black
LEAST_SAMPLED = 8  # key frames; with fewer, others are decoded, too
LEAST_SIDE = 16  # px


def find_picture(path: str, max_pixels: int = MAX_PIXELS) -> Box | None:
    """The picture within black bars, in px of the video as it is shown; None without bars.

    Frames spread over all of the video decide, key frames where it has enough of them: what is black in one scene
    only is no bar, and a video whose format changes on the way has none.

    Args:
        path: a local file.
        max_pixels: of one frame, as coded.

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
    across, down = probe.width / upright.shape[1], probe.height / upright.shape[0]  # samples may not be square
    left, top = math.ceil(box.left * across), math.ceil(box.top * down)
    return Box(left, top, int(box.right * across), int(box.bottom * down))


def _brightest(images: Iterable[av.VideoFrame]) -> tuple[int, np.ndarray | None]:
    """(number of frames, highest luma of each pixel, as coded)."""
    count, brightest = 0, None
    for image in images:
        luma = image.to_ndarray(format="gray")
        brightest = luma if brightest is None else np.maximum(brightest, luma)
        count += 1
    return count, brightest


def _key_frames(footage: Footage) -> Iterator[av.VideoFrame]:
    """The key frames before evenly spread times; fewer or none of a file that cannot be sought in."""
    probe, seen = footage.probe, set()
    with contextlib.suppress(av.error.FFmpegError):
        for number in range(NUM_SAMPLED):
            time_s = probe.duration_s * (number + 0.5) / NUM_SAMPLED
            footage.container.seek(probe.start_pts + round(time_s / probe.time_base), stream=footage.stream)
            image = next(footage.container.decode(footage.stream), None)
            if image is not None and image.pts not in seen and not image.is_corrupt:
                seen.add(image.pts)
                yield image


def _spread_frames(footage: Footage) -> Iterator[av.VideoFrame]:
    """Frames spread over a file, decoded from start to end."""
    stride = max(1, (footage.probe.num_frames_header or NUM_SAMPLED**2) // NUM_SAMPLED)
    for frame in footage.frames():
        if frame.index % stride == 0 and not frame.is_corrupt:
            yield frame.image


@dataclass(frozen=True)
class Framing:
    """How the frames of a video become those of its clips: scaled, then cropped."""

    scaled: tuple[int, int]  # (height, width) of the whole frame
    box: Box | None = None  # of the scaled frame, even numbers; None: all of it

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clips."""
        return self.scaled if self.box is None else (self.box.bottom - self.box.top, self.box.right - self.box.left)

    def crop_of(self, video: VideoProbe) -> list[int] | None:
        """left, top, width and height of what is cut out, in px of the video as it is shown; None: all of it."""
        if self.box is None:
            return None
        across, down = video.width / self.scaled[1], video.height / self.scaled[0]
        height, width = self.size
        return [round(self.box.left * across), round(self.box.top * down), round(width * across), round(height * down)]

    def crop(self, image: av.VideoFrame) -> av.VideoFrame:
        """The picture of a scaled frame, yuv420p."""
        if self.box is None:
            return image
        left, top, right, bottom = self.box
        luma, *colors = yuv420p_planes(image)
        planes = [luma[top:bottom, left:right]]
        planes += [color[top // 2 : bottom // 2, left // 2 : right // 2] for color in colors]
        return yuv420p_image(planes, image)


def framing(video: VideoProbe, max_side: int | None, picture: Box | None = None) -> Framing:
    """Frames as shown or only their picture, the longer side at most `max_side` px, all sizes even.

    A picture loses its outermost pixels where they do not come in twos; one too small to be a clip is not cut out.
    """
    left, top, right, bottom = picture or Box(0, 0, video.width, video.height)
    scale = min(1.0, (max_side or 1 << 30) / max(bottom - top, right - left))
    height, width = (max(2, round(side * scale / 2) * 2) for side in (video.height, video.width))
    if picture is None:
        return Framing((height, width))
    across, down = width / video.width, height / video.height
    starts = (math.ceil(left * across / 2) * 2, math.ceil(top * down / 2) * 2)
    ends = (math.floor(right * across / 2) * 2, math.floor(bottom * down / 2) * 2)
    box = Box(*starts, *ends)
    if min(box.right - box.left, box.bottom - box.top) < LEAST_SIDE:
        return framing(video, max_side)
    return Framing((height, width), box)
