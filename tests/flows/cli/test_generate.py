"""`pyramid generate` with a tiny directory of released layout, through the real flow. Runs in about a minute."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flows.cli.generate import (
    asked_guidance,
    asked_latent_frames,
    dotted,
    lone_variant,
    own_defaults,
    suiting_recipe,
    used_lora,
)
from flows.recipe import load_recipe

FPS = 24  # of the recipe 768p
SIZE = ("--height", "64", "--width", "128", "--steps", "1", "--device", "cpu", "--set", "generate.dtype=float32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, write_model_directory) -> Path:
    return write_model_directory(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def generate(prefect_server, weights, root):
    """Runs the command; its printed lines and what it said on standard error."""

    def run(*arguments: str, code: int = 0) -> tuple[list[str], str]:
        command = "import sys; from flows.cli.main import app; sys.argv[0] = 'pyramid'; app()"
        asked = ["generate", "--weights", str(weights), *arguments, "--root", str(root), *SIZE]
        done = subprocess.run(
            [sys.executable, "-c", command, *asked],
            capture_output=True,
            text=True,
            env=prefect_server.environment | {"COLUMNS": "300"},
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.server
@pytest.mark.ray
@pytest.mark.slow
def test_words_become_a_picture_and_a_clip_that_starts_from_it_once(generate, root):
    from pyramid_model.video.video import read_clip
    from tasks.tables.delta import read_table

    lines, _ = generate("a dog", "--variant", "image")
    picture = Path(lines[-1])
    assert (picture.suffix, Image.open(picture).size) == (".png", (128, 64))
    asked = ("a dog " * 100, "--variant", "384p", "--seconds", "0.7", "--image", str(picture), "--max-memory", "2GiB")
    clip, _ = generate(*asked)
    assert "it did not see" in "".join(clip)
    assert re.search(r"within 2GiB, at most [\d.]+ MiB planned: offload none", "".join(clip))
    assert read_clip(clip[-1], height=64, width=128).shape == (17, 64, 128, 3)
    again, _ = generate(*asked)
    assert again[-1] == clip[-1]
    rows = {row["uri"]: row for row in read_table(str(root), "generations").to_pylist()}
    assert len(rows) == 2
    settings = json.loads(rows[clip[-1]]["settings"])
    assert {"image_hash", "variant", "dtype", "vae_hash", "encoder_hash"} <= set(settings)
    assert not {"device", "max_memory", "offload"} & set(settings)
    assert not any("units" in path.name for path in root.glob("runs/*/*"))


@pytest.mark.server
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a dog", "--variant", "384p", "--frames", "137"], ["18", "at most 16", "121 frames"]),
        (
            ["a dog", "--variant", "384p", "--frames", "17", "--max-memory", "1MiB"],
            ["do not fit into 1.0 MiB", "least possible"],
        ),
    ],
)
def test_what_cannot_be_made_is_one_message(generate, arguments, words):
    _, said = generate(*arguments, code=2)
    assert all(word in said for word in words), said


@pytest.mark.server
@pytest.mark.ray
@pytest.mark.slow
def test_a_clip_that_could_not_be_made_is_an_error_each_time_until_it_is_tried_again(generate, weights, root, tmp_path):
    broken = shutil.copytree(weights, tmp_path / "weights")
    file = broken / "diffusion_transformer_384p" / "diffusion_pytorch_model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(file).items()}, file)
    asked = ["--variant", "384p", "--frames", "9", "--weights", str(broken)]
    for _ in range(2):
        _, said = generate("a lost dog", *asked, code=1)
        assert "not generated: 'a lost dog', seed 0: sampling gave NaN or Inf at unit 0" in said
        assert "--retry-failed" in said
    assert not list(root.glob("media/generated/a-lost-dog*"))


@pytest.mark.parametrize(
    ("seconds", "frames", "expected"), [(None, None, None), (5, None, 16), (10, None, 31), (None, 1, 1), (None, 17, 3)]
)
def test_lengths_become_latent_frames(seconds, frames, expected):
    assert asked_latent_frames(seconds, frames, FPS) == expected


@pytest.mark.parametrize(
    ("seconds", "frames", "message"),
    [(5, 121, "both"), (-1, None, "from 0 to"), (None, 20, "nearest: 17 or 25"), (None, 0, "nearest: 1 or 9")],
)
def test_lengths_that_no_clip_has_are_refused(seconds, frames, message):
    with pytest.raises(ValueError, match=message):
        asked_latent_frames(seconds, frames, FPS)


def test_guidance_is_one_number_or_two():
    assert asked_guidance("7") == {"guidance_scale": 7, "video_guidance_scale": 7}
    assert asked_guidance("7,5") == {"guidance_scale": 7, "video_guidance_scale": 5}
    with pytest.raises(ValueError, match=r"--guidance 'much': give a number, or two such as 7,5"):
        asked_guidance("much")
    with pytest.raises(ValueError, match=r"--guidance '7,inf': give finite numbers"):
        asked_guidance("7,inf")


def test_released_weights_get_the_recommended_settings_unless_others_are_asked_for():
    image, weights = {"generate.image": "garden.jpg"}, {"generate.weights": "released"}
    assert own_defaults(image | weights, "768p")["generate.request.video_guidance_scale"] == 4
    assert own_defaults(weights, "diffusion_transformer_image") == {
        "generate.num_gpus": 0,
        "generate.num_cpus": 1,
        "generate.request.num_latent_frames": 1,
        "generate.request.guidance_scale": 9,
    }
    assert own_defaults(image, "") == {}
    assert [suiting_recipe(name) for name in ("384p", "diffusion_transformer_384p", "768p", "")] == [
        *("384p", "384p", "768p", "768p")
    ]


def test_the_only_variant_of_a_directory_need_not_be_named(tmp_path):
    assert lone_variant("") == lone_variant(str(tmp_path)) == ""
    (tmp_path / "diffusion_transformer_384p").mkdir()
    assert suiting_recipe(lone_variant(str(tmp_path))) == "384p"
    (tmp_path / "diffusion_transformer_768p").mkdir()
    assert lone_variant(str(tmp_path)) == ""


def test_only_what_was_given_becomes_a_setting_and_an_empty_negative_prompt_counts():
    values = {"height": None, "negative_prompt": "", "fps": 12}
    overrides = dotted("generate.request", values)
    assert overrides == {"generate.request.negative_prompt": "", "generate.request.fps": 12}
    assert load_recipe("demo", overrides).generate.request.negative_prompt == ""


@pytest.mark.parametrize(
    ("text", "folder", "weight"),
    [
        ("./style", "./style", None),
        ("./style:0.8", "./style", 0.8),
        ("s3://bucket/style", "s3://bucket/style", None),
        ("s3://bucket/style:-1", "s3://bucket/style", -1.0),
        ("odd:name", "odd:name", None),
    ],
)
def test_an_adapter_has_a_folder_and_may_have_a_weight(text, folder, weight):
    assert used_lora(text) == {"folder": folder} | ({} if weight is None else {"weight": weight})
