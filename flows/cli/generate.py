"""`pyramid generate`: clips and pictures from prompts on the command line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import echo
from flows.cli.option_groups import with_groups
from flows.cli.options import DATA_ROOT, RayAddress, RecipeName, RetryFailed, Root, Settings
from flows.cli.settings import combined, common_options

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from tasks.generating.config import GenerateResult

WHAT, HOW, WHERE = "What it shows", "Size, length and look", "With what"
# Settings that the published code recommends for the released weights.
FROM_IMAGE = {"num_inference_steps": 10, "video_guidance_scale": 4.0}
PICTURE = {"guidance_scale": 9.0}
FRAMES_PER_LATENT = 8  # except the first latent frame, which is one frame
MAX_SECONDS = 3600
MAY_BE_EMPTY = ("negative_prompt",)  # the unconditional prediction then has the empty text


@dataclass(frozen=True)
class Content:
    """Options for the content of the clip."""

    prompts: Annotated[
        str,
        typer.Option(
            "--prompts",
            help="File of prompts: text with one a line, CSV, TSV, JSON or JSON lines.",
            rich_help_panel=WHAT,
        ),
    ] = ""
    image: Annotated[str, typer.Option("--image", help="Picture that the clip starts from.", rich_help_panel=WHAT)] = ""
    video: Annotated[
        str,
        typer.Option("--video", help="Video to continue; its end is at most half of the clip.", rich_help_panel=WHAT),
    ] = ""
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", help="What the clip should not show.", rich_help_panel=WHAT)
    ] = None
    rewrite: Annotated[
        str,
        typer.Option(
            "--rewrite",
            metavar="normal|director",
            help="Let a language model (generate.rewriter) rewrite the prompt: fuller, or as camera directions.",
            rich_help_panel=WHAT,
        ),
    ] = ""


@dataclass(frozen=True)
class Look:
    """Options for size, length, steps, guidance and seed."""

    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Length of the clip, including a given picture or video.", rich_help_panel=HOW),
    ] = None
    frames: Annotated[
        int | None, typer.Option("--frames", help="Length in frames; 1 is a picture.", rich_help_panel=HOW)
    ] = None
    height: Annotated[int | None, typer.Option("--height", help="px, a multiple of 64.", rich_help_panel=HOW)] = None
    width: Annotated[int | None, typer.Option("--width", help="px, a multiple of 64.", rich_help_panel=HOW)] = None
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps of each stage; more is slower.", rich_help_panel=HOW)
    ] = None
    guidance: Annotated[
        str,
        typer.Option(
            "--guidance",
            metavar="G or FIRST,REST",
            help="Guidance scale, for all frames, or for the first frame and the rest; 1 is off.",
            rich_help_panel=HOW,
        ),
    ] = ""
    seed: Annotated[
        int | None, typer.Option("--seed", help="Random seed; another seed gives another clip.", rich_help_panel=HOW)
    ] = None


@dataclass(frozen=True)
class Models:
    """Options for the weights, the device and its memory."""

    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="DIR",
            help="Directory of released weights; default: the champion of ROOT.",
            rich_help_panel=WHERE,
        ),
    ] = ""
    variant: Annotated[
        str, typer.Option("--variant", help="Which DiT of DIR: 384p, 768p or image.", rich_help_panel=WHERE)
    ] = ""
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="DIR[:WEIGHT]",
            help="LoRA adapter to add, e.g. ./style:0.8; may be given several times.",
            rich_help_panel=WHERE,
        ),
    ] = None
    max_memory: Annotated[
        str,
        typer.Option(
            "--max-memory",
            metavar="8GiB",
            help="Most device memory to use; default: all that is free.",
            rich_help_panel=WHERE,
        ),
    ] = ""
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16, float32 or float16.", rich_help_panel=WHERE)] = ""
    device: Annotated[
        str, typer.Option("--device", help="cuda, mps or cpu; default: a GPU if there is one.", rich_help_panel=WHERE)
    ] = ""


@with_groups
def generate(
    content: Content,
    look: Look,
    models: Models,
    prompt: Annotated[str, typer.Argument(help="What the clip should show.")] = "",
    root: Root = DATA_ROOT,
    recipe: RecipeName = "",
    settings: Settings = None,
    ray: RayAddress = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Generate clips or pictures under ROOT/media/generated and print their paths.

    The champion of ROOT generates, at the size in the recipe (default: demo). With --weights DIR the released weights
    in DIR generate, at the size of their variant.

    Prompts on the command line replace those of the recipe. A clip that exists already is not generated again;
    another --seed gives another clip. All other settings are in the section `generate` of a recipe; change them with
    --set.

    Example: `pyramid generate "a rabbit in a meadow" --root ./pyramid-demo`

    Example: `pyramid generate "waves at dusk" --weights ~/pyramid-flow-miniflux --variant 768p --seconds 5`

    Example: `pyramid generate "a lighthouse" --weights ~/pyramid-flow-miniflux --variant 768p --frames 1`

    Example: `pyramid generate "it starts to rain" --image garden.jpg --weights ~/pyramid-flow-miniflux --variant 384p`

    Example: `pyramid generate "a cat in my style" --weights ~/pyramid-flow-miniflux --variant 384p --lora ./style:0.8`

    Example: `pyramid generate "the boat turns" --video boat.mp4 --weights ~/pyramid-flow-sd3 --variant 768p`

    Example: `pyramid generate --prompts ideas.txt --weights ~/pyramid-flow-sd3 --variant 384p --max-memory 8GiB`
    """
    from flows.cli.launch import FAILURE, complain, launch

    options = asked_prompts(prompt, content.prompts) | common_options(ray=ray, retry_failed=retry_failed)
    result: GenerateResult = launch(
        "generate", root, lambda: generation_recipe(recipe, settings, options, content, look, models)
    )
    for file in result.files:
        echo(file)
    for failure in result.failures:
        complain(f"not generated: {failure}; after fixing the cause, run the same command with --retry-failed")
    if result.failures:
        raise typer.Exit(FAILURE)


