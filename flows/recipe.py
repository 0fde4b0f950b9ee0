"""A recipe: the settings of every step, for one run from raw videos to generated clips, in one YAML file."""

import difflib
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from pyramid_model.config import Config
from tasks.captioning.config import CaptionsConfig
from tasks.cutting.clips import ClipsConfig
from tasks.encoding.latents import LatentsConfig
from tasks.encoding.text_features import TextFeaturesConfig
from tasks.evaluating.config import EvaluateConfig
from tasks.generating.config import GenerateConfig
from tasks.models.encoders import TINY
from tasks.report.report import ReportConfig
from tasks.running.run import RayConfig
from tasks.scoring.scores import ScoresConfig
from tasks.selecting.duplicates import DuplicatesConfig
from tasks.selecting.select import SelectConfig
from tasks.sources.ingest import IngestConfig
from tasks.tables.plain_text import MAX_VALUE, cut, shown
from tasks.tables.url_secrets import text_without_secrets
from tasks.tables.yaml_text import parse_yaml
from tasks.training.train_dit import TrainDiTConfig
from tasks.training.train_vae import TrainVAEConfig

FOLDER = Path(__file__).parent / "recipes"
# Settings that may be paths; `*` stands for every key. captions.local.name and clips.shots.weights are not in the list:
# their text enters the ids of captions and clips, so it must not change.
PATHS = (
    *("ingest.source", "ingest.media_root"),
    *("scores.classifiers.*.model", "scores.embeddings.model", "scores.embeddings.pretrained"),
    "scores.embeddings.aesthetic_head",
    "captions.sidecar",
    *("text_features.encoder", "text_features.prompts_file"),
    "latents.vae",
    *("train_dit.vae", "train_dit.encoder"),
    *("evaluate.dit", "evaluate.vae", "evaluate.encoder"),
    *("generate.prompts_file", "generate.image", "generate.video", "generate.weights"),
)
FILES = ("ingest.source", "ingest.media_root", "captions.sidecar", *(name for name in PATHS if "prompts_file" in name))
S = TypeVar("S", bound=Config)


class RecipeError(ValueError):
    """A recipe or an override is invalid; the message has each key, its value and what would be right."""


