"""Clips that start with a given image, or with the end of a given video."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Generator, Tensor

from pyramid_model.config import LatentNorm, PyramidConfig, VAEConfig
from pyramid_model.generate.batch import ClipBatch
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.pixels import to_unit_range
from pyramid_model.vae.tiling import Tile
from pyramid_model.video.footage import Footage
from pyramid_model.video.frame import Frame
from pyramid_model.video.video import VideoError


def read_image(path: str | Path) -> Image.Image:
    """An image file as viewers show it: turned upright, RGB, transparent parts on black.

    Raises:
        ValueError: the file is missing or is not an image.
    """
    try:
        with Image.open(path) as image:
            return upright(image)
    except FileNotFoundError as err:
        raise ValueError(f"there is no image {str(path)!r}: check the path") from err
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as err:
        raise ValueError(f"{str(path)!r} cannot be read as an image: {err}; give a PNG, JPEG or WebP file") from err


def upright(image: Image.Image) -> Image.Image:
    """An image as viewers show it: turned by its EXIF orientation, RGB, transparent parts on black."""
    return as_rgb(ImageOps.exif_transpose(image))


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB; transparent parts become black."""
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow would clip values above 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def fit_image(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The image resized to cover height x width px, then cut to it around the centre; uint8 (h w 3)."""
    return np.array(ImageOps.fit(as_rgb(image), (width, height), Image.Resampling.LANCZOS))


def given_frames(
    batch: ClipBatch, vae: VAEConfig, pyramid: PyramidConfig, autoregressive: bool
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Frames that the clips of a batch start with, uint8 (t h w 3), or None; and notes for the user.

    Raises:
        ValueError: as `check_given`.
    """
    request, image, video = batch.request, batch.image, batch.video
    check_given(request, image, video, vae, pyramid, autoregressive)
    if image is None and video is None:
        return None, ()
    most = most_given(request, vae, pyramid)
    size = (request.height, request.width)
    if image is not None:
        opened = upright(image) if isinstance(image, Image.Image) else read_image(image)
        return fit_image(opened, *size)[None], ()
    if isinstance(video, np.ndarray):
        total = len(video)
        frames = np.stack([fit_image(Image.fromarray(frame), *size) for frame in video[-most:]])
    else:
        assert video is not None
        frames, total = read_ending(video, most, request.fps, *size)
    frames, note = whole_units(frames, total, most, vae, pyramid)
    return frames, (note,) if note else ()


def check_given(
    request: GenerationRequest,
    image: str | Path | Image.Image | None,
    video: str | Path | np.ndarray | None,
    vae: VAEConfig,
    pyramid: PyramidConfig,
    autoregressive: bool = True,
) -> None:
    """Raise ValueError unless the image or video can start the clip; decodes only the first frame of a video file.

    Raises:
        ValueError: both are given, a file cannot be read, the clip is too short for given and new frames, or
            the DiT makes all frames at once.
    """
    if image is None and video is None:
        return
    if image is not None and video is not None:
        raise ValueError("both an image and a video are given: a clip starts with one of them")
    if not autoregressive:
        raise ValueError("this DiT was trained to make all frames at once: no image or video can start its clips")
    most_given(request, vae, pyramid)
    if isinstance(video, np.ndarray) and (video.dtype != np.uint8 or video.shape[3:] != (3,) or not len(video)):
        raise ValueError(f"the given video is {video.dtype} {video.shape}: give uint8 frames (t h w 3), at least one")
    if isinstance(image, np.ndarray):
        raise ValueError("the given image is an array: give a path, or a PIL image (`Image.fromarray`)")
    if isinstance(image, str | Path):
        read_image(image)
    if isinstance(video, str | Path):
        try:
            Footage(str(video)).container.close()  # opening decodes the first frame
        except VideoError as err:
            raise ValueError(f"video {str(video)!r} cannot be extended: {err}") from err


def read_ending(path: str | Path, num_frames: int, fps: int, height: int, width: int) -> tuple[np.ndarray, int]:
    """The last frames of a video, taken at `fps`, each fitted like an image; fewer if the video has fewer.

    Returns:
        uint8 (t h w 3), and the number of frames of the whole video at that rate.

    Raises:
        ValueError: the file is missing, or no frame of it can be decoded.
    """
    last_frames: deque[Frame] = deque(maxlen=num_frames)  # as decoded; resized after the last frame is read
    num_taken, due = 0, Fraction(0)  # due: seconds after the first frame at which the next frame is taken
    try:
        with Footage(str(path)) as footage:
            half_step = 1 / footage.probe.fps / 2 if footage.probe.fps else Fraction(0)
            size, current, current_s = (footage.probe.width, footage.probe.height), None, Fraction(0)
            for frame in chain(footage.frames(), (None,)):
                if frame is not None and current is not None:
                    current_s += (frame.pts - current.pts) * footage.probe.time_base
                end_s = current_s - half_step if frame else current_s + half_step
                while current is not None and due < end_s:  # repeated if the video has a lower frame rate
                    last_frames.append(current)
                    num_taken, due = num_taken + 1, due + Fraction(1, fps)
                current = frame
            images: list[np.ndarray] = []
            for frame, before in zip(last_frames, (None, *last_frames), strict=False):
                images.append(images[-1] if frame is before else _fitted(frame, size, height, width))
    except VideoError as err:
        raise ValueError(f"video {str(path)!r} cannot be extended: {err}") from err
    return np.stack(images), num_taken


def _fitted(frame: Frame, size: tuple[int, int], height: int, width: int) -> np.ndarray:
    """A frame resized and cropped by `fit_image`. size: width and height at which the video is shown."""
    picture = Image.fromarray(frame.rgb())
    if picture.size != size:  # the pixels of the file are not square
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return fit_image(picture, height, width)


def most_given(request: GenerationRequest, vae: VAEConfig, pyramid: PyramidConfig) -> int:
    """Frames of a given video that a clip can start with: whole units, and at most half of the clip.

    Raises:
        ValueError: the clip is too short for given and new frames.
    """
    units = (request.num_latent_frames - 1) // pyramid.frames_per_unit // 2
    if request.num_latent_frames < 1 + pyramid.frames_per_unit:
        raise ValueError(
            f"num_latent_frames {request.num_latent_frames}: a clip that starts with given frames needs at least "
            f"{1 + pyramid.frames_per_unit}. Set request.num_latent_frames."
        )
    return 1 + units * pyramid.frames_per_unit * vae.time_factor


def whole_units(
    frames: np.ndarray, total: int, most: int, vae: VAEConfig, pyramid: PyramidConfig
) -> tuple[np.ndarray, str]:
    """The last frames that form whole units, and a note about omitted frames, empty if none are omitted.

    Args:
        frames: (t h w 3), the last of those that were given.
        total: number of frames given.
        most: as returned by `most_given`.
    """
    per_unit = pyramid.frames_per_unit * vae.time_factor
    count = min(len(frames), most)
    count -= (count - 1) % per_unit
    unit = f"1 + a multiple of {per_unit}"
    left_out = f"of {total} given frames the last {count} start the clip ({unit}, at most {most})"
    return frames[-count:], left_out if count < total else ""


@torch.no_grad()
def encode_given(
    vae: CausalVideoVAE,
    norm: LatentNorm,
    frames: np.ndarray,
    generators: Sequence[Generator],
    pyramid: PyramidConfig,
    window: int | None = None,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Normalised latents of each unit of the given frames, drawn for every sample from its own generator.

    Args:
        vae: encodes them.
        norm: shift and scale of the latents the DiT was trained on; the first frame has its own.
        frames: uint8 (1+8k h w 3), whole units.
        generators: one per sample.
        pyramid: gives the latent frames per unit.
        window, tile: as in `CausalVideoVAE.encode`.

    Returns:
        One tensor (b c t h w) per unit.
    """
    weight = next(vae.parameters())
    pixels = to_unit_range(frames)[None].to(weight.device, weight.dtype)
    posterior = vae.encode(pixels, window, tile)
    latents = norm.normalise(torch.cat([posterior.sample(generator) for generator in generators]))
    later = latents[:, :, 1:].split(pyramid.frames_per_unit, dim=2) if latents.shape[2] > 1 else ()
    return [latents[:, :, :1], *later]
