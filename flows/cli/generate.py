"""`pyramid generate`: from words on the command line to a file."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.option_groups import with_groups
from flows.cli.options import DATA_ROOT, RayAddress, RecipeName, RetryFailed, Root, Settings

if TYPE_CHECKING:
    from tasks.generating.config import GenerateResult

WHAT, HOW, WHERE = "What it shows", "Size, length and look", "With what"
# Settings that suit the released weights. Source: the published recommendations.
FROM_IMAGE = {"num_inference_steps": 10, "video_guidance_scale": 4.0}
PICTURE = {"guidance_scale": 9.0}
FRAMES_PER_LATENT = 8  # after the first
MAX_SECONDS = 3600
MAY_BE_EMPTY = ("negative_prompt",)  # then guidance steers away from the empty text


@dataclass(frozen=True)
class Content:
    """Options that say what the clip shows."""

    prompts: Annotated[
        str, typer.Option("--prompts", help="Text file with one prompt a line.", rich_help_panel=WHAT)
    ] = ""
    image: Annotated[str, typer.Option("--image", help="Picture to start from.", rich_help_panel=WHAT)] = ""
    video: Annotated[
        str, typer.Option("--video", help="Video to go on from; at most half of the clip.", rich_help_panel=WHAT)
    ] = ""
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", help="What to steer away from.", rich_help_panel=WHAT)
    ] = None
    rewrite: Annotated[
        str,
        typer.Option(
            "--rewrite",
            metavar="normal|director",
            help="Let a language model (generate.rewriter) make the prompt fuller, or directions for the camera of it.",
            rich_help_panel=WHAT,
        ),
    ] = ""


@dataclass(frozen=True)
class Look:
    """Options of size, length, steps, guidance and seed."""

    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Length of the clip, the given part included.", rich_help_panel=HOW),
    ] = None
    frames: Annotated[
        int | None, typer.Option("--frames", help="The same in frames; 1 is a picture.", rich_help_panel=HOW)
    ] = None
    height: Annotated[int | None, typer.Option("--height", help="px, a multiple of 64.", rich_help_panel=HOW)] = None
    width: Annotated[int | None, typer.Option("--width", help="px, a multiple of 64.", rich_help_panel=HOW)] = None
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps at each resolution; more is slower.", rich_help_panel=HOW)
    ] = None
    guidance: Annotated[
        str,
        typer.Option(
            "--guidance",
            metavar="G or FIRST,REST",
            help="How closely to follow the prompt: for all, or for the first frame and the rest; 1 is off.",
            rich_help_panel=HOW,
        ),
    ] = ""
    seed: Annotated[int | None, typer.Option("--seed", help="Another number, another clip.", rich_help_panel=HOW)] = (
        None
    )


@dataclass(frozen=True)
class Models:
    """Options that say which weights generate, and where."""

    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="DIR",
            help="Released directory; without it the champion of ROOT generates.",
            rich_help_panel=WHERE,
        ),
    ] = ""
    variant: Annotated[
        str, typer.Option("--variant", help="Which DiT of DIR: 384p, 768p or image.", rich_help_panel=WHERE)
    ] = ""
    max_memory: Annotated[
        str,
        typer.Option("--max-memory", metavar="8GiB", help="Stay within; default: what is free.", rich_help_panel=WHERE),
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
    """Generate clips or pictures; files land under ROOT/media/generated, and their paths are printed.

    The champion of ROOT generates, at the size of the recipe (default: demo). With --weights DIR a directory of
    released weights does, at the size that suits its variant.

    Prompts that are given here replace those of the recipe. What exists already is not made again: another --seed
    gives another clip. Everything else that can be set is under `generate` in a recipe, for --set.

    Example: `pyramid generate "a rabbit in a meadow" --root ./pyramid-demo`

    Example: `pyramid generate "waves at dusk" --weights ~/pyramid-flow-miniflux --variant 768p --seconds 5`

    Example: `pyramid generate "a lighthouse" --weights ~/pyramid-flow-miniflux --variant 768p --frames 1`

    Example: `pyramid generate "it starts to rain" --image garden.jpg --weights ~/pyramid-flow-miniflux --variant 384p`

    Example: `pyramid generate "the boat turns" --video boat.mp4 --weights ~/pyramid-flow-sd3 --variant 768p`

    Example: `pyramid generate --prompts ideas.txt --weights ~/pyramid-flow-sd3 --variant 384p --max-memory 8GiB`
    """
    from flows.cli.launch import BAD_INPUT, FAILURE, complain, launch
    from flows.recipe import parse_settings

    variant = models.variant or lone_variant(models.weights)
    recipe = recipe or (suiting_recipe(variant) if models.weights else "demo")
    try:
        fps = functools.partial(request_fps, recipe, parse_settings(settings or ()))
        asked = asked_prompts(prompt, content.prompts) | asked_settings(content, look, models, fps, variant)
    except ValueError as err:
        complain(str(err))
        raise typer.Exit(BAD_INPUT) from err
    options = {"ray__address": ray, "retry_failed": retry_failed}
    done: GenerateResult = launch("generate", root, recipe, settings, asked, **options)
    for file in done.files:
        typer.echo(file)
    for failure in done.failures:
        complain(f"not made: {failure}; after mending it: the same command with --retry-failed")
    if done.failures:
        raise typer.Exit(FAILURE)


def asked_prompts(prompt: str, file: str) -> dict[str, Any]:
    """Overrides by which what the command line asks for, if anything, replaces all prompts of the recipe."""
    if not prompt and not file:
        return {}
    return {"generate.prompts": [prompt] if prompt else [], "generate.prompts_file": file}


def asked_settings(
    content: Content, look: Look, models: Models, fps: Callable[[], int], variant: str
) -> dict[str, Any]:
    """Overrides of the recipe, by dotted name, for the options that were given. fps: of the recipe's request.

    Raises:
        ValueError: no clip has the length, or the guidance is no number.
    """
    step = {"image": content.image, "video": content.video, "seed": look.seed, "rewrite": content.rewrite}
    step |= {name: getattr(models, name) for name in ("weights", "variant", "max_memory", "dtype", "device")}
    if models.weights:
        step |= {"num_gpus": 0, "num_cpus": 1}  # one GPU if there is one; those recipes speak of a cluster
    is_picture = variant.endswith("image") and look.seconds is None and look.frames is None
    request = {
        "height": look.height,
        "width": look.width,
        "negative_prompt": content.negative_prompt,
        "num_latent_frames": 1 if is_picture else asked_latent_frames(look.seconds, look.frames, fps),
    }
    request = suiting_look(request, bool(models.weights), bool(content.image))
    request |= asked_steps(look.steps) | asked_guidance(look.guidance)
    return given("generate", step) | given("generate.request", request)


def given(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a section that were given, by dotted name."""
    return {
        f"{section}.{name}": value
        for name, value in values.items()
        if value is not None and (value != "" or name in MAY_BE_EMPTY)
    }


