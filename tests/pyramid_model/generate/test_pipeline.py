"""One object from prompts to clips, on tiny models in released directories (about half a minute)."""

import json
import re
import shutil
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pyramid_model.config import MINIFLUX_LATENT_NORM, SD3_LATENT_NORM
from pyramid_model.generate.batch import ClipBatch
from pyramid_model.generate.checks import check_checkpoint
from pyramid_model.generate.model_sizes import sizes_of_checkpoint
from pyramid_model.generate.pipeline import NotFiniteError, VideoPipeline
from pyramid_model.generate.prompt import style_of
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.weights.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = {"height": 64, "width": 128, "num_inference_steps": 1, "video_num_inference_steps": 1}
CLIP = GenerationRequest(**SIZE, num_latent_frames=3)
PICTURE = GenerationRequest(**SIZE, num_latent_frames=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_model_directory):
    return write_model_directory(tmp_path_factory.mktemp("miniflux"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return VideoPipeline.from_pretrained(folder, "384p", dtype="float32", device="cpu")


@pytest.fixture
def photo():
    """A picture of another shape than the clip: left half red, right half blue."""
    pixels = np.zeros((90, 300, 3), np.uint8)
    pixels[:, :150, 0], pixels[:, 150:, 2] = 220, 220
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["miniflux", "sd3"])
def test_a_released_directory_of_either_model_makes_a_clip(tmp_path, write_model_directory, kind):
    folder = write_model_directory(tmp_path, kind)
    pipeline = VideoPipeline.from_pretrained(folder, "384p", dtype="float32", device="cpu")
    made = pipeline.generate(ClipBatch(["a dog"], CLIP))
    (video,) = made.videos
    assert (video.shape, video.dtype) == ((17, 64, 128, 3), np.uint8)
    assert read_checkpoint(folder, "384p").norm == {"miniflux": MINIFLUX_LATENT_NORM, "sd3": SD3_LATENT_NORM}[kind]
    assert made.notes == ()


def test_frames_a_tensor_and_latents_are_the_same_clip(pipeline):
    frames, floats, latents = (
        pipeline.generate(ClipBatch(["a dog"], CLIP, output=kind)) for kind in ("frames", "tensor", "latents")
    )
    assert latents.videos == []
    torch.testing.assert_close(latents.latents, frames.latents, atol=0, rtol=0)
    assert floats.videos[0].shape == (3, 17, 64, 128)
    pixels = np.moveaxis(floats.videos[0].numpy() * 255, 0, -1)
    assert np.abs(pixels - frames.videos[0]).max() <= 1.01


def test_one_latent_frame_is_a_picture_that_can_be_a_png(pipeline, tmp_path):
    path = str(tmp_path / "dog.png")
    made = pipeline.generate(ClipBatch(["a dog"], PICTURE, paths=[path]))
    assert made.videos == [path]
    picture = pipeline.generate(ClipBatch(["a dog"], PICTURE)).videos[0][0]
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    with pytest.raises(ValueError, match="a PNG holds one frame"):
        pipeline.generate(ClipBatch(["a dog"], CLIP, paths=[path]))


def test_a_file_holds_the_clip_at_24_frames_a_second(pipeline, tmp_path):
    path = str(tmp_path / "dog.mp4")
    pipeline.generate(ClipBatch(["a dog"], CLIP, paths=[path]))
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.height, stream.width) == (24, 64, 128)
        assert sum(1 for _ in container.decode(stream)) == 17


def test_decoding_while_sampling_gives_the_same_frames_as_decoding_afterwards(pipeline):
    request = CLIP.model_copy(update={"num_latent_frames": 6})
    made = pipeline.generate(ClipBatch(["a dog", "a boat"], request))
    assert made.plan.decode_while_sampling
    for clip, latents in zip(made.videos, made.latents, strict=True):
        with torch.no_grad():
            decoded = pipeline.vae.decode(latents[None], made.plan.window)[0]
        after = (decoded * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).movedim(0, -1).numpy()
        np.testing.assert_array_equal(clip, after)


def test_an_image_starts_the_clip_and_is_kept(pipeline, photo):
    made = pipeline.generate(ClipBatch(["a dog"], CLIP, image=photo))
    cut = photo.resize((214, 64), Image.Resampling.LANCZOS).crop((43, 0, 171, 64))
    pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels)
    inside = (made.latents[:, :, :1] - posterior.mean).abs() <= 5 * posterior.std + 0.05
    assert inside.float().mean() > 0.99
    other = pipeline.generate(ClipBatch(["a boat"], CLIP, image=photo))
    torch.testing.assert_close(made.latents[:, :, :1], other.latents[:, :, :1], atol=0, rtol=0)
    assert not torch.allclose(made.latents[:, :, 1:], other.latents[:, :, 1:])


