"""What a training of the VAE refuses before it starts, and its batches."""

import pytest
import torch

from pyramid_model.train.config import VAEBatchConfig
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
