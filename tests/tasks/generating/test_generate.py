"""What the generate step refuses before a model is loaded, and how many clips it samples together."""

import pytest

from pyramid_model.weights.record import ModelFolder
from tasks.generating.config import GenerateConfig
from tasks.generating.generate import _block_size, _check_champion, _checkpoint, generate
from tasks.models.folders import ModelSet
from tasks.running.errors import StepError


def test_generation_without_prompts_or_champion_says_what_to_do(squares):
    with pytest.raises(ValueError, match=r"set generate\.prompts"):
        generate(squares, GenerateConfig())
    with pytest.raises(StepError, match="there is no champion"):
        generate(squares, GenerateConfig(prompts=("a clip",)))


def test_weights_and_files_that_are_missing_are_named_before_anything_starts(squares):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        generate(squares, GenerateConfig(prompts=("a clip",), weights="/nowhere"))
    with pytest.raises(ValueError, match="write it like 8GiB"):
        GenerateConfig(max_memory="lots")


def test_as_many_clips_at_a_time_as_the_memory_allows_and_at_least_one(tmp_path, write_model_directory):
    folder = write_model_directory(tmp_path)
    request = {"height": 64, "width": 128, "num_latent_frames": 6, "decode_window": 1}
    asked = {"weights": str(folder), "variant": "384p", "request": request, "block_size": 256}
    sizes = []
    for memory in ("1GiB", "40MiB", "10MiB"):
        config = GenerateConfig(**asked, max_memory=memory)
        sizes.append(_block_size(_checkpoint(config), config, 256, "cpu"))
    assert 256 == sizes[0] > sizes[1] > sizes[2] >= 1
    little = GenerateConfig(**asked, max_memory="1MiB")
    with pytest.raises(ValueError, match=r"do not fit into 1\.0 MiB.* a smaller size or fewer latent frames\.$"):
        _block_size(_checkpoint(little), little, 256, "cpu")


def test_what_the_champion_cannot_make_is_refused_before_it_is_loaded(tmp_path, write_model_directory):
    folder = write_model_directory(tmp_path)
    parts = {"dit": folder / "diffusion_transformer_384p", "vae": folder / "causal_video_vae", "encoder": folder}
    models = ModelSet(**{part: ModelFolder(uri=str(path), hash="") for part, path in parts.items()})
    _check_champion(GenerateConfig(), models)
    with pytest.raises(ValueError, match="height 50 px does not divide into 3 stages"):
        _check_champion(GenerateConfig(request={"height": 50}), models)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        _check_champion(GenerateConfig(image=__file__), models)