def test_a_clip_that_starts_with_an_image_does_not_depend_on_its_batch(pipeline, photo):
    together = pipeline.generate(ClipBatch(["a dog", "a red boat at sea"], CLIP, [3, 4], image=photo))
    alone = pipeline.generate(ClipBatch(["a red boat at sea"], CLIP, [4], image=photo))
    torch.testing.assert_close(together.latents[1:], alone.latents, atol=1e-4, rtol=1e-4)


def test_an_extended_clip_begins_with_the_end_of_the_given_one(pipeline):
    request = CLIP.model_copy(update={"num_latent_frames": 5})
    video = np.random.default_rng(0).integers(0, 255, (20, 64, 128, 3), dtype=np.uint8)
    made = pipeline.generate(ClipBatch(["a dog"], request, video=video))
    assert made.videos[0].shape[0] == 33
    assert made.notes == ("of 20 given frames the last 17 start the clip (1 + a multiple of 8, at most 17)",)
    pixels = torch.from_numpy(video[-17:]).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels)
    inside = (made.latents[:, :, :3] - posterior.mean).abs() <= 5 * posterior.std + 0.05
    assert inside.float().mean() > 0.99
    assert pipeline.generate(ClipBatch(["a dog"], request, video=video[-17:])).notes == ()


def test_a_video_file_is_extended_from_its_last_frames(pipeline, shoot, tmp_path):
    path = tmp_path / "given.mp4"
    frames = shoot(path, (30,), size=(64, 128), fps=12)  # 59 frames at 24 a second
    request = CLIP.model_copy(update={"num_latent_frames": 3})
    made = pipeline.generate(ClipBatch(["a dog"], request, video=path))
    assert made.notes == ("of 59 given frames the last 9 start the clip (1 + a multiple of 8, at most 9)",)
    with torch.no_grad():
        last = np.repeat(frames[-5:], 2, axis=0)[-9:]
        posterior = pipeline.vae.encode(torch.from_numpy(last).permute(3, 0, 1, 2)[None] / 127.5 - 1)
    assert (made.latents[:, :, :2] - posterior.mean).abs().mean() < 2 * posterior.std.mean()
    with pytest.raises(ValueError, match=r"cannot be extended: .*nowhere"):
        pipeline.generate(ClipBatch(["a dog"], request, video=tmp_path / "nowhere.mp4"))


def test_all_units_are_told_the_given_ones_counted(pipeline, photo):
    told = []
    pipeline.generate(ClipBatch(["a dog"], CLIP, image=photo), on_unit=lambda *done: told.append(done))
    assert told == [(2, 3), (3, 3)]


