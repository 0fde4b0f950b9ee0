"""Decoding of latents to frames: after sampling, or unit by unit while later units are sampled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pyramid_model.config import LatentNorm
from pyramid_model.vae.autoencoder import CausalVideoVAE

Part = Any  # some frames of a clip, in the caller's format
Convert = Callable[[Tensor], Part]  # (3 t h w), nominally in [-1, 1], on the VAE's device -> Part
Consume = Callable[[Iterator[Part]], Any]  # all parts of a clip, in order -> the caller's result for the clip


def denormalise_unit(norm: LatentNorm, unit: Tensor, starts_clip: bool) -> Tensor:
    """Undo the normalisation of a unit's latents, for the VAE decoder; (b c t h w)."""
    if starts_clip:
        return norm.denormalise(unit)
    return norm.denormalise(torch.cat([unit[:, :, :1], unit], dim=2))[:, :, 1:]


def in_windows(units: Iterable[Tensor], window: int) -> Iterator[Tensor]:
    """Units of a clip regrouped as `CausalVideoVAE.decode` groups latent frames: `window` each, then the rest."""
    pending, count = [], 0
    for unit in units:
        pending.append(unit)
        count += unit.shape[2]
        while count >= window:
            joined = torch.cat(pending, dim=2)
            yield joined[:, :, :window]
            pending, count = [joined[:, :, window:]], count - window
    if count:
        yield torch.cat(pending, dim=2)


class Abandoned(Exception):
    """Raised in decoding threads when sampling failed and no more units will arrive."""


class BackgroundDecoding:
    """Decodes the clips of a batch, each in its own thread, while their later units are sampled.

    `consume` gets frames as soon as they are decoded. A video file is therefore written during decoding, and memory
    does not grow. Only one clip is decoded at a time. On a GPU, decoding and sampling use separate streams.

    Leaving the block with an error abandons the clips; an error in a thread is raised by the next `put` or `results`.
    """

    def __init__(self, vae: CausalVideoVAE, window: int, convert: Convert, consumers: list[Consume]):
        self.vae, self.window, self.convert = vae, window, convert
        self.device = next(vae.parameters()).device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.one_at_a_time = threading.Lock()
        self.num_threads = torch.get_num_threads()
        self.units: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in consumers]
        self.collected: list[Any] = [None] * len(consumers)
        self.error: BaseException | None = None
        self.threads = [
            threading.Thread(target=self._run, args=(clip, consume), daemon=True)
            for clip, consume in enumerate(consumers)
        ]

    def __enter__(self) -> BackgroundDecoding:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self._finish(Abandoned() if err else None)

    def put(self, unit: Tensor) -> None:
        """Hand over the next unit of every clip, (b c t h w), not normalised."""
        if self.error:
            raise self.error
        ready = torch.cuda.current_stream(self.device).record_event() if self.stream else None
        for units, clip in zip(self.units, unit.split(1), strict=True):
            units.put((clip, ready))

    def results(self) -> list[Any]:
        """Wait for the last frames; return the result of `consume` for each clip."""
        self._finish(None)
        if self.error:
            raise self.error
        return self.collected

    def _finish(self, end: Abandoned | None) -> None:
        for units in self.units:
            units.put((end, None))
        for thread in self.threads:
            thread.join()

    def _run(self, clip: int, consume: Consume) -> None:
        try:
            torch.set_num_threads(self.num_threads)  # the default in a new thread is all cores
            with torch.no_grad(), torch.cuda.stream(self.stream):
                self.collected[clip] = consume(self._parts(clip))
        except Abandoned:
            pass
        except BaseException as err:
            self.error = self.error or err

    def _parts(self, clip: int) -> Iterator[Part]:
        windows: list[Tensor] = []

        def fed() -> Iterator[Tensor]:
            while True:
                yield windows.pop()

        frames = self.vae.decode_stream(fed())
        for latents in in_windows(self._arriving(clip), self.window):
            windows.append(latents)  # read by `next(frames)`, so no thread waits for a unit while it holds the lock
            with self.one_at_a_time:
                part = self.convert(next(frames)[0])
            yield part

    def _arriving(self, clip: int) -> Iterator[Tensor]:
        while True:
            unit, ready = self.units[clip].get()
            if isinstance(unit, Abandoned):
                raise unit
            if unit is None:
                return
            if self.stream and ready:
                self.stream.wait_event(ready)
                unit.record_stream(self.stream)
            yield unit