def generation_recipe(
    recipe: str,
    pairs: Sequence[str] | None,
    options: Mapping[str, Any],
    content: Content,
    look: Look,
    models: Models,
) -> "Recipe":
    """The recipe with the settings of the command.

    Args:
        recipe: name or path; empty: the one that suits the weights.
        pairs: `section.key=value` of each --set.
        options: settings by dotted name of the options without a group.
        content: options for the content of the clip.
        look: options for size, length and guidance.
        models: options for weights and device.

    Raises:
        ValueError: no clip can have the length, the guidance is not a number, or an option and --set differ.
    """
    from flows.recipe import load_recipe, parse_settings

    variant = models.variant or lone_variant(models.weights)
    settings = parse_settings(pairs or ())
    plan = load_recipe(recipe or (suiting_recipe(variant) if models.weights else "demo"), settings)
    typed = {**options, **asked_settings(content, look, models, plan.generate.request.fps)}
    return load_recipe(plan, combined(settings, typed, own_defaults(typed, variant)))


def asked_prompts(prompt: str, file: str) -> dict[str, Any]:
    """Settings of the prompt and of the file of prompts on the command line."""
    return dotted("generate", {"prompts": [prompt] if prompt else None, "prompts_file": file})


def own_defaults(options: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Settings by dotted name that the command adds, where neither an option nor --set gives them.

    Args:
        options: settings by dotted name of the typed options.
        variant: released DiT, e.g. 768p; empty: none.
    """
    defaults: dict[str, Any] = {}
    if {"generate.prompts", "generate.prompts_file"} & set(options):  # they replace all prompts of the recipe
        defaults |= {"generate.prompts": [], "generate.prompts_file": ""}
    if "generate.weights" not in options:
        return defaults
    defaults |= {"generate.num_gpus": 0, "generate.num_cpus": 1}  # a GPU if there is one; recipes reserve a cluster's
    length = options.get("generate.request.num_latent_frames")
    if variant.endswith("image") and length is None:
        length = defaults["generate.request.num_latent_frames"] = 1
    return defaults | dotted("generate.request", recommended_look(length, bool(options.get("generate.image"))))


def asked_settings(content: Content, look: Look, models: Models, fps: int) -> dict[str, Any]:
    """Settings by dotted name of the options in groups.

    Args:
        content: options for the content of the clip.
        look: options for size, length and guidance.
        models: options for weights and device.
        fps: frame rate of the recipe's request.

    Raises:
        ValueError: no clip can have the length, or the guidance is not a number.
    """
    step = {"image": content.image, "video": content.video, "seed": look.seed, "rewrite": content.rewrite}
    step |= {name: getattr(models, name) for name in ("weights", "variant", "max_memory", "dtype", "device")}
    request = {
        "height": look.height,
        "width": look.width,
        "negative_prompt": content.negative_prompt,
        "num_latent_frames": asked_latent_frames(look.seconds, look.frames, fps),
    }
    request |= asked_steps(look.steps) | asked_guidance(look.guidance)
    step |= {"loras": [used_lora(text) for text in models.lora]} if models.lora else {}
    return dotted("generate", step) | dotted("generate.request", request)


def used_lora(text: str) -> dict[str, Any]:
    """`DIR:0.8`, or `DIR` for the weight 1; what follows the last colon is the weight if it is a number."""
    folder, colon, weight = text.rpartition(":")
    try:
        return {"folder": folder, "weight": float(weight)} if colon and folder else {"folder": text}
    except ValueError:
        return {"folder": text}


def dotted(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a section by dotted name, without options that are not on the command line."""
    return {
        f"{section}.{name}": value
        for name, value in values.items()
        if value is not None and (value != "" or name in MAY_BE_EMPTY)
    }


def lone_variant(weights: str) -> str:
    """Folder name of the only DiT in a directory; empty if it has none or several."""
    folders = [path.name for path in Path(weights).expanduser().glob("diffusion_transformer_*")] if weights else []
    return folders[0] if len(folders) == 1 else ""


def suiting_recipe(variant: str) -> str:
    """Name of the recipe whose request has the size of a released variant."""
    return "384p" if "384p" in variant else "768p"


def recommended_look(num_latent_frames: int | None, from_image: bool) -> dict[str, float]:
    """Recommended settings of the request for released weights. num_latent_frames: None: those of the recipe."""
    if num_latent_frames == 1:
        return PICTURE
    return FROM_IMAGE if from_image else {}


def asked_latent_frames(seconds: float | None, frames: int | None, fps: int) -> int | None:
    """Number of latent frames of a clip of this many seconds or frames; None if both are None.

    fps: frame rate of the clip.

    Raises:
        ValueError: both are given, or no clip can have that length.
    """
    if seconds is None and frames is None:
        return None
    if seconds is not None and frames is not None:
        raise ValueError("both --seconds and --frames are given: use only one of them")
    if seconds is not None:
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"--seconds {seconds:g}: give a length from 0 to {MAX_SECONDS}")
        return 1 + round(seconds * fps / FRAMES_PER_LATENT)
    assert frames is not None
    before = max(0, frames - 1) // FRAMES_PER_LATENT
    if frames < 1 or (frames - 1) % FRAMES_PER_LATENT:
        near = " or ".join(str(1 + FRAMES_PER_LATENT * count) for count in (before, before + 1))
        raise ValueError(f"--frames {frames}: a clip has 1 + a multiple of {FRAMES_PER_LATENT} frames; nearest: {near}")
    return 1 + before


def asked_steps(steps: int | None) -> dict[str, Any]:
    """The same number of steps for the first frame and for later units."""
    return {} if steps is None else {"num_inference_steps": steps, "video_num_inference_steps": steps}


def asked_guidance(text: str) -> dict[str, Any]:
    """`7`, or `7,5` for the first frame and the rest.

    Raises:
        ValueError: the text is neither.
    """
    if not text:
        return {}
    try:
        first, rest = (float(part) for part in (text.split(",") if "," in text else (text, text)))
    except ValueError as err:
        raise ValueError(f"--guidance {text!r}: give a number, or two such as 7,5") from err
    if not math.isfinite(first + rest):
        raise ValueError(f"--guidance {text!r}: give finite numbers, such as 7,5")
    return {"guidance_scale": first, "video_guidance_scale": rest}
