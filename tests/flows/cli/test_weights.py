"""`pyramid weights inspect` on real files: what it prints, and how it ends. Runs in 5 s."""

import json
import shutil

from click.testing import Result
from typer.testing import CliRunner

from flows.cli.main import app


def inspect(*arguments) -> Result:
    return CliRunner().invoke(app, ["weights", "inspect", *map(str, arguments)], env={"COLUMNS": "80"})


def test_a_whole_directory_is_shown_part_by_part(released):
    done = inspect(released("miniflux"))
    assert done.exit_code == 0, done.stderr
    assert "pyramid-flow-miniflux: a released directory, miniFLUX variant" in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "diffusion_transformer_image miniFLUX 20.3 k bfloat16 40.6 kB 62" in lines
    assert "tokenizer tokenizer 746 B ok" in lines
    assert "diffusion_transformer_768p as diffusion_transformer_384p" in lines  # its settings
    assert "shift -0.04 scale 1/1.8726" in done.stdout
    assert "complete, " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_is_wrong_is_named_and_ends_with_1(released, tmp_path):
    folder = shutil.copytree(released("sd3"), tmp_path / "sd3")
    with (folder / "causal_video_vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(50_000)
    shutil.rmtree(folder / "tokenizer_3")
    done = inspect(folder)
    assert done.exit_code == 1, done.stderr
    assert "wrong: tokenizer_3 is missing" in done.stdout
    assert "wrong: " + str(folder / "causal_video_vae" / "diffusion_pytorch_model.safetensors") in done.stdout
    assert "0 of 160" in done.stdout
    assert "complete" not in done.stdout


def test_json_says_the_same_and_the_hash_is_that_of_the_loader(released):
    from pyramid_model.weights.weights import weights_hash

    folder = released("sd3") / "diffusion_transformer_768p"
    done = inspect(folder, "--json", "--hash")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["is_complete"] is True
    (part,) = facts["parts"]
    assert (part["kind"], part["num_tensors"], part["facts"]["blocks"]) == ("MMDiT", 75, "2 double")
    assert part["weights_hash"] == weights_hash(folder)


def test_other_folders_and_no_folder_are_refused(tmp_path):
    done = inspect(tmp_path / "nowhere")
    assert done.exit_code == 2
    assert f"{tmp_path / 'nowhere'} is not a folder" in done.stderr
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    done = inspect(tmp_path)
    assert done.exit_code == 1
    assert f"{tmp_path} is a FluxPipeline directory; expected a released directory" in done.stdout
    assert "Traceback" not in done.stderr
