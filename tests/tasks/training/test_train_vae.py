"""What a training of the VAE refuses before it starts, and its batches."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyramid_model.config import VAEConfig, VAEStackConfig
from pyramid_model.train.config import VAEBatchConfig
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.weights import save_vae
from tasks.models.folders import read_record
from tasks.running.errors import StepError
from tasks.tables.current import selected_clips
from tasks.training.train_vae import TrainVAEConfig, VAETraining, train_vae


@pytest.mark.parametrize(("num_frames", "message"), [(8, "takes 1 \\+ 8k frames"), (17, "clips of 9 frames")])
def test_training_cuts_must_fit_the_vae_and_the_clips(squares, num_frames, message):
    with pytest.raises(StepError, match=message):
        train_vae(squares, TrainVAEConfig(batch=VAEBatchConfig(num_frames=num_frames)))


def training_of(run, damaged: int = 0) -> VAETraining:
    """The VAE's side of a training on this root. damaged: the first training clips whose files are missing."""
    batch = {"num_frames": 9, "image_steps": 2, "image_batch_size": 4}
    config = TrainVAEConfig.model_validate({"batch": batch, "optim": {"batch_size": 2}, "num_batches": 2})
    train, val = (selected_clips(run.root, "", split, ("clip_id", "uri")).to_pylist() for split in ("train", "val"))
    for clip in train[:damaged]:
        clip["uri"] = "/nowhere.mp4"
    return VAETraining(config, train, val, torch.device("cpu"))


def test_batches_have_every_training_clip_equally_often_and_no_held_out_one(squares):
    training = training_of(squares)
    held_out = set(selected_clips(squares.root, "", "val", ("clip_id",))["clip_id"].to_pylist())
    batches = [training.batch(step, index) for step in range(4) for index in (0, 1)]
    assert [tuple(batch.args[0].shape) for batch in batches] == [(4, 3, 1, 32, 32)] * 4 + [(2, 3, 9, 32, 32)] * 4
    seen = [clip_id for batch in batches for clip_id in batch.ids]
    assert len(seen) == 24
    assert {seen.count(clip["clip_id"]) for clip in training.train.clips} == {6}
    assert not held_out & set(seen)
    bucket, largest = training.largest()
    assert (bucket, tuple(largest.args[0].shape)) == ("32x32x9@8", (2, 3, 9, 32, 32))
    assert training.batch(3, 1).args[0].equal(batches[-1].args[0])
    assert training.describe() == [
        "4 clips; 998 steps of 2 batches are 998 epochs",
        "32x32x9@8: 4 clips, 2 in a batch, 1 steps an epoch",
    ]


def test_a_clip_that_cannot_be_read_is_replaced_by_another_of_its_size(squares):
    training = training_of(squares, damaged=3)
    readable = training.train.clips[3]["clip_id"]
    assert {clip_id for step in range(4) for clip_id in training.batch(step, 0).ids} == {readable}
    assert len(training.bad) == 3
    with pytest.raises(StepError, match=r"no clip of a size can be read, first: .*nowhere\.mp4"):
        training_of(squares, damaged=4).batch(0, 0)


STACK = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
TINY = {
    "model": VAEConfig(latent_channels=4, encoder=STACK, decoder=STACK).model_dump(),
    "batch": {"num_frames": 9, "image_share": 0.34},
    "optim": {"num_steps": 3, "batch_size": 2, "warmup_steps": 0, "lr": 1e-4, "log_every": 1},
}
GAN = {"perceptual_weight": 0, "adversarial_start": 1, "discriminator_layers": 2, "discriminator_channels": 4}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_second_stage_starts_from_the_vae_of_the_first_and_has_an_adversary(squares):
    first = train_vae(squares, TrainVAEConfig.model_validate(TINY))
    second = train_vae(squares, TrainVAEConfig.model_validate(TINY | {"init_from": first.uri, "gan": GAN}))
    before, after = read_record(first.uri), read_record(second.uri)
    assert after.metrics["val_psnr_untrained"] == pytest.approx(before.metrics["val_psnr"])
    assert after.trained_on.init.hash == first.weights_hash
    assert "discriminator" not in after.curve[1]
    assert {"discriminator", "adversarial_grad", "grad_norm_discriminator"} <= set(after.curve[2])
    assert not any(
        "discriminator" in name for name in load_file(Path(second.uri, "diffusion_pytorch_model.safetensors"))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gan": GAN | {"discriminator_layers": 4}}, "frames of 32 px are too small .* which needs 48 px: lower"),
        (
            {"gan": GAN | {"lpips": {"files": ["/nowhere/vgg.pth"]}}},
            r"there is no file /nowhere/vgg\.pth on this machine: set",
        ),
        ({"init_from": "/nowhere"}, "there is no model folder '/nowhere'"),
    ],
)
def test_what_a_training_lacks_is_told_before_anything_starts(squares, changes, message):
    with pytest.raises(StepError, match=message):
        train_vae(squares, TrainVAEConfig.model_validate(TINY | changes))


def test_weights_of_another_network_are_refused_before_anything_starts(squares, shared_assets):
    alexnet = str(shared_assets / "weights" / "lpips_alexnet.npz")
    gan = GAN | {"lpips": {"network": "vgg16", "files": [alexnet]}}
    config = TrainVAEConfig.model_validate(TINY | {"gan": gan})
    message = r"lpips_alexnet\.npz do not hold the weights of LPIPS on vgg16 \(missing: features\.2\.weight\): set"
    with pytest.raises(StepError, match=message):
        train_vae(squares, config)


def test_a_vae_of_other_sizes_is_refused_with_the_settings_that_fit(squares, tmp_path):
    save_vae(CausalVideoVAE(VAEConfig(latent_channels=4, encoder=STACK, decoder=STACK)), tmp_path / "vae")
    config = TINY | {"init_from": str(tmp_path / "vae"), "model": TINY["model"] | {"latent_channels": 8}}
    with pytest.raises(StepError, match=r"has other sizes than train_vae\.model: --set .*latent_channels=.4."):
        train_vae(squares, TrainVAEConfig.model_validate(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gan": {}}, "gan.perceptual_weight needs LPIPS, whose weights you provide"),
        ({"gan": GAN, "num_workers": 2, "parallel": {"share_batch": 2}}, "gan trains with whole weights in float32"),
        ({"gan": GAN, "parallel": {"precision": "bfloat16"}}, "gan trains with whole weights in float32"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainVAEConfig.model_validate(changes)


@pytest.mark.parametrize(("image_share", "expected"), [(0, 0), (0.1, 10), (0.25, 25), (0.5, 50)])
def test_a_share_of_the_steps_trains_on_single_frames(image_share, expected):
    batch = VAEBatchConfig(image_share=image_share, image_steps=3, num_frames=9)
    frames = [batch.at(step, 2)[1] for step in range(103)]
    assert frames[:3] == [1, 1, 1]
    assert frames[3:].count(1) == expected
