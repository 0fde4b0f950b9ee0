"""Going back to earlier settings computes nothing, and what they gave is the newest again. About half a minute."""

import pytest

from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.encoding.text_features import TextFeaturesConfig, text_features
from tasks.models.encoders import find_encoder
from tasks.models.folders import find_model
from tasks.running.run import Run, lineage
from tasks.tables.appending import append_block
from tasks.tables.current import captions_of
from tasks.tables.delta import content_id, ok_row, read_table
from tasks.tables.manifest import clips_with_scores
from tasks.training.job import Job, model_id
from tasks.training.train_vae import TrainVAEConfig, VAETraining
from tasks.training.training import run_training

CLIPS = [content_id("clip", number) for number in range(6)]


@pytest.mark.ray
def test_captions_are_what_the_present_settings_decided(ray_local, squares, tmp_path):
    sidecar = tmp_path / "halves.csv"
    sidecar.write_text("file,start_s,end_s,text\nvideo0.mp4,0,9,All of it.\nvideo1.mp4,0,0.6,Half of it.\n")
    for min_overlap, expected in ((0.3, ["All of it.", "Half of it."]), (0.9, ["All of it."])) * 2:
        result = captions(squares, CaptionsConfig(sidecar=str(sidecar), min_overlap=min_overlap))
        assert sorted(captions_of(squares.root, CLIPS).values()) == expected
        assert sorted(captions_of(squares.root, CLIPS, result.captions).values()) == expected
        assert sorted(filter(None, clips_with_scores(squares.root)["caption"].to_pylist())) == expected
    assert (result.num_new, result.note) == (0, "6 clips are back to captions that were made before")
    again = captions(squares, CaptionsConfig(sidecar=str(sidecar), min_overlap=0.9))
    assert (again.num_new, again.note) == (0, "nothing new")


def trained(run: Run, seed: int) -> Job:
    """A training whose model is in the table."""
    config = TrainVAEConfig.model_validate({"optim": {"seed": seed}})
    job = Job("vae", model_id("vae", "1", config, []), run, config, VAETraining, {})
    facts = {"weights_hash": f"weights {seed}", "config": "{}", "metrics": "{}"}
    row = ok_row({}, model_id=job.model_id, kind="vae", uri=job.uri, **facts)
    append_block(run.root, "models", [row], job.model_id, lineage(run, "train_vae", "1", config))
    return job


def test_a_model_that_was_trained_before_is_the_newest_again(tmp_path):
    run = Run(root=str(tmp_path))
    first, second = trained(run, 1), trained(run, 2)
    assert find_model(run, "vae").hash == "weights 2"
    for job, weights_hash in ((first, "weights 1"), (second, "weights 2"), (first, "weights 1")):
        result = run_training(job, "train_vae", "1")
        assert (result.num_done, result.weights_hash) == (1, weights_hash)
        assert find_model(run, "vae").hash == weights_hash
    run_training(first, "train_vae", "1")
    assert read_table(run.root, "models", latest=False).num_rows == 5


@pytest.mark.ray
@pytest.mark.slow
def test_the_encoder_that_was_asked_for_last_is_the_newest(ray_local, squares):
    captions(squares, CaptionsConfig())
    small, large = (TextFeaturesConfig(dim=dim, num_layers=1, vocab_size=64) for dim in (16, 32))
    for config in (small, large, small):
        result = text_features(squares, config)
        assert find_encoder(squares).hash == result.encoder_hash
    assert result.num_new == 0
