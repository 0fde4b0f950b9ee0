"""A generation request: size, length, steps and guidance. Imports no torch, which takes seconds."""

from __future__ import annotations

from pydantic import Field

from pyramid_model.config import Config, PyramidConfig, VAEConfig

Steps = int | tuple[int, ...]


class GenerationRequest(Config):
    """Sampling settings of clips. Defaults are those of the released 384p model.

    Step counts are Euler steps per stage: one number for all stages, or one for each, coarse to fine.
    """

    height: int = Field(default=384, ge=8, description="px")
    width: int = Field(default=640, ge=8, description="px")
    num_latent_frames: int = Field(default=16, ge=1, description="1 is a picture; 16 are 121 frames, 31 are 241 frames")
    num_inference_steps: Steps = Field(default=20, description="steps of each stage for the first frame")
    video_num_inference_steps: Steps = Field(default=10, description="steps of each stage for every later unit")
    guidance_scale: float = Field(
        default=7.0, ge=0, allow_inf_nan=False, description="guidance scale of the first frame; 0 and 1 are off"
    )
    video_guidance_scale: float = Field(
        default=5.0, ge=0, allow_inf_nan=False, description="guidance scale of every later unit; 0 and 1 are off"
    )
    guidance_falloff: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="above 0: guidance_scale falls by this with each unit, and video_guidance_scale is not used",
    )
    min_guidance_scale: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="lowest guidance scale with guidance_falloff"
    )
    negative_prompt: str | None = Field(
        default=None, description="what clips should not show; null: the default of the weights"
    )
    prompt_suffix: str | None = Field(
        default=None, description="text added to every prompt; null: the default of the weights"
    )
    refresh_every: int = Field(
        default=1,
        ge=1,
        description="the history is computed at every k-th step; above 1 is faster, with an error that is measured and "
        "reported",
    )
    fps: int = Field(default=24, ge=1, description="frame rate of the file")
    decode_window: int | None = Field(
        default=2, ge=1, description="latent frames that are decoded at a time; null: all at once"
    )

    def check(self, vae: VAEConfig, pyramid: PyramidConfig) -> None:
        """Raise ValueError, naming the setting, unless the models can generate this clip."""
        multiple = vae.space_factor * 2 * 2 ** (pyramid.num_stages - 1)
        for name in ("height", "width"):
            px = getattr(self, name)
            if px % multiple:
                below = px - px % multiple
                nearest = f"{below} or {below + multiple}" if below else str(multiple)
                raise ValueError(
                    f"{name} {px} px does not divide into {pyramid.num_stages} stages: it must be a multiple of "
                    f"{multiple} ({vae.space_factor}x VAE * 2x patch * {2 ** (pyramid.num_stages - 1)}x pyramid). "
                    f"Nearest: {nearest}. Set request.{name}."
                )
        if (self.num_latent_frames - 1) % pyramid.frames_per_unit:
            raise ValueError(
                f"num_latent_frames {self.num_latent_frames}: must be 1 plus a multiple of {pyramid.frames_per_unit} "
                "(pyramid.frames_per_unit). Set request.num_latent_frames."
            )
        for name in ("num_inference_steps", "video_num_inference_steps"):
            steps = self.steps_per_stage(name, pyramid)
            if len(steps) != pyramid.num_stages or min(steps) < 1:
                raise ValueError(
                    f"{name} {getattr(self, name)}: give one number of at least 1, or one for each of the "
                    f"{pyramid.num_stages} stages. Set request.{name}."
                )

    def steps_per_stage(self, name: str, pyramid: PyramidConfig) -> tuple[int, ...]:
        """Euler steps of each stage, coarse to fine, of the setting `name`."""
        steps = getattr(self, name)
        return (steps,) * pyramid.num_stages if isinstance(steps, int) else steps

    def num_frames(self, vae: VAEConfig) -> int:
        """Frames of the clip."""
        return 1 + vae.time_factor * (self.num_latent_frames - 1)
