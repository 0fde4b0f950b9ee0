"""Pipeline from prompts to clips: text to image, text to video, image to video, and extending a video."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from pyramid_model.config import LatentNorm, PyramidConfig
from pyramid_model.dit.transformer import DiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.reuse import HistoryReuse
from pyramid_model.flow.sampler import sample_units
from pyramid_model.generate.batch import ClipBatch, PromptFeatures
from pyramid_model.generate.checks import check_request, check_widths
from pyramid_model.generate.decoding import BackgroundDecoding, Consume, Convert, denormalise_unit
from pyramid_model.generate.device import torch_dtype, working_device
from pyramid_model.generate.model_sizes import sizes_of_models
from pyramid_model.generate.offload import Offload, Placement, weight_bytes
from pyramid_model.generate.outputs import convert_and_consumers
from pyramid_model.generate.plan import Plan, Workload, free_bytes, plan_memory
from pyramid_model.generate.prompt import (
    TRAINED_STYLE,
    PromptStyle,
    cut_off_text,
    encoded_negative,
    encoded_prompt,
    style_of,
)
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.generate.sampling import latent_norm, sampling_of, seeded
from pyramid_model.generate.start_frames import encode_given, given_frames
from pyramid_model.parallel.compiling import compile_blocks
from pyramid_model.text import MAX_TOKENS, TextEncoder, load_text_encoder, stack_features
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.checkpoint import read_checkpoint
from pyramid_model.weights.weights import load_dit, load_vae

OnUnit = Callable[[int, int], None]  # (units done, units in all)


class NotFiniteError(RuntimeError):
    """Sampling gave NaN or Inf. samples: their indices in the batch; unit: index of the unit, from 0."""

    def __init__(self, samples: Sequence[int], unit: int, dtype: torch.dtype):
        advice = "the weights are damaged, or not those of this model"
        if dtype == torch.float16:
            advice = "the released models overflow in float16: use bfloat16 or float32 (dtype)"
        super().__init__(f"sampling gave NaN or Inf at unit {unit} of clip {', '.join(map(str, samples))}: {advice}")
        self.samples, self.unit = tuple(samples), unit


@dataclass(frozen=True)
class Clips:
    """Clips of one batch.

    videos: one per clip: uint8 frames (t h w 3), a float tensor (3 t h w) in [0, 1], or the path of its file; empty
        if only latents were requested.
    latents: input of the VAE decoder, (b c t h w), on the CPU, including those of given frames.
    timings: seconds of each phase for the whole batch. Decoding during sampling counts only from the last unit on.
    plan: how memory was used. notes: for the user, one sentence each.
    """

    videos: list[Any]
    latents: Tensor
    timings: dict[str, float]
    plan: Plan
    notes: tuple[str, ...]


def _ends_of(text: str) -> str:
    """A text of at most 80 characters: beginning and end of a longer one."""
    return text if len(text) <= 80 else f"{text[:36]} … {text[-40:]}"


class VideoPipeline:
    """A DiT with the VAE and the text encoder that belong to it.

    Args:
        dit, vae: the models.
        encoder: the text encoder; None if every batch has the features of its prompts.
        pyramid: stages the DiT was trained with.
        style: suffix and negative prompt that suit the weights.
        norm: of the latents; None: the VAE's own.
        device: cuda, mps or cpu; empty: the best one available.
        most_latent_frames: longest clip, in latent frames; None: unknown.
        autoregressive: whether the DiT was trained unit by unit; else it generates all frames at once.

    Raises:
        ValueError: the models do not belong together, or the VAE has no latent norm.
    """

    def __init__(
        self,
        dit: DiT,
        vae: CausalVideoVAE,
        encoder: TextEncoder | None = None,
        pyramid: PyramidConfig | None = None,
        style: PromptStyle = TRAINED_STYLE,
        norm: LatentNorm | None = None,
        device: str = "",
        most_latent_frames: int | None = None,
        autoregressive: bool = True,
    ):
        widths = (encoder.dim, encoder.pooled_dim) if encoder else (dit.config.text_dim, dit.config.pooled_dim)
        check_widths(dit.config, vae.config, *widths)
        self.dit, self.vae, self.encoder = dit, vae, encoder
        self.pyramid, self.style, self.norm = pyramid or PyramidConfig(), style, norm or latent_norm(vae.config)
        self.most_latent_frames, self.autoregressive = most_latent_frames, autoregressive
        self.device = working_device(device)
        self.placement, self.compiled = Placement(self.device), False
        self.sizes = sizes_of_models(dit, vae, encoder, self.pyramid)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, variant: str = "", *, dtype: str = "bfloat16", device: str = ""
    ) -> VideoPipeline:
        """Load a released directory of either model, or one of our own in that layout.

        Args:
            folder: holds `diffusion_transformer_…`, `causal_video_vae` and the text encoders.
            variant: which DiT, e.g. `diffusion_transformer_768p` or `768p`; may be empty if there is only one.
            dtype: of all weights. The released models were trained in bfloat16 and overflow in float16.
            device: cuda, mps or cpu; empty: the best one available.

        Raises:
            FileNotFoundError: parts are missing; the message names each.
            ValueError: a part is damaged, or the parts do not belong together.
        """
        precision, device = torch_dtype(dtype), str(working_device(device))
        checkpoint = read_checkpoint(folder, variant)
        return cls(
            load_dit(checkpoint.dit_folder, dtype=precision),
            load_vae(checkpoint.parts.vae, dtype=precision),
            load_text_encoder(checkpoint.parts.folder, dtype=precision),
            checkpoint.pyramid,
            style_of(checkpoint),
            checkpoint.norm,
            device,
            checkpoint.most_latent_frames,
            checkpoint.autoregressive,
        )

    def generate(self, batch: ClipBatch, on_unit: OnUnit | None = None) -> Clips:
        """Generate the clips of a batch.

        Args:
            batch: prompts, seeds, settings, start of the clips, output files.
            on_unit: called after each unit with (units done, units in all).

        Raises:
            ValueError: this model cannot generate such clips, or they do not fit into the memory.
            NotFiniteError: sampling gave NaN or Inf; nothing was written.
        """
        request = batch.request
        self.check(request)
        convert, consumers = convert_and_consumers(batch)
        frames, notes = given_frames(batch, self.vae.config, self.pyramid, self.autoregressive)
        num_given = 0 if frames is None else len(frames)
        plan = self.plan(request, len(batch.prompts), num_given, batch.max_memory, batch.offload)
        groups = {"text": self._text_models(), "dit": [self.dit]}
        self.placement.choose(plan.offload, self._models(), [model for name in plan.in_turn for model in groups[name]])
        seconds = _Seconds()
        features = batch.features or self.encode(batch.prompts, request)
        seconds.end_phase("text_s")
        generators = seeded(batch.seed_of_each)
        given = [] if frames is None else self._encode(frames, generators, plan)
        if given:
            seconds.end_phase("encode_s")
        reuse = HistoryReuse(self.dit, request.refresh_every, plan.spare)
        units = self._units(reuse, features, request, generators, given, on_unit)
        latents, videos = self._decoded(units, given, plan, convert, consumers, seconds)
        notes += (*self.notes(batch.prompts, request), *_reuse_notes(reuse, request))
        return Clips(videos, latents, seconds.by_phase, plan, notes)

    def compile(self) -> None:
        """Compile the DiT's blocks at their first call, which takes minutes; worth it for many clips of one size.

        Needs Triton on a GPU, a C++ compiler on a CPU. A compiled DiT cannot be offloaded layer by layer.
        """
        compile_blocks(self.dit)
        self.compiled = True

    def check(self, request: GenerationRequest) -> None:
        """Raise ValueError, naming the setting, unless these models can generate such a clip."""
        check_request(request, self.dit.config, self.vae.config, self.pyramid, self.most_latent_frames)

    def notes(self, prompts: Sequence[str], request: GenerationRequest) -> tuple[str, ...]:
        """Notes for the user about prompts that are too long for the text encoder, one sentence each."""
        if self.encoder is None:
            return ()
        texts = [encoded_prompt(prompt, request, self.style) for prompt in prompts]
        texts += [request.negative_prompt] if request.negative_prompt else []
        cut_off = [cut_off_text(text, self.encoder.tokenizer, MAX_TOKENS) for text in texts]
        return tuple(
            f"the text encoder reads {MAX_TOKENS} tokens; of {text[:40]!r}… it did not see: {_ends_of(end)!r}"
            for text, end in zip(texts, cut_off, strict=True)
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
        """Plan the memory of a batch. Arguments as in `ClipBatch`; num_given: frames that the clips start with.

        Raises:
            ValueError: the batch does not fit into the memory.
        """
        work = Workload(self.sizes, request, batch, num_given, self.device.type)
        limit = self.free_bytes() if max_memory is None else max_memory
        return plan_memory(work, limit, offload=offload, whole_dit=self.compiled)

    def free_bytes(self) -> int:
        """Bytes of the device that a batch may use, weights included."""
        return free_bytes(self.device, sum(weight_bytes(model) for model in self._models()))

    def encode(self, prompts: Sequence[str], request: GenerationRequest) -> PromptFeatures:
        """Features of the prompts and of the negative prompt, on the CPU.

        Raises:
            ValueError: this pipeline has no text encoder.
        """
        if self.encoder is None:
            raise ValueError("this pipeline has no text encoder: give the batch `features` of its prompts")
        texts = [encoded_prompt(prompt, request, self.style) for prompt in prompts]
        with self.placement.working(*self._text_models()):
            self.encoder.work_on(self.device)
            features = self.encoder.encode([*texts, encoded_negative(request, self.style)])
        return PromptFeatures(stack_features(features[:-1]), stack_features(features[-1:]))

    def _models(self) -> list[torch.nn.Module]:
        return [self.dit, self.vae, *self._text_models()]

    def _text_models(self) -> list[torch.nn.Module]:
        return list(self.encoder.models) if self.encoder else []

    def _encode(self, frames: np.ndarray, generators: list[Generator], plan: Plan) -> list[Tensor]:
        window = self.vae.config.time_factor if len(frames) > 1 else None
        with self.placement.working(self.vae):
            return encode_given(self.vae, self.norm, frames, generators, self.pyramid, window, plan.tile)

    def _units(
        self,
        reuse: HistoryReuse,
        features: PromptFeatures,
        request: GenerationRequest,
        generators: list[Generator],
        given: list[Tensor],
        on_unit: OnUnit | None,
    ) -> Iterator[Tensor]:
        """Yield each new unit, normalised, as soon as it is clean; raises NotFiniteError for NaN or Inf."""
        sampling = sampling_of(request, self.vae.config, self.pyramid, at_once=not self.autoregressive)
        place = (self.device, self.sizes.dtype)
        text, negative = features.cond.to(*place), features.uncond.repeat_to(len(generators)).to(*place)
        units = sample_units(self.dit, text, negative, sampling, Noise(generators, self.device), given, reuse)
        for index, unit in enumerate(units, start=len(given)):
            if on_unit:
                on_unit(index + 1, sampling.num_units)
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
        """Latents (b c t h w) on the CPU, and the result of each consumer."""
        if plan.decode_while_sampling and consumers:
            with (
                self.placement.working(self.dit, self.vae),
                BackgroundDecoding(self.vae, plan.window, convert, consumers) as decoding,
            ):
                latents = []
                for unit in self._denormalised(given, units):
                    latents.append(unit.cpu())
                    decoding.put(unit)
                seconds.end_phase("sample_s")
                videos = decoding.results()
            seconds.end_phase("decode_s")
            return torch.cat(latents, dim=2), videos
        with self.placement.working(self.dit):
            latents = torch.cat([unit.cpu() for unit in self._denormalised(given, units)], dim=2)
        seconds.end_phase("sample_s")
        with self.placement.working(self.vae):
            videos = [
                self._decode(latents[clip : clip + 1], plan, convert, consume) for clip, consume in enumerate(consumers)
            ]
        seconds.end_phase("decode_s")
        return latents, videos

    def _denormalised(self, given: list[Tensor], units: Iterator[Tensor]) -> Iterator[Tensor]:
        for index, unit in enumerate(unit for part in (given, units) for unit in part):
            yield denormalise_unit(self.norm, unit, starts_clip=index == 0)

    def _decode(self, latents: Tensor, plan: Plan, convert: Convert, consume: Consume) -> Any:
        """One clip, after sampling. latents: (1 c t h w)."""
        latents = latents.to(self.device)
        with torch.no_grad():
            if plan.tile is None:
                with BackgroundDecoding(self.vae, plan.window, convert, [consume]) as decoding:
                    decoding.put(latents)
                    return decoding.results()[0]
            frames = self.vae.decode(latents, plan.window, tile=plan.tile)
            step = self.vae.config.time_factor * plan.window
            return consume(convert(part[0]) for part in frames.split(step, dim=2))


def _reuse_notes(reuse: HistoryReuse, request: GenerationRequest) -> tuple[str, ...]:
    if not reuse.errors:
        return ()
    return (
        f"history was computed only every {request.refresh_every} steps: this changed the velocity by up to "
        f"{max(reuse.errors):.1%} of its length ({len(reuse.errors)} measurements)",
    )


class _Seconds:
    """Seconds of each phase, counted from the end of the phase before it."""

    def __init__(self) -> None:
        self.by_phase: dict[str, float] = {}
        self.last = time.perf_counter()

    def end_phase(self, phase: str) -> None:
        now = time.perf_counter()
        self.by_phase[phase], self.last = now - self.last, now
