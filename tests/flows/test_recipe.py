"""Recipes: what a wrong one says. Runs in 2 s."""

import pytest

from flows.cli.generate import asked_prompts, own_defaults
from flows.cli.settings import combined
from flows.recipe import (
    PATHS,
    Recipe,
    RecipeError,
    dotted_names,
    load_recipe,
    parse_settings,
    recipe_names,
)
from pyramid_model.train.buckets import fitting_bucket, parse_bucket
from tasks.selecting.select_config import PRESETS
from tasks.tables.schemas import CLIP_FIGURES
from tasks.tables.url_secrets import from_environment


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_valid(name):
    assert isinstance(load_recipe(name), Recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_computes_every_score_that_it_limits(name):
    recipe = load_recipe(name)
    assert set(recipe.select.limited) <= {*CLIP_FIGURES, *recipe.scores.computed}


@pytest.mark.parametrize("name", ["384p", "768p"])
def test_a_large_recipe_has_the_limits_of_its_preset_once_the_aesthetic_head_is_named(name):
    settings = {"scores.embeddings.aesthetic_head": "/models/head.pth"}
    recipe = load_recipe(name, settings | {"select.thresholds.aesthetic.min": 5})
    assert set(recipe.select.limited) <= {*CLIP_FIGURES, *recipe.scores.computed}
    assert set(PRESETS[recipe.select.preset]) - {"duration_s"} <= set(recipe.select.limited)


@pytest.mark.parametrize("fps", [24, 25, 30, 50, 60])
@pytest.mark.parametrize("name", ["384p", "768p"])
def test_a_long_shot_of_any_common_aspect_and_rate_is_trained_on(name, fps):
    recipe = load_recipe(name)
    rules, num_frames = recipe.select.rules(), recipe.clips.max_frames
    buckets = [parse_bucket(text) for text in rules.buckets]
    for height, width in ((1080, 1920), (1920, 1080), (1080, 1080), (1080, 1440), (804, 1920)):
        scale = min(1, recipe.clips.max_side / max(height, width))
        size = int(height * scale), int(width * scale)
        bucket, why = fitting_bucket(*size, num_frames, fps, buckets, recipe.select.max_upscale)
        assert bucket, (size, why)
        assert (bucket.height > bucket.width) == (height > width)
    duration = rules.thresholds.get("duration_s")
    assert duration is None or num_frames / fps <= duration.max


@pytest.mark.parametrize("name", ["demo", "smoke", "384p", "768p", "image", "finetune-lora"])
def test_prompts_are_sampled_at_a_size_that_was_trained(name):
    recipe = load_recipe(name)
    buckets = map(parse_bucket, recipe.select.buckets)
    sizes = {(bucket.height, bucket.width, 1 + bucket.num_frames // 8) for bucket in buckets}
    for request in (recipe.generate.request, recipe.evaluate.request):
        assert (request.height, request.width, request.num_latent_frames) in sizes


def test_misspelt_key_is_named_with_the_setting_that_was_meant():
    with pytest.raises(RecipeError, match=r"no setting 'train_dit.optim.num_step'.*mean 'train_dit.optim.num_steps'"):
        load_recipe("demo", {"train_dit.optim.num_step": 3})


def test_misspelt_section_is_named_too():
    with pytest.raises(RecipeError, match=r"no setting 'trian_dit'.*mean 'train_dit'"):
        load_recipe("demo", {"trian_dit.optim.num_steps": 3})


def test_key_in_the_wrong_section_finds_its_place():
    with pytest.raises(RecipeError, match=r"mean 'ingest.source'"):
        load_recipe("demo", {"clips.source": "videos"})


def test_wrong_type_shows_the_value_and_what_would_be_right():
    with pytest.raises(RecipeError, match=r"--set: train_dit.optim.num_steps = 'many': .*valid integer"):
        load_recipe("demo", {"train_dit.optim.num_steps": "many"})


def test_every_problem_is_told_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ingest: {sourc: x}\nretry_failed: perhaps\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_unknown_recipe_names_the_known_ones():
    with pytest.raises(RecipeError, match=r"demo.*smoke.*Did you mean 'smoke'"):
        load_recipe("smok")


def test_missing_file_and_broken_yaml_are_told_apart(tmp_path):
    with pytest.raises(RecipeError, match="no recipe file"):
        load_recipe(str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("ingest: [unclosed")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(str(broken))
    broken.write_text("- a list")
    with pytest.raises(RecipeError, match="mapping of sections"):
        load_recipe(str(broken))


def test_settings_are_read_as_yaml():
    assert parse_settings(["a.b=3", "c=[x, y]", "d=", "e=null", "f=1e-4"]) == {
        "a.b": 3,
        "c": ["x", "y"],
        "d": "",
        "e": None,
        "f": "1e-4",  # pydantic makes it a number where one is expected
    }
    with pytest.raises(RecipeError, match=r"section.key=value"):
        parse_settings(["train_dit.optim.num_steps"])
    with pytest.raises(RecipeError, match="is a value, not a section"):
        load_recipe("demo", {"retry_failed": True, "retry_failed.x": 1})


def test_value_replaces_the_recipe_and_none_switches_a_section_off():
    assert load_recipe("demo", {"captions.min_overlap": 0.5}).captions.min_overlap == 0.5
    assert load_recipe("demo", {"train_vae": None}).train_vae is None


def test_recipe_survives_the_trip_through_json():
    recipe = load_recipe("demo")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert load_recipe(recipe, {"retry_failed": True}).retry_failed


def test_dotted_names_reach_into_sections():
    names = set(dotted_names(Recipe))
    assert {"ray", "ray.address", "ingest.source"} <= names


def test_relative_source_is_found_from_the_checkout_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = load_recipe("demo").ingest.source
    assert source.endswith("datasets/sample")
    assert source.startswith("/")
    (tmp_path / "videos").mkdir()
    assert load_recipe("demo", {"ingest.source": "videos"}).ingest.source == str(tmp_path / "videos")


def test_every_setting_that_may_be_a_path_is_found_from_where_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("head.pth", "watermark", "clip", "tiny"):
        (tmp_path / name).touch()
    settings = {
        "scores.classifiers": {
            "watermark": {"model": "watermark", "label": "yes"},
            "people": {"model": "org/people", "label": "yes"},
        },
        "scores.embeddings": {"model": "clip", "pretrained": "laion2b", "aesthetic_head": "head.pth"},
    }
    scores = load_recipe("demo", settings).scores
    assert scores.classifiers["watermark"].model == str(tmp_path / "watermark")
    assert scores.classifiers["people"].model == "org/people"  # on Hugging Face
    assert (scores.embeddings.model, scores.embeddings.pretrained) == (str(tmp_path / "clip"), "laion2b")
    assert scores.embeddings.aesthetic_head == str(tmp_path / "head.pth")
    assert load_recipe("demo", {"train_dit.vae": "clip"}).train_dit.vae == str(tmp_path / "clip")
    assert load_recipe("demo").text_features.encoder == "tiny"  # is no folder, whatever lies here


def test_settings_that_may_be_paths_are_settings():
    names = set(dotted_names(Recipe))
    assert [name for name in PATHS if "*" not in name and name not in names] == []


@pytest.mark.parametrize(
    ("prompt", "file", "prompts", "prompts_file"),
    [
        ('a cat, "réd": 猫', "", ('a cat, "réd": 猫',), ""),
        ("", "mine.txt", (), "mine.txt"),
        ("a cat", "mine.txt", ("a cat",), "mine.txt"),
        ("", "", (), "prompts.txt"),
    ],
)
def test_prompts_of_the_command_line_replace_those_of_the_recipe(prompt, file, prompts, prompts_file):
    options = asked_prompts(prompt, file)
    asked = load_recipe("demo", combined({}, options, own_defaults(options, ""))).generate
    assert (asked.prompts, asked.prompts_file.rpartition("/")[2]) == (prompts, prompts_file)


def test_a_key_in_the_place_of_its_name_is_in_no_message():
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m", "api_key_env": "sk-very-secret"}
    with pytest.raises(RecipeError, match=r"captions\.endpoint\.api_key_env = …: this is not the name") as refused:
        load_recipe("demo", {"captions.kind": "dense", "captions.endpoint": endpoint})
    assert "secret" not in str(refused.value)


def test_a_rule_across_settings_is_told_without_the_whole_section():
    with pytest.raises(RecipeError) as refused:
        load_recipe("demo", {"generate.rewrite": "director"})
    assert str(refused.value).startswith("--set: generate: rewrite 'director' needs a language model: set generate.")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("ingest.source", "https://user:SECRET@host/list.txt"),
        ("ingest.media_root", "https://host/videos?X-Amz-Signature=SECRET"),
        ("generate.image", "https://host/a.png?token=SECRET"),
        ("captions.endpoint", {"base_url": "https://user:SECRET@host/v1", "model": "m"}),
        ("captions.endpoint", {"base_url": "https://host/v1?api_key=SECRET", "model": "m"}),
    ],
)
def test_settings_that_prefect_keeps_hold_no_secret(name, url):
    with pytest.raises(RecipeError, match="environment variable") as refused:
        load_recipe("smoke", {name: url})
    assert "SECRET" not in str(refused.value)


def test_a_url_with_a_key_comes_from_the_environment(monkeypatch):
    config = load_recipe("smoke", {"ingest.source": "${SOURCE_URL}", "ray.address": "jobs:http://head:8265"}).ingest
    assert "SECRET" not in config.model_dump_json()
    with pytest.raises(ValueError, match="SOURCE_URL is not set"):
        from_environment(config.source)
    monkeypatch.setenv("SOURCE_URL", "https://host/list.txt?token=SECRET")
    assert from_environment(config.source) == "https://host/list.txt?token=SECRET"
    assert (
        from_environment("https://host/a?") == load_recipe("smoke", {"ingest.source": "https://host/a?"}).ingest.source
    )


@pytest.mark.parametrize("name", ["ingest.source", "ingest.media_root", "captions.sidecar", "generate.prompts_file"])
def test_a_relative_path_that_is_not_here_is_not_looked_for_on_a_cluster(name):
    assert load_recipe("smoke", {name: "not/here"})
    with pytest.raises(RecipeError, match=r"not/here.*: there is no such file here, .* give an absolute path or a URI"):
        load_recipe("smoke", {name: "not/here", "ray.address": "jobs:http://head:8265"})
    assert load_recipe("smoke", {name: "/not/here", "ray.address": "jobs:http://head:8265"})
    assert load_recipe("smoke", {name: "s3://not/here", "ray.address": "jobs:http://head:8265"})