class Recipe(Config):
    """Settings of a whole run, one section for each step. A section that is left out has the step's defaults."""

    ray: RayConfig = RayConfig()
    retry_failed: bool = Field(default=False, description="try rows again that failed in earlier runs")
    ingest: IngestConfig = IngestConfig()
    clips: ClipsConfig = ClipsConfig()
    scores: ScoresConfig = ScoresConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    select: SelectConfig = SelectConfig()
    captions: CaptionsConfig = CaptionsConfig()
    text_features: TextFeaturesConfig = TextFeaturesConfig()
    train_vae: TrainVAEConfig | None = Field(default=None, description="null: train no VAE and use latents.vae")
    latents: LatentsConfig = LatentsConfig()
    train_dit: TrainDiTConfig = TrainDiTConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    generate: GenerateConfig = GenerateConfig()
    report: ReportConfig = ReportConfig()


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(recipe: Recipe | str, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        recipe: a name (`demo`), the path of a YAML file, or a recipe object.
        settings: dotted name -> value, e.g. {"train_vae.optim.num_steps": 100}.

    Raises:
        RecipeError: the recipe does not exist, it is not YAML, a key does not exist, or a value has the wrong type.
    """
    settings = settings or {}
    if isinstance(recipe, Recipe) and not settings:
        return _located(recipe)
    path = _find(recipe) if isinstance(recipe, str) else Path("the recipe")
    sections = _read(path) if isinstance(recipe, str) else recipe.model_dump(mode="json")
    for name, value in settings.items():
        _put(sections, name, value)
    try:
        return _located(Recipe.model_validate(sections))
    except ValidationError as err:
        raise RecipeError(_explain(err, path, settings)) from None


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`["train_vae.optim.num_steps=100"]` -> {"train_vae.optim.num_steps": 100}; values are read as YAML.

    Raises:
        RecipeError: a pair without a name or a `=`, or a value that is not YAML.
    """
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise RecipeError(f"--set {pair}: write it as section.key=value, e.g. --set train_vae.optim.num_steps=100")
        try:
            settings[name.strip()] = parse_yaml(text, "the value") if text else ""
        except ValueError as err:
            value = shown(text)
            raise RecipeError(f"--set {cut(pair, MAX_VALUE)}: {value} is not YAML; quote it: '{name}=\"…\"'") from err
    return settings


def _find(recipe: str) -> Path:
    if recipe in recipe_names():
        return FOLDER / f"{recipe}.yaml"
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise RecipeError(f"there is no recipe file {recipe!r}")
    near = difflib.get_close_matches(recipe, recipe_names(), 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise RecipeError(
        f"there is no recipe {recipe!r}: give one of {', '.join(recipe_names())}, or a path to a YAML file.{hint}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        sections = parse_yaml(path.read_bytes(), f"recipe {path}") or {}
    except ValueError as err:
        raise RecipeError(str(err)) from err
    if not isinstance(sections, dict):
        raise RecipeError(f"recipe {path} must be a mapping of sections ({', '.join(Recipe.model_fields)})")
    return sections


def _located(recipe: Recipe) -> Recipe:
    """Make relative paths absolute if the file exists, below the current folder or else below the checkout.

    Steps may run in another folder or on another machine. A path that does not exist stays; the step reports it.

    Raises:
        RecipeError: a relative path does not exist here, and the step runs on a cluster, where it would be another.
    """
    values, changed = recipe.model_dump(), False
    for name in PATHS:
        *sections, key = name.split(".")
        for holder in _holders(values, sections):
            value = holder.get(key)
            if not value or value == TINY or "://" in value or value.startswith("${"):
                continue
            places = (Path(value).expanduser(), FOLDER.parents[1] / value)
            if existing := next((place for place in places if place.exists()), None):
                holder[key], changed = str(existing.absolute()), True
            elif name in FILES and recipe.ray.address.startswith("jobs:") and not os.path.isabs(places[0]):
                raise RecipeError(
                    f"{name} = {shown(value)}: there is no such file here, and on the cluster of ray.address a "
                    "relative path would start in another folder: give an absolute path or a URI"
                )
    return Recipe.model_validate(values) if changed else recipe


def _holders(section: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The mappings at a dotted name, in which `*` stands for every key; none if a section is left out."""
    if not isinstance(section, dict):
        return
    if not names:
        yield section
        return
    for key in section if names[0] == "*" else names[:1]:
        yield from _holders(section.get(key), names[1:])


def _put(recipe: dict, name: str, value: Any) -> None:
    """Set a dotted name in nested mappings; creates missing sections."""
    *sections, last = name.split(".")
    inner = recipe
    for section in sections:
        if inner.get(section) is None:
            inner[section] = {}
        inner = inner[section]
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {name}: {section!r} is a value, not a section")
    inner[last] = value


def _explain(err: ValidationError, path: Path, settings: Mapping[str, Any]) -> str:
    """One line for each problem: where it was set, dotted name, value, and what would be right."""
    lines = []
    for problem in err.errors():
        name = ".".join(str(part) for part in problem["loc"])
        where = "--set" if any(_inside(name, key) or _inside(key, name) for key in settings) else str(path)
        lines.append(f"{where}: {_problem(name, problem)}")
    return "\n".join(lines)


def _inside(name: str, section: str) -> bool:
    return name == section or name.startswith(f"{section}.")


def _problem(name: str, problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {name!r}.{_nearest(name)}"
    if problem["type"] == "missing":
        return f"{name} is missing and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], Mapping):  # a rule across several settings names them in its message
        return f"{name}: {message[0].lower() + message[1:]}"
    # Users may write the key itself in place of the name of its variable; it must not get into a log.
    value = "…" if name.endswith("api_key_env") else text_without_secrets(shown(problem["input"]))
    return f"{name} = {value}: {message[0].lower() + message[1:]}"


def _nearest(name: str) -> str:
    """The valid setting that was probably meant, and the keys of its section."""
    names = list(dotted_names(Recipe))
    last = name.rpartition(".")[2]
    same_key = [key for key in names if key.rpartition(".")[2] == last]
    near = difflib.get_close_matches(name, [*same_key, *names], 1, cutoff=0.6) or same_key[:1]
    section = name.rpartition(".")[0]
    siblings = [key.removeprefix(section).lstrip(".") for key in names if key.rpartition(".")[0] == section]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Keys of {section or 'a recipe'}: {', '.join(siblings)}." if siblings else hint


def dotted_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of a config, sections included, as `section.key`."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from dotted_names(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models_in(part)]
    return []


def replaced(config: S, **changes: Any) -> S:
    """Copy of a config with some values changed; validates the result."""
    return type(config).model_validate(config.model_dump() | changes)
