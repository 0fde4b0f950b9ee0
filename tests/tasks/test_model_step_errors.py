"""What the model steps say when something is missing or does not fit; no Ray starts (ten seconds)."""

import json

import pytest

from pyramid_model.train.config import VAEBatchConfig
from pyramid_model.weights.record import ModelFolder
from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.captioning.human import Span, best_caption, read_sidecar
from tasks.captioning.prompts import read_prompts
from tasks.encoding.latents import LatentsConfig, latents
from tasks.encoding.text_features import TextFeaturesConfig, text_features
from tasks.evaluating.config import EvaluateConfig
from tasks.evaluating.evaluate import evaluate
from tasks.generating.clip_generator import file_name
from tasks.generating.config import GenerateConfig
from tasks.generating.generate import _block_size, _check_champion, _checkpoint, generate
from tasks.models.folders import ModelSet, writing_folder
from tasks.running.errors import StepError
from tasks.running.run import Run
from tasks.tables.appending import append_block
from tasks.tables.current import captions_of
from tasks.tables.delta import Lineage, ok_row
from tasks.training.train_dit import TrainDiTConfig, train_dit
from tasks.training.train_vae import TrainVAEConfig, train_vae

SPANS = [Span(0.0, 2.0, "first"), Span(2.0, 5.0, "second")]


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [(0.1, 1.9, ("first", 1.0)), (1.5, 3.5, ("second", 0.75)), (4.0, 8.0, ("second", 0.25)), (6.0, 7.0, ("", 0.0))],
)
def test_the_caption_that_covers_most_of_a_clip_is_taken(start_s, end_s, expected):
    assert best_caption(SPANS, start_s, end_s) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,start,text\n", "lacks the columns"),
        ("file,start_s,end_s,text\na.mp4,zero,1,x\n", "line 2"),
        ("file,start_s,end_s,text\na.mp4,0,1,caf\udce9\n", r"captions\.csv, line 2: it is not UTF-8"),
    ],
)
def test_a_wrong_caption_file_is_named_with_its_line(tmp_path, content, message):
    file = tmp_path / "captions.csv"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(StepError, match=message):
        read_sidecar(str(file))


def test_a_caption_file_that_is_named_and_missing_stops_the_step(squares):
    with pytest.raises(StepError, match=r"there is no caption file .*captions\.sidecar"):
        captions(squares, CaptionsConfig(sidecar="/nowhere/captions.csv"))


def test_steps_say_which_step_must_run_first(squares):
    with pytest.raises(StepError, match="run the captions step first"):
        text_features(squares, TextFeaturesConfig())
    with pytest.raises(StepError, match="run the train_vae step, or set `vae`"):
        latents(squares, LatentsConfig())
    with pytest.raises(StepError, match="run the train_vae step"):
        train_dit(squares, TrainDiTConfig())
    with pytest.raises(StepError, match="run the train_dit step"):
        evaluate(squares, EvaluateConfig())


def test_a_folder_without_a_model_is_named(squares):
    with pytest.raises(StepError, match="there is no model folder '/nowhere'"):
        latents(squares, LatentsConfig(vae="/nowhere"))


@pytest.mark.parametrize(("num_frames", "message"), [(8, "takes 1 \\+ 8k frames"), (17, "clips of 9 frames")])
def test_training_cuts_must_fit_the_vae_and_the_clips(squares, num_frames, message):
    with pytest.raises(StepError, match=message):
        train_vae(squares, TrainVAEConfig(batch=VAEBatchConfig(num_frames=num_frames)))


@pytest.mark.parametrize("setting", ["model", "mmdit"])
def test_a_vae_with_other_channels_than_the_dit_is_refused(squares, tmp_path, setting):
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"encoder_out_channels": 4}))
    row = {"model_id": "v", "kind": "vae", "weights_hash": "w", "uri": str(folder), "config": "{}", "metrics": "{}"}
    append_block(squares.root, "models", [ok_row({}, **row)], "vae", Lineage("test", "train_vae", "1", "", ""))
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "model.safetensors").write_bytes(b"weights")
    config = TrainDiTConfig.model_validate({"encoder": str(encoder), setting: {"latent_channels": 16}})
    with pytest.raises(StepError, match=rf"makes 4 latent channels .*train_dit\.{setting}\.l.* is 16: set it to 4"):
        train_dit(squares, config)


def test_a_batch_that_does_not_divide_into_the_stages_is_refused_at_once():
    with pytest.raises(ValueError, match=r"optim\.batch_size 4 does not divide into 3 columns.* set it to 6"):
        TrainDiTConfig.model_validate({"optim": {"batch_size": 4}})


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


def test_prompts_come_from_the_list_and_the_file_each_once(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# comment\n a  cat \n\nA dog\na cat\n")
    assert read_prompts(["A dog", "bird"], str(file)) == ["A dog", "bird", "a cat"]
    assert read_prompts(["#1 fan", " "], str(file)) == ["#1 fan", "a cat", "A dog"]  # comments are of files
    with pytest.raises(ValueError, match="cannot read prompts_file"):
        read_prompts([], str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(
    ("prompt", "expected"), [("A cat, running!", "a-cat-running-7-01234567.mp4"), ("猫が走る", "clip-7-01234567.mp4")]
)
def test_generated_files_are_named_after_their_prompt(prompt, expected):
    assert file_name(prompt, 7, "0123456789abcdef") == expected


def test_captions_of_an_edited_file_replace_the_old_ones(tmp_path):
    run = Run(root=str(tmp_path))
    lineage = Lineage("test", "captions", "1", "", "")
    for text_hash, text in (("one", "old"), ("two", "new")):
        row = {"caption_id": text_hash, "clip_id": "c", "kind": "human", "text": text, "prompt_hash": text_hash}
        append_block(run.root, "captions", [ok_row({}, **row)], text_hash, lineage)
    assert captions_of(run.root, ["c"]) == {"c": "new"}
    assert captions_of(run.root, ["c"], "human:one") == {"c": "old"}
    assert captions_of(run.root, ["d"]) == {}


def test_a_model_folder_appears_whole_or_not_at_all(tmp_path):
    uri = str(tmp_path / "models" / "m")
    with pytest.raises(RuntimeError), writing_folder(uri) as folder:  # noqa: PT012
        (tmp_path / "models").joinpath(folder, "half").write_text("x")
        raise RuntimeError
    assert not list((tmp_path / "models").iterdir())
    for content in ("first", "second"):
        with writing_folder(uri) as folder:
            (tmp_path / folder / "file").write_text(content)
    assert (tmp_path / "models" / "m" / "file").read_text() == "first"
