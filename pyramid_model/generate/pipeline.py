"""One object from prompts to clips: text to image, text to video, image to video, and more of a video."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from pyramid_model.config import LatentNorm, PyramidConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.weights.checkpoint import check_request, check_widths, read_checkpoint
from pyramid_model.generate.compiling import compile_blocks
from pyramid_model.generate.decoding import Consume, Convert, DecodingAlongside, denormalise_unit
from pyramid_model.generate.given import (
    check_given,
    encode_given,
    fit_image,
    most_given,
    read_ending,
    read_image,
    upright,
    whole_units,
)
from pyramid_model.generate.offload import Offload, Placement, largest_layer_bytes, weight_bytes
from pyramid_model.generate.outputs import as_floats, as_frames, into_file, joined_floats, joined_frames
from pyramid_model.generate.plan import ModelSizes, Plan, free_bytes, plan_memory
from pyramid_model.generate.prompt import (
    TRAINED_STYLE,
    PromptStyle,
    check_prompts,
    encoded_negative,
    encoded_prompt,
    unread,
)
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.generate.sampling import OnUnit, latent_norm, sample_clips, seeded
from pyramid_model.text import MAX_TOKENS, TextEncoder, TextFeatures, load_text_encoder, stack_features
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.weights import load_dit, load_vae

Output = Literal["frames", "tensor", "latents"]
MIN_SEED = -(2**63)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

FLOAT16_WARNING = (
    "the released models were trained in bfloat16 and give black frames in float16: use float32 on a device without "
    "bfloat16"
)


class NotFiniteError(RuntimeError):
    """Sampling gave NaN or Inf. samples: which of the batch; unit: at which unit, counted from 0."""

    def __init__(self, samples: Sequence[int], unit: int, dtype: torch.dtype):
        advice = "the weights are damaged, or not those of this model"
        if dtype == torch.float16:
            advice = "the released models overflow in float16: use bfloat16 or float32 (dtype)"
        super().__init__(f"sampling gave NaN or Inf at unit {unit} of clip {', '.join(map(str, samples))}: {advice}")
        self.samples, self.unit = tuple(samples), unit


@dataclass(frozen=True)
class Text:
    """Prompts as the DiT takes them: what to show, one row each, and what to steer away from, one row for all."""

    cond: TextFeatures
    uncond: TextFeatures


@dataclass(frozen=True)
class Clips:
    """Clips made together.

    videos: one each: uint8 frames (t h w 3), a float tensor (3 t h w) in [0, 1], or the path of its file; none where
        only latents were asked for.
    latents: as the VAE decodes them, (b c t h w), on the CPU; the given ones included.
    timings: seconds of each phase for the whole batch. Decoding that went on alongside counts where it was waited for.
    plan: how memory was used. notes: what a user should know, a sentence each.
    """

    videos: list[Any]
    latents: Tensor
    timings: dict[str, float]
    plan: Plan
    notes: tuple[str, ...]


class VideoPipeline:
    """A DiT with the VAE and the text encoder that belong to it.

    Args:
        dit, vae, encoder: the models, on the CPU.
        pyramid: stages the DiT was trained with.
        style: words that suit the weights.
        norm: of the latents; None: the VAE's own.
        device: cuda, mps or cpu; empty: the best there is.
        most_latent_frames: how long its clips can be; None where nothing says so.
        autoregressive: whether the DiT was trained unit by unit; else it makes all frames at once.

    Raises:
        ValueError: the models do not belong together, or the VAE has no latent norm.
    """

    def __init__(
        self,
        dit: DiT,
        vae: CausalVideoVAE,
        encoder: TextEncoder,
        pyramid: PyramidConfig | None = None,
        style: PromptStyle = TRAINED_STYLE,
        norm: LatentNorm | None = None,
        device: str = "",
        most_latent_frames: int | None = None,
        autoregressive: bool = True,
    ):
        check_widths(dit.config, vae.config, encoder.dim, encoder.pooled_dim, "these models do not fit")
        self.dit, self.vae = dit, vae
        self.encoder: TextEncoder | None = encoder
        self.pyramid, self.style, self.norm = pyramid or PyramidConfig(), style, norm or latent_norm(vae.config)
        self.most_latent_frames, self.autoregressive = most_latent_frames, autoregressive
        self.device = working_device(device)
        self.placement, self.compiled = Placement(self.device), False
        self.sizes = ModelSizes(
            dit=dit.config,
            vae=vae.config,
            pyramid=self.pyramid,
            dtype=next(dit.parameters()).dtype,
            text_dim=encoder.dim,
            text_bytes=sum(weight_bytes(model) for model in encoder.models),
            dit_bytes=weight_bytes(dit),
            vae_bytes=weight_bytes(vae),
            text_layer_bytes=max(largest_layer_bytes(model) for model in encoder.models),
            dit_layer_bytes=largest_layer_bytes(dit),
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, variant: str = "", *, dtype: str = "bfloat16", device: str = ""
    ) -> VideoPipeline:
        """Load a released directory of either model, or one of our own in that layout.

        Args:
            folder: holds `diffusion_transformer_…`, `causal_video_vae` and the text encoders.
            variant: which DiT, e.g. `diffusion_transformer_768p` or `768p`; may be left out where there is only one.
            dtype: of all weights. The released models were trained in bfloat16 and overflow in float16.
            device: cuda, mps or cpu; empty: the best there is.

        Raises:
            FileNotFoundError: parts are missing; each is named.
            ValueError: a part is damaged, or the parts do not belong together.
        """
        precision, device = torch_dtype(dtype), str(working_device(device))
        found = read_checkpoint(folder, variant)
        return cls(
            load_dit(found.dit_folder, dtype=precision),
            load_vae(found.parts.vae, dtype=precision),
            load_text_encoder(found.parts.folder, dtype=precision),
            found.pyramid,
            found.style,
            found.norm,
            device,
            found.most_latent_frames,
            found.autoregressive,
        )

    def generate(
        self,
        prompts: str | Sequence[str],
        request: GenerationRequest | None = None,
        seeds: Sequence[int] | int = 0,
        *,
        image: str | Path | Image.Image | None = None,
        video: str | Path | np.ndarray | None = None,
        output: Output = "frames",
        paths: Sequence[str] = (),
        max_memory: int | None = None,
        offload: Offload | None = None,
        on_unit: OnUnit | None = None,
        text: Text | None = None,
    ) -> Clips:
        """Make one clip a prompt, all in one batch. A clip depends on its prompt, its seed and what is given alone.

        Args:
            prompts: what the clips show.
            request: size, length, steps, guidance; None: those of the released 384p model. One latent frame is a
                picture.
            seeds: one a prompt; a single number counts up from there.
            image: the first frame of every clip; resized to cover the size asked for, then cut around its centre.
            video: every clip begins with the end of this one, at most half of it: a file, or uint8 frames (t h w 3)
                at the request's fps.
            output: what `Clips.videos` holds: uint8 frames, float tensors in [0, 1], or nothing but latents.
            paths: files to write instead, one a prompt: `.mp4`, or `.png` for a picture. A file appears when it is
                whole, and is written as its frames come.
            max_memory: bytes of the device that may be used; None: what is free.
            offload: where models wait; None: whatever is fastest within the memory.
            on_unit: called with (units done, units in all).
            text: what `encode` gave for these prompts and this request, so that it need not be done again.

        Raises:
            ValueError: what is asked for is wrong, cannot be made by this model, or does not fit into the memory.
            NotFiniteError: sampling gave NaN or Inf; nothing was written.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        request = request or GenerationRequest()
        seeds = [seeds + i for i in range(len(prompts))] if isinstance(seeds, int) else list(seeds)
        self.check(prompts, request, seeds, paths)
        convert, consumers = _wanted(output, paths, len(prompts), request.fps)
        frames, notes = self._given_frames(request, image, video)
        num_given = 0 if frames is None else len(frames)
        plan = self.plan(request, len(prompts), num_given, max_memory, offload)
        groups = {"text": self._text_models(), "dit": [self.dit]}
        self.placement.choose(plan.offload, self._models(), [model for name in plan.in_turn for model in groups[name]])
        seconds = _Seconds()
        text = text or self.encode(prompts, request)
        seconds.passed("text_s")
        generators = seeded(seeds)
        given = [] if frames is None else self._encode(frames, generators, plan)
        if given:
            seconds.passed("encode_s")
        reuse = HistoryReuse(self.dit, request.refresh_every, plan.spare)
        units = self._units(reuse, text, request, generators, given, on_unit)
        latents, videos = self._decoded(units, given, plan, convert, consumers, seconds)
        notes += (*self.notes(prompts, request), *_reuse_notes(reuse, request))
        return Clips(videos, latents, seconds.by_phase, plan, notes)

    def compile(self) -> None:
        """Compile the DiT's blocks at their first call, which takes minutes; worth it for many clips of one size.

        Needs Triton on a GPU, a C++ compiler on a CPU. The layers of a compiled DiT cannot wait elsewhere in turn.
        """
        compile_blocks(self.dit)
        self.compiled = True

    def check(
        self, prompts: Sequence[str], request: GenerationRequest, seeds: Sequence[int] = (), paths: Sequence[str] = ()
    ) -> None:
        """Raise ValueError, naming what is wrong, unless this can be generated."""
        check_prompts(prompts)
        check_request(request, self.dit.config, self.vae.config, self.pyramid, self.most_latent_frames)
        for name, values in (("seeds", seeds), ("paths", paths)):
            if values and len(values) != len(prompts):
                raise ValueError(f"{len(values)} {name} for {len(prompts)} prompts: give one a prompt")
        for seed in seeds:
            if not MIN_SEED <= seed < -MIN_SEED:
                raise ValueError(f"seed {seed}: must be a whole number of 64 bits with sign")
        for path in paths:
            if not path.endswith((".mp4", ".png")):
                raise ValueError(f"path {path!r}: clips are written as .mp4, pictures as .mp4 or .png; name it so")
        if request.num_latent_frames > 1 and any(path.endswith(".png") for path in paths):
            raise ValueError(
                "a PNG holds one frame: set request.num_latent_frames to 1, or name files that end in .mp4"
            )

    def notes(self, prompts: Sequence[str], request: GenerationRequest) -> tuple[str, ...]:
        """What a user should know about how the prompts are read, a sentence each."""
        if self.encoder is None:
            return ()
        texts = [encoded_prompt(prompt, request, self.style) for prompt in prompts]
        texts += [request.negative_prompt] if request.negative_prompt else []
        cut = [unread(text, self.encoder.tokenizer, MAX_TOKENS) for text in texts]
        return tuple(
            f"the text encoder reads {MAX_TOKENS} tokens; of {text[:40]!r}… it did not see: {end!r}"
            for text, end in zip(texts, cut, strict=True)
            if end
        )

    def plan(
        self,
        request: GenerationRequest,
        batch: int = 1,
        num_given: int = 0,
        max_memory: int | None = None,
        offload: Offload | None = None,
    ) -> Plan:
        """How a batch would be generated within the memory. Arguments as in `generate`; `num_given` frames start it.

        Raises:
            ValueError: it does not fit.
        """
        return plan_memory(
            self.sizes,
            request,
            self.free_bytes() if max_memory is None else max_memory,
            batch=batch,
            num_given=num_given,
            device=self.device.type,
            offload=offload,
            whole_dit=self.compiled,
        )

    def drop_encoder(self) -> None:
        """Free the memory of the text encoders; from now on `generate` needs `text`."""
        self.encoder = None
        self.sizes = replace(self.sizes, text_bytes=0, text_layer_bytes=0)

    def free_bytes(self) -> int:
        """Bytes that the device has for a batch, weights included."""
        return free_bytes(self.device, sum(weight_bytes(model) for model in self._models()))

    def encode(self, prompts: Sequence[str], request: GenerationRequest) -> Text:
        """Features of the prompts and of the negative prompt, on the CPU.

        Raises:
            ValueError: the text encoders were dropped.
        """
        if self.encoder is None:
            raise ValueError("the text encoders were dropped: give `text`, as `encode` returned it before")
        texts = [encoded_prompt(prompt, request, self.style) for prompt in prompts]
        with self.placement.working(*self._text_models()):
            self.encoder.work_on(self.device)
            features = self.encoder.encode([*texts, encoded_negative(request, self.style)])
        return Text(stack_features(features[:-1]), stack_features(features[-1:]))

    def _models(self) -> list[torch.nn.Module]:
        return [self.dit, self.vae, *self._text_models()]

    def _text_models(self) -> list[torch.nn.Module]:
        return list(self.encoder.models) if self.encoder else []

    def _given_frames(
        self,
        request: GenerationRequest,
        image: str | Path | Image.Image | None,
        video: str | Path | np.ndarray | None,
    ) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Frames that the clips start with, uint8 (t h w 3), and what should be said about them."""
        check_given(request, image, video, self.vae.config, self.pyramid, self.autoregressive)
        if image is None and video is None:
            return None, ()
        most = most_given(request, self.vae.config, self.pyramid)
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
        frames, note = whole_units(frames, total, most, self.vae.config, self.pyramid)
        return frames, (note,) if note else ()

    def _encode(self, frames: np.ndarray, generators: list[Generator], plan: Plan) -> list[Tensor]:
        window = self.vae.config.time_factor if len(frames) > 1 else None
        with self.placement.working(self.vae):
            return encode_given(self.vae, self.norm, frames, generators, self.pyramid, window, plan.tile)

    def _units(
        self,
        reuse: HistoryReuse,
        text: Text,
        request: GenerationRequest,
        generators: list[Generator],
        given: list[Tensor],
        on_unit: OnUnit | None,
    ) -> Iterator[Tensor]:
        """New units, normalised; stops at the first that is not finite."""
        units = sample_clips(
            reuse,
            text.cond,
            text.uncond,
            request,
            generators,
            self.pyramid,
            self.vae.config,
            given,
            self.device,
            on_unit,
            self.autoregressive,
        )
        for index, unit in enumerate(units, start=len(given)):
            finite = unit.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                bad = [sample for sample, fine in enumerate(finite) if not fine]
                raise NotFiniteError(bad, index, self.sizes.dtype)
            yield unit

    def _decoded(
        self,
        units: Iterator[Tensor],
        given: list[Tensor],
        plan: Plan,
        convert: Convert,
        consumers: list[Consume],
        seconds: _Seconds,
    ) -> tuple[Tensor, list[Any]]:
        """Latents (b c t h w) on the CPU, and what the consumers made of the frames."""
        if plan.alongside and consumers:
            with (
                self.placement.working(self.dit, self.vae),
                DecodingAlongside(self.vae, plan.window, convert, consumers) as decoding,
            ):
                latents = []
                for unit in self._denormalised(given, units):
                    latents.append(unit.cpu())
                    decoding.put(unit)
                seconds.passed("sample_s")
                videos = decoding.results()
            seconds.passed("decode_s")
            return torch.cat(latents, dim=2), videos
        with self.placement.working(self.dit):
            latents = torch.cat([unit.cpu() for unit in self._denormalised(given, units)], dim=2)
        seconds.passed("sample_s")
        with self.placement.working(self.vae):
            videos = [
                self._decode(latents[clip : clip + 1], plan, convert, consume) for clip, consume in enumerate(consumers)
            ]
        seconds.passed("decode_s")
        return latents, videos

    def _denormalised(self, given: list[Tensor], units: Iterator[Tensor]) -> Iterator[Tensor]:
        for index, unit in enumerate(unit for part in (given, units) for unit in part):
            yield denormalise_unit(self.norm, unit, starts_clip=index == 0)

    def _decode(self, latents: Tensor, plan: Plan, convert: Convert, consume: Consume) -> Any:
        """One clip, after sampling. latents: (1 c t h w)."""
        latents = latents.to(self.device)
        with torch.no_grad():
            if plan.tile is None:
                with DecodingAlongside(self.vae, plan.window, convert, [consume]) as decoding:
                    decoding.put(latents)
                    return decoding.results()[0]
            frames = self.vae.decode(latents, plan.window, tile=plan.tile)
            step = self.vae.config.time_factor * plan.window
            return consume(convert(part[0]) for part in frames.split(step, dim=2))


def _reuse_notes(reuse: HistoryReuse, request: GenerationRequest) -> tuple[str, ...]:
    if not reuse.errors:
        return ()
    return (
        f"history was computed anew every {request.refresh_every} steps only: that moved the velocity by up to "
        f"{max(reuse.errors):.1%} of its length ({len(reuse.errors)} measurements)",
    )


class _Seconds:
    """Seconds since the last phase ended, by phase."""

    def __init__(self) -> None:
        self.by_phase: dict[str, float] = {}
        self.last = time.perf_counter()

    def passed(self, phase: str) -> None:
        now = time.perf_counter()
        self.by_phase[phase], self.last = now - self.last, now


def _wanted(output: Output, paths: Sequence[str], count: int, fps: int) -> tuple[Convert, list[Consume]]:
    """How decoded frames are converted, and what collects those of each clip."""
    if paths:
        return as_frames, [into_file(path, fps) for path in paths]
    if output == "latents":
        return as_frames, []
    if output == "tensor":
        return as_floats, [joined_floats] * count
    if output != "frames":
        raise ValueError(
            f"output {output!r}: take one of {', '.join(get_args(Output))}; files are asked for by `paths`"
        )
    return as_frames, [joined_frames] * count


def working_device(name: str = "") -> torch.device:
    """The device of that name; empty: the best there is.

    Raises:
        ValueError: this machine, or its PyTorch, has none of that kind.
    """
    device = torch.device(name or best_device())
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(device.type, lambda: True)
    if not there():
        raise ValueError(f"device {name!r}: PyTorch finds none on this machine. Take cpu, or leave it empty (device)")
    return device


def best_device() -> str:
    """cuda, mps or cpu, whichever comes first on this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def torch_dtype(name: str) -> torch.dtype:
    """The precision of that name; warns where the released models cannot work in it.

    Raises:
        ValueError: there is no such precision.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: use one of {', '.join(DTYPES)}")
    if name == "float16":
        warnings.warn(FLOAT16_WARNING, stacklevel=3)
    return DTYPES[name]
