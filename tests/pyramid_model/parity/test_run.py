"""Our models and paths against vectors of the original implementation; see parity/README.md. Runs in about 25 s."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.parity.case import Case
from pyramid_model.parity.run import KINDS, all_passed, find_cases, kind_of, run_case, run_cases

CASES = Path(__file__).parent


MORE_CASES = Path(__file__).parents[4] / "shared" / "parity" / "dev"


def copied(name: str, folder: Path, **changes) -> Path:
    """A copy of a case with some keys of its config changed."""
    shutil.copytree(CASES / name, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", [path.name for path in find_cases(CASES)])
def test_case_of_the_original_passes(name):
    result = run_case(CASES / name, name)
    assert result.verdict == "pass", result


def test_every_kind_has_a_case_here():
    kinds = {kind_of(Case(path)) for path in find_cases(CASES)}
    assert kinds == KINDS.keys()


@pytest.mark.skipif(not MORE_CASES.is_dir(), reason=f"no folder {MORE_CASES}")
def test_every_case_in_the_shared_folder_passes():
    results = list(run_cases(MORE_CASES))
    assert all_passed(results), [result for result in results if result.verdict not in ("pass", "unsupported")]


@pytest.mark.parametrize(
    ("name", "output", "atol", "rtol"),
    [
        ("vae_encode_image", "out.mode", 2e-5, 0),
        ("vae_decode", "out.image", 5e-5, 0),
        ("vae_tiled", "out.moments_chunk", 2e-5, 0),
        ("vae_loss", "out.lpips", 0, 1e-5),
        ("vae_loss", "out.step11.disc_loss", 0, 1e-5),
        ("vae_loss", "out.step11.grad_last_layer", 0, 1e-4),
        ("scheduler", "v1.timesteps_per_stage.1", 0, 1e-9),
        ("scheduler", "v2.step.samples", 1e-6, 0),
        ("renoise", "out.stage2", 1e-6, 0),
        ("train_noise_image", "out.target.3", 1e-6, 0),
        ("train_noise_ar_short", "out.noisy.2.0", 1e-6, 0),
        ("miniflux_train_step", "out.loss", 0, 1e-5),
        ("miniflux_train_step", "grad.proj_out.weight", 0, 1e-4),
        ("mmdit_forward_ar", "out.0", 2e-5, 0),
        ("miniflux_generate_t2i", "out.latent", 3e-4, 1e-4),
    ],
)
def test_an_output_beyond_ten_tolerances_fails(tmp_path, name, output, atol, rtol):
    folder = copied(name, tmp_path / "case")
    tensors = load_file(folder / "tensors.safetensors")
    largest = tensors[output].view(-1)[tensors[output].abs().argmax()]
    largest += largest.sign() * 10 * (atol + rtol * largest.abs())
    save_file(tensors, folder / "tensors.safetensors")
    result = run_case(folder, "case")
    assert result.verdict == "FAIL"
    assert output in result.note
    assert not all_passed([result])


def test_frames_that_are_two_levels_off_fail(tmp_path):
    folder = copied("miniflux_generate_t2i", tmp_path / "case")
    tensors = load_file(folder / "tensors.safetensors")
    pixel = tensors["out.frames_u8"].view(-1)
    pixel[0] += 2 if pixel[0] < 128 else 254
    save_file(tensors, folder / "tensors.safetensors")
    assert run_case(folder, "case").verdict == "FAIL"


def test_not_a_number_fails(tmp_path):
    folder = copied("renoise", tmp_path / "case")
    tensors = load_file(folder / "tensors.safetensors")
    tensors["out.stage1"].view(-1)[0] = float("nan")
    save_file(tensors, folder / "tensors.safetensors")
    assert run_case(folder, "case").verdict == "FAIL"


def test_a_recorded_shape_that_does_not_fit_fails_and_the_other_checks_count(tmp_path):
    folder = copied("renoise", tmp_path / "case")
    tensors = load_file(folder / "tensors.safetensors")
    tensors["out.stage1"] = tensors["out.stage1"][..., :-1].contiguous()
    save_file(tensors, folder / "tensors.safetensors")
    result = run_case(folder, "case")
    assert result.verdict == "FAIL"
    assert re.search(r"beyond tolerance: out\.stage1 \(ours has shape \(.*\), the reference \(.*\)\)$", result.note)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"case": "vae_dream"}, ["config.json", "vae_dream", "vae_decode"]),
        ({"case": "train_noisy"}, ["config.json", "train_noisy"]),
        ({"kind": "unet"}, ["unet", "mmdit"]),
        ({"gamma": 0.5}, ["gamma", "0.5"]),
        ({"stages": [1, 2]}, ["stages", "stage_range"]),
        ({"sample_ratios": [1, 2]}, ["sample_ratios"]),
    ],
)
def test_a_case_that_is_not_understood_says_what_is_wrong(tmp_path, changes, words):
    result = run_case(copied("train_noise_image", tmp_path / "case", **changes), "case")
    assert result.verdict == "error"
    assert all(word in result.note for word in [str(tmp_path / "case"), *words]), result.note


def break_config(folder: Path) -> str:
    (folder / "config.json").write_text('{"case": "renoise",')
    return "config.json is not valid JSON"


def lose_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "no config.json"


def cut_tensors(folder: Path) -> str:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "tensors.safetensors is not a complete safetensors file"


def lose_tensors(folder: Path) -> str:
    (folder / "tensors.safetensors").unlink()
    return "no tensors.safetensors"


def lose_an_input(folder: Path) -> str:
    tensors = load_file(folder / "tensors.safetensors")
    del tensors["in.latent"]
    save_file(tensors, folder / "tensors.safetensors")
    return "tensors.safetensors has no tensor 'in.latent'"


def add_an_output(folder: Path) -> str:
    tensors = load_file(folder / "tensors.safetensors")
    save_file(tensors | {"out.stage9": torch.zeros(1)}, folder / "tensors.safetensors")
    return "not checked: out.stage9"


@pytest.mark.parametrize("damage", [break_config, lose_config, cut_tensors, lose_tensors, lose_an_input, add_an_output])
def test_a_damaged_case_is_an_error_that_names_the_file(tmp_path, damage):
    folder = copied("renoise", tmp_path / "case")
    words = damage(folder)
    result = run_case(folder, "case")
    assert result.verdict == "error"
    assert words in result.note
    assert str(folder) in result.note


def test_the_kind_is_read_from_the_config_and_the_folder_may_have_any_name(tmp_path):
    copied("renoise", tmp_path / "vae_decode_17")
    (result,) = run_cases(tmp_path)
    assert result.verdict == "pass"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vae_decode_chunked_odd", "vae_decode_chunked"),
        ("vae_decode_2", "vae_decode"),
        ("train_noise_ar_short", "train_noise"),
        ("mmdit_train_step_b2", "mmdit_train_step"),
    ],
)
def test_the_longest_known_kind_counts(tmp_path, name, kind):
    assert kind_of(Case(copied("renoise", tmp_path / "case", case=name))) == kind


def test_unsupported_cases_neither_pass_nor_fail_a_run(tmp_path):
    copied("renoise", tmp_path / "a", case="hunyuan_schedule")
    assert [result.verdict for result in run_cases(tmp_path)] == ["unsupported"]
    assert not all_passed(list(run_cases(tmp_path)))
    copied("renoise", tmp_path / "b")
    assert all_passed(list(run_cases(tmp_path)))