def lone_variant(weights: str) -> str:
    """The only DiT of a directory, which need not be named; empty if there are none or several."""
    found = [path.name for path in Path(weights).expanduser().glob("diffusion_transformer_*")] if weights else []
    return found[0] if len(found) == 1 else ""


def suiting_recipe(variant: str) -> str:
    """The recipe whose request suits a released variant."""
    return "384p" if "384p" in variant else "768p"


def suiting_look(asked: Mapping[str, Any], released: bool, from_image: bool) -> dict[str, Any]:
    """What was asked for, and what is recommended for released weights where they make pictures or start from one."""
    recommended = {}
    if released and asked["num_latent_frames"] == 1:
        recommended = PICTURE
    elif released and from_image:
        recommended = FROM_IMAGE
    return {**recommended, **asked}


def request_fps(recipe: str, settings: Mapping[str, Any]) -> int:
    """Frames a second of the clips that a recipe with these overrides generates."""
    from flows.recipe import load_recipe

    return load_recipe(recipe, settings).generate.request.fps


def asked_latent_frames(seconds: float | None, frames: int | None, fps: Callable[[], int]) -> int | None:
    """Latent frames of a clip of so many seconds or frames; None where neither is asked for.

    fps: frames a second of the clip; called only where it is needed, since it reads the recipe.

    Raises:
        ValueError: both are, or no clip has that length.
    """
    if seconds is None and frames is None:
        return None
    if seconds is not None and frames is not None:
        raise ValueError("both --seconds and --frames are given: one of them says how long the clip is")
    if seconds is not None:
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"--seconds {seconds:g}: give a length from 0 to {MAX_SECONDS}")
        return 1 + round(seconds * fps() / FRAMES_PER_LATENT)
    assert frames is not None
    before = max(0, frames - 1) // FRAMES_PER_LATENT
    if frames < 1 or (frames - 1) % FRAMES_PER_LATENT:
        near = " or ".join(str(1 + FRAMES_PER_LATENT * count) for count in (before, before + 1))
        raise ValueError(f"--frames {frames}: a clip has 1 + a multiple of {FRAMES_PER_LATENT} frames; nearest: {near}")
    return 1 + before


def asked_steps(steps: int | None) -> dict[str, Any]:
    """One number of steps for everything."""
    return {} if steps is None else {"num_inference_steps": steps, "video_num_inference_steps": steps}


def asked_guidance(text: str) -> dict[str, Any]:
    """`7`, or `7,5` for the first frame and the rest.

    Raises:
        ValueError: it is neither.
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