def test_numbers_that_are_not_finite_stop_at_their_unit_and_write_nothing(folder, tmp_path):
    broken = VideoPipeline.from_pretrained(folder, "384p", dtype="float32", device="cpu")
    with torch.no_grad():
        broken.dit.patch_out.bias.fill_(torch.nan)
    units, batch = [], ClipBatch(["a dog"], CLIP, paths=[str(tmp_path / "dog.mp4")])
    with pytest.raises(NotFiniteError, match="NaN or Inf at unit 0 of clip 0: the weights are damaged"):
        broken.generate(batch, on_unit=lambda *done: units.append(done))
    assert units == [(1, 3)]
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_ends_the_generation(pipeline, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        pipeline.generate(ClipBatch(["a dog"], CLIP, paths=[str(tmp_path / "file" / "dog.mp4")]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_stays_near_full_precision(folder, pipeline, dtype):
    if dtype == "float16":
        with pytest.warns(UserWarning, match="black frames in float16"):
            low = VideoPipeline.from_pretrained(folder, "384p", dtype=dtype, device="cpu")
    else:
        low = VideoPipeline.from_pretrained(folder, "384p", dtype=dtype, device="cpu")
    full, made = (p.generate(ClipBatch(["a dog"], CLIP)).latents.float() for p in (pipeline, low))
    assert (made - full).abs().mean() < 0.1 * full.abs().mean()


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_where_models_wait_changes_nothing(folder, pipeline, photo, offload):
    waiting = VideoPipeline.from_pretrained(folder, "384p", dtype="float32", device="cpu")
    in_turn = (waiting.dit, *waiting.encoder.models) if offload == "sequential" else ()
    waiting.placement.choose(offload, waiting._models(), in_turn)
    for _ in range(2):
        text = waiting.encode(["a dog"], CLIP)
    expected = pipeline.encode(["a dog"], CLIP)
    torch.testing.assert_close(text.cond.embeds, expected.cond.embeds)
    with waiting.placement.working(waiting.dit):
        column = [[torch.ones(1, 4, 1, 8, 16)]]
        (velocity,) = waiting.dit(column, torch.tensor([500.0]), text.cond)
    (wanted,) = pipeline.dit(column, torch.tensor([500.0]), expected.cond)
    torch.testing.assert_close(velocity, wanted)
    waiting.placement.choose("none", waiting._models(), ())
    assert waiting.generate(ClipBatch(["a dog"], CLIP)).latents.isfinite().all()


def test_released_weights_get_the_words_they_were_released_with_and_our_own_do_not(folder, tmp_path, pipeline):
    released = read_checkpoint(folder, "384p")
    assert style_of(released).suffix == ", hyper quality, Ultra HD, 8K"
    assert style_of(released).negative.startswith("cartoon style")
    plain = GenerationRequest(**SIZE, num_latent_frames=1, prompt_suffix="", negative_prompt="")
    with_words = pipeline.generate(ClipBatch(["a dog"], PICTURE)).latents
    assert not torch.allclose(with_words, pipeline.generate(ClipBatch(["a dog"], plain)).latents)
    spelt_out = PICTURE.model_copy(update={"prompt_suffix": "", "negative_prompt": style_of(released).negative})
    said = pipeline.generate(ClipBatch(["a dog, hyper quality, Ultra HD, 8K"], spelt_out)).latents
    torch.testing.assert_close(said, with_words, atol=0, rtol=0)


def test_a_long_prompt_is_read_as_far_as_it_goes_and_that_is_said(pipeline):
    (note,) = pipeline.generate(ClipBatch(["a dog " * 100 + "at sea"], PICTURE)).notes
    assert "128 tokens" in note
    assert note.endswith("at sea, hyper quality, Ultra HD, 8K'")
    assert len(note) < 250


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        (["a dog", "  "], {}, "the prompt is empty"),
        (["a" * 10_001], {}, "10001 characters"),
        (["a dog"], {"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        (["a dog"], {"request": CLIP.model_copy(update={"num_latent_frames": 17})}, "at most 16"),
        (["a dog"], {"request": CLIP.model_copy(update={"height": 72})}, "multiple of 64"),
        (["a dog"], {"seeds": [2**63]}, "seed 9223372036854775808: must be a whole number of 64 bits"),
        (["a dog"], {"paths": ["dog.avi"]}, r"path 'dog\.avi': clips are written as \.mp4"),
        (["a dog"], {"output": "mp4"}, "output 'mp4': use one of frames, tensor, latents"),
        (["a dog"], {"video": np.zeros((9, 64, 128, 3))}, "float64 .*: give uint8 frames"),
        (["a dog"], {"video": np.zeros((0, 64, 128, 3), np.uint8)}, "at least one"),
        (["a dog"], {"image": np.zeros((64, 128, 3), np.uint8)}, "give a path, or a PIL image"),
        (["a dog"], {"image": "nowhere.png"}, "there is no image 'nowhere.png'"),
        (["a dog"], {"image": __file__}, "cannot be read as an image"),
        (["a dog"], {"video": __file__}, "cannot be extended"),
        (["a dog"], {"image": "a.png", "video": "b.mp4"}, "both an image and a video"),
        (["a dog"], {"request": PICTURE, "image": "a.png"}, "needs at least 2"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_the_reason(pipeline, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate(ClipBatch(prompts, **({"request": CLIP} | options)))


def test_a_directory_says_what_it_lacks_before_weights_are_read(tmp_path, write_model_directory):
    folder = write_model_directory(tmp_path / "models")
    with pytest.raises(ValueError, match="choose one of 384p, image"):
        read_checkpoint(folder)
    with pytest.raises(ValueError, match="no DiT '768p': it has 384p, image"):
        read_checkpoint(folder, "768p")
    picture = read_checkpoint(folder, "image")
    with pytest.raises(ValueError, match="image makes at most 1"):
        check_checkpoint(CLIP, picture)
    vae = folder / "causal_video_vae" / "config.json"
    vae.write_text(json.dumps(json.loads(vae.read_text()) | {"encoder_out_channels": 8}))
    with pytest.raises(ValueError, match="diffusion_transformer_384p has latent channels 4, causal_video_vae 8"):
        read_checkpoint(folder, "384p")
    vae.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(vae.parent))):
        read_checkpoint(folder, "384p")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("diffusion_transformer_384p/diffusion_pytorch_model.safetensors", None, "is cut off"),
        ("causal_video_vae/diffusion_pytorch_model.safetensors", None, "is cut off"),
        ("text_encoder/model.safetensors", None, "is cut off"),
        ("text_encoder_2/model.safetensors", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("text_encoder_2/config.json", "{}", "text_encoder_2: .*model of unknown kind"),
        ("tokenizer_2/tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "tokenizer_2: .*git lfs pull"),
        ("diffusion_transformer_image/diffusion_pytorch_model.safetensors", None, ""),
    ],
)
def test_a_damaged_part_is_named_before_anything_is_loaded_unless_it_is_not_needed(
    folder, tmp_path, file, content, message
):
    copy = shutil.copytree(folder, tmp_path / "models")
    if content is None:
        (copy / file).write_bytes((copy / file).read_bytes()[:-100])
    else:
        (copy / file).write_text(content)
    if not message:
        assert read_checkpoint(copy, "384p").name == "384p"
        return
    with pytest.raises(ValueError, match=f"models cannot be used: .*{message}.*`pyramid weights inspect"):
        read_checkpoint(copy, "384p")


@pytest.mark.parametrize("kind", ["miniflux", "sd3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sizes_for_a_plan_are_known_without_loading(tmp_path, write_model_directory, kind, dtype):
    folder = write_model_directory(tmp_path, kind)
    loaded = VideoPipeline.from_pretrained(folder, "384p", dtype=str(dtype).removeprefix("torch."), device="cpu").sizes
    sizes = sizes_of_checkpoint(read_checkpoint(folder, "384p"), dtype)
    for name in ("text_bytes", "text_layer_bytes"):  # all but ids of positions
        assert 0 <= getattr(loaded, name) - getattr(sizes, name) <= 2 * 77 * 8
    same = {"text_bytes": sizes.text_bytes, "text_layer_bytes": sizes.text_layer_bytes}
    assert replace(loaded, **same) == sizes


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there_is_refused_before_weights_are_read(folder):
    with pytest.raises(ValueError, match="device 'mps': PyTorch finds none on this machine"):
        VideoPipeline.from_pretrained(folder, "384p", device="mps")


def test_pictures_beyond_the_positions_of_an_mmdit_are_refused(tmp_path, write_model_directory):
    checkpoint = read_checkpoint(write_model_directory(tmp_path, "sd3"), "384p")
    check_checkpoint(CLIP, checkpoint)
    with pytest.raises(ValueError, match=r"width 192 px: .* at most 128 px\. Set request\.width"):
        check_checkpoint(CLIP.model_copy(update={"width": 192}), checkpoint)


def test_a_rarer_refresh_of_history_is_told_with_its_error(pipeline):
    request = CLIP.model_copy(update={"video_num_inference_steps": 3})
    exact = pipeline.generate(ClipBatch(["a dog"], request, output="latents"))
    rarer = pipeline.generate(ClipBatch(["a dog"], request.model_copy(update={"refresh_every": 2}), output="latents"))
    assert not torch.allclose(rarer.latents, exact.latents)
    (note,) = rarer.notes
    assert re.search(r"only every 2 steps: .* by up to \d+\.\d% .* \(\d+ measurements\)", note)
    assert exact.notes == ()


def test_a_model_trained_on_whole_clips_makes_all_frames_at_once(pipeline, photo):
    at_once = VideoPipeline(pipeline.dit, pipeline.vae, pipeline.encoder, norm=pipeline.norm, autoregressive=False)
    told = []
    made = at_once.generate(ClipBatch(["a dog"], CLIP), on_unit=lambda *done: told.append(done))
    assert made.videos[0].shape == pipeline.generate(ClipBatch(["a dog"], CLIP)).videos[0].shape
    assert told == [(1, 1)]
    with pytest.raises(ValueError, match="make all frames at once: no image or video can start its clips"):
        at_once.generate(ClipBatch(["a dog"], CLIP, image=photo))


def test_text_that_was_encoded_before_needs_no_encoder(pipeline):
    whole = VideoPipeline(pipeline.dit, pipeline.vae, pipeline.encoder, norm=pipeline.norm)
    expected, features = whole.generate(ClipBatch(["a dog"], CLIP, output="latents")), whole.encode(["a dog"], CLIP)
    without = VideoPipeline(pipeline.dit, pipeline.vae, norm=pipeline.norm)
    made = without.generate(ClipBatch(["a dog"], CLIP, output="latents", features=features))
    assert torch.equal(made.latents, expected.latents)
    assert without.plan(CLIP).peak < whole.plan(CLIP).peak
    with pytest.raises(ValueError, match="no text encoder: give the batch `features`"):
        without.generate(ClipBatch(["a dog"], CLIP))
