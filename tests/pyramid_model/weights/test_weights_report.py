"""Reports on folders of weights, from configs and headers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.weights.released_names import WEIGHTS_FILE
from pyramid_model.weights.weights import load_dit, weights_hash
from pyramid_model.weights.weights_report import inspect_weights

TEXT_PARTS = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"]


PARTS = {
    "miniflux": [*(f"diffusion_transformer_{name}" for name in ("384p", "768p", "image")), *TEXT_PARTS[:4]],
    "sd3": [*(f"diffusion_transformer_{name}" for name in ("384p", "768p")), *TEXT_PARTS],
}


@pytest.fixture
def copied(released, tmp_path):
    """`copied(variant)`: a released directory that may be changed."""
    return lambda variant: shutil.copytree(released(variant), tmp_path / variant)


@pytest.mark.parametrize(("variant", "name"), [("miniflux", "miniFLUX"), ("sd3", "SD3")])
def test_the_report_of_a_whole_directory_counts_what_is_in_it(released, variant, name):
    report = inspect_weights(released(variant))
    assert report.is_complete
    assert report.variant == name
    assert [part.name for part in report.parts] == ["causal_video_vae", *PARTS[variant]]
    dit = load_dit(released(variant) / "diffusion_transformer_384p")
    part = report.parts[1]
    assert part.num_parameters == sum(weight.numel() for weight in dit.parameters())
    assert part.num_tensors == part.num_expected == len(dit.state_dict())
    assert part.dtypes == {"bfloat16": part.num_tensors}
    assert part.size_bytes == 2 * sum(value.numel() for value in dit.state_dict().values())


def test_the_report_reads_files_of_torch_save_and_shards_too(copied):
    folder = copied("miniflux")
    before = {part.name: part for part in inspect_weights(folder).parts}
    dit, t5 = folder / "diffusion_transformer_384p", folder / "text_encoder_2"
    torch.save(load_file(dit / WEIGHTS_FILE), dit / "diffusion_pytorch_model.bin")
    (dit / WEIGHTS_FILE).unlink()
    tensors = load_file(t5 / "model.safetensors")
    (t5 / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + (name > 'encoder.g')}-of-00002.safetensors" for name in tensors}
    for file in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == file}, t5 / file)
    (t5 / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert {part.name: part for part in inspect_weights(folder).parts} == before


def test_the_report_of_one_model_of_ours_says_which_it_is(copied):
    folder = copied("miniflux") / "causal_video_vae"
    (folder / "training.json").write_text(json.dumps({"model_id": "0123456789abcdef"}))
    report = inspect_weights(folder, with_hash=True)
    (part,) = report.parts
    assert report.is_complete
    assert part.facts["trained here, model"] == "01234567"
    assert part.weights_hash == weights_hash(folder)
    (folder / "training.json").write_text("{")
    assert "training.json (1 bytes) is not valid JSON" in inspect_weights(folder).parts[0].problems[0]


def test_the_report_reads_headers_alone(tmp_path, released):
    """Tensors of 400 GB that no disk holds, described by a header of their true length, in a sparse file."""
    folder = shutil.copytree(released("sd3") / "causal_video_vae", tmp_path / "vae")
    path = folder / WEIGHTS_FILE
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * 10**11)
    (part,) = inspect_weights(folder).parts
    assert part.size_bytes == 4 * 10**11
    assert "unexpected: x" in part.problems
    assert len(part.problems) == 1 + part.num_expected


def test_the_report_names_everything_that_is_wrong(copied):
    folder = copied("miniflux")
    vae, dit = (folder / name / WEIGHTS_FILE for name in ("causal_video_vae", "diffusion_transformer_384p"))
    with vae.open("r+b") as file:
        file.truncate(50_000)
    tensors = load_file(dit)
    tensors["extra"] = tensors.pop("x_embedder.weight")
    tensors["proj_out.bias"] = torch.zeros(3)
    save_file(tensors, dit)
    config = folder / "diffusion_transformer_768p" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "FluxTransformer2DModel"}))
    (folder / "tokenizer" / "vocab.json").write_text("")
    shutil.rmtree(folder / "tokenizer_2")
    report = inspect_weights(folder)
    assert report.problems == ("tokenizer_2 is missing",)
    problems = {part.name: part.problems for part in report.parts if part.problems}
    assert problems["diffusion_transformer_384p"] == (
        "missing: x_embedder.weight",
        "unexpected: extra",
        "shape of proj_out.bias: (3,) in the file, (16,) by the config",
    )
    for name, words in {
        "causal_video_vae": "is cut off: it has 50,000 bytes",
        "diffusion_transformer_768p": "of a FluxTransformer2DModel; expected: causal VAE, miniFLUX, MMDiT, T5 or CLIP",
        "tokenizer": "vocab.json is empty",
    }.items():
        assert words in problems.pop(name)[0]
    assert list(problems) == ["diffusion_transformer_384p"]


def test_a_text_encoder_that_only_torch_save_wrote_counts_as_missing_as_it_is_not_read(copied):
    folder = copied("miniflux") / "text_encoder"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (part,) = inspect_weights(folder).parts
    assert part.problems[0].startswith(f"no model.safetensors in {folder}")


def test_parts_of_different_directories_are_told_from_each_other(copied):
    folder, other = copied("miniflux"), copied("sd3")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(other / "text_encoder", folder / "text_encoder")
    problems = inspect_weights(folder).problems
    assert problems[0] == (
        "diffusion_transformer_384p has pooled width 16, text_encoder 12: they do not belong together"
    )
    shutil.rmtree(folder / "text_encoder_2")
    shutil.copytree(other / "text_encoder_2", folder / "text_encoder_2")
    assert inspect_weights(folder).problems == ("text_encoder_2 holds a CLIP; expected: T5",)
