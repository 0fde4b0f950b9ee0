"""Scores of models through the step: what is computed, what is not again, and what is refused. About 20 s on Ray."""

import json
import os

import numpy as np
import pytest
import torch

from tasks.running.errors import StepError
from tasks.running.run import RayConfig, Run, lineage, params_hash
from tasks.scoring.embeddings import newest_source
from tasks.scoring.model_scores import ModelScoresConfig, planned
from tasks.scoring.newest import score_arrays
from tasks.scoring.scores import ScoresConfig, scores
from tasks.selecting.duplicates import mean_embeddings
from tasks.tables.appending import append_block
from tasks.tables.blobs import embedding_of
from tasks.tables.delta import read_table
from tasks.tables.rows import ok_row

CLIPS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory, shoot):
    """A run with clips a, b and c, of which the media of c is damaged."""
    folder = tmp_path_factory.mktemp("filmed")
    run = Run(root=str(folder / "root"), ray=RayConfig(num_cpus=2))
    rows = []
    for number, name in enumerate(CLIPS):
        uri = run.media("clips", f"{name}.mp4")
        os.makedirs(os.path.dirname(uri), exist_ok=True)
        shoot(uri, [6] * (number + 1), size=(64, 96))
        facts = {"num_frames": 6 * (number + 1), "fps_num": 24, "fps_den": 1, "height": 64, "width": 96}
        rows.append(ok_row({}, clip_id=name, video_id="v", uri=uri, start_frame=number, **facts))
    with open(run.media("clips", "c.mp4"), "r+b") as file:
        file.truncate(1000)
    made = lineage(run, "clips", "1", ScoresConfig())
    append_block(run.root, "clips", rows, "clips", made)
    append_block(run.root, "videos", [ok_row({}, video_id="v", clip_ids=CLIPS)], "videos", made)
    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory, write_open_clip, write_classifier):
    """Folder of tiny random weights: clip, vit, and the aesthetic heads one.pth, two.pth and wide.pth."""
    folder = tmp_path_factory.mktemp("weights")
    write_open_clip(folder / "clip")
    write_classifier(folder / "vit")
    for name, width in (("one", 8), ("two", 8), ("wide", 12)):
        torch.save(torch.nn.Linear(width, 1).state_dict(), folder / f"{name}.pth")
    return folder


def config_of(weights, head="one.pth", **embeddings) -> ScoresConfig:
    """Every scorer that needs a model, on few frames."""
    frames = {"num_frames": 3}
    read_off = {"aesthetic_head": str(weights / head), "text_match": True, **embeddings}
    question = {"prompts": ["a photo of people"], "against": ["a landscape"]}
    sections = {
        "text_area": frames,
        "nsfw": frames,
        "classifiers": {"watermark": {"model": str(weights / "vit"), "label": "watermark", **frames}},
        "embeddings": {"model": str(weights / "clip"), **frames, "zero_shot": {"people": question}, **read_off},
    }
    return ScoresConfig.model_validate({"scorers": (), **sections})


@pytest.fixture(scope="module")
def scored(ray_local, filmed, weights):
    """The run with all its scores, and what the step said of it."""
    return filmed, scores(filmed, config_of(weights))


SCORERS = {"text_area", "nsfw", "watermark", "consistency", "aesthetic", "people", "text_match"}


@pytest.mark.ray
@pytest.mark.slow
def test_every_clip_has_a_row_of_every_scorer_and_a_damaged_one_fails_alone(scored):
    run, result = scored
    rows = {(row["clip_id"], row["scorer"]): row for row in read_table(run.root, "scores").to_pylist()}
    assert set(rows) == {(clip, scorer) for clip in CLIPS for scorer in SCORERS}
    assert {row["status"] for (clip, _), row in rows.items() if clip == "c"} == {"failed"}
    statuses = {(scorer, row["status"]) for (clip, scorer), row in rows.items() if clip != "c"}
    assert statuses == {(scorer, "skipped" if scorer == "text_match" else "ok") for scorer in SCORERS}
    assert rows["a", "text_match"]["error_type"] == "no_caption"
    # 7 scores and an embedding of 3 clips: those of c fail, and a and b have no caption yet.
    assert (result.num_in, result.num_ok, result.num_failed, result.num_skipped) == (24, 14, 8, 2)
    assert result.rows == {"scores": 21, "embeddings": 3}
    assert json.loads(rows["b", "nsfw"]["details"])["max"] == rows["b", "nsfw"]["value"]
    assert json.loads(rows["b", "consistency"]["details"])["num_frames"] == 3
    assert rows["b", "text_area"]["value"] == 0


@pytest.mark.ray
def test_stored_features_are_those_of_the_model_and_scores_follow_from_them(scored, weights):
    from pyramid_model.metrics.aesthetic import load_head
    from pyramid_model.metrics.open_clip_model import OpenCLIP, consistency
    from pyramid_model.metrics.sampling import spread_frames

    run, _ = scored
    good = [row for row in read_table(run.root, "embeddings").to_pylist() if row["status"] == "ok"]
    features = {row["clip_id"]: embedding_of(row) for row in good}
    assert {clip: tuple(vectors.shape) for clip, vectors in features.items()} == {"a": (3, 8), "b": (3, 8)}
    at, means = mean_embeddings(run.root, CLIPS)
    assert at.tolist() == [0, 1]
    np.testing.assert_allclose(means[1], features["b"].mean(0).numpy(), atol=1e-6)
    shape = {"height": 64, "width": 96, "num_frames": 12, "fps": 24.0}
    frames = spread_frames(run.media("clips", "b.mp4"), **shape, num_wanted=3, shorter_side=448)
    torch.testing.assert_close(features["b"], OpenCLIP(weights / "clip").embed_frames([frames])[0], atol=1e-3, rtol=0)
    scores = {scorer: values[0] for scorer, values in score_arrays(run.root, ["b"]).items()}
    assert scores["consistency"] == pytest.approx(float(consistency(features["b"]).mean()), abs=1e-6)
    marks = load_head(weights / "one.pth", 8)(features["b"])
    assert scores["aesthetic"] == pytest.approx(float(marks.mean()), abs=1e-6)
    assert 0 < scores["people"] < 1


@pytest.mark.ray
def test_another_head_looks_at_no_frame_again_and_the_first_can_be_had_back(scored, weights):
    run, _ = scored
    assert scores(run, config_of(weights)).note == "nothing new"
    before = score_arrays(run.root, ["a", "b"])
    result = scores(run, config_of(weights, "two.pth"))
    assert (result.num_new, result.rows) == (3, {"scores": 3})
    after = score_arrays(run.root, ["a", "b"])
    assert {name for name in before if before[name][0] != after[name][0]} == {"aesthetic"}
    back = scores(run, config_of(weights))
    assert (back.num_new, back.note) == (0, "3 scores are back to those of earlier settings")
    np.testing.assert_equal(score_arrays(run.root, ["a", "b"]), before)


@pytest.mark.ray
def test_a_caption_that_comes_later_is_matched(scored, weights):
    from pyramid_model.metrics.open_clip_model import OpenCLIP, text_match

    run, _ = scored
    caption = ok_row({}, caption_id="1", clip_id="b", kind="human", prompt_hash="", text="a red ball")
    append_block(run.root, "captions", [caption], "captions", lineage(run, "captions", "1", ScoresConfig()))
    assert scores(run, config_of(weights)).num_ok == 1
    text = OpenCLIP(weights / "clip", with_text=True).embed_texts(["a red ball"])[0]
    [features] = [row for row in read_table(run.root, "embeddings").to_pylist() if row["clip_id"] == "b"]
    expected = text_match(embedding_of(features), text)
    assert score_arrays(run.root, ["b"])["text_match"] == pytest.approx([expected], abs=1e-5)


@pytest.mark.ray
def test_embeddings_of_the_settings_of_before_count_again(scored, weights):
    run, _ = scored
    only = {"scorers": (), "embeddings": {"model": str(weights / "clip"), "num_frames": 3, "consistency": False}}
    first, of_three_frames = newest_source(run.root), mean_embeddings(run.root, CLIPS)[1]
    fewer = {**only, "embeddings": {**only["embeddings"], "num_frames": 2}}
    assert scores(run, ScoresConfig.model_validate(fewer)).rows == {"embeddings": 3}
    assert not np.array_equal(mean_embeddings(run.root, CLIPS)[1], of_three_frames)
    assert scores(run, ScoresConfig.model_validate(only)).num_new == 0
    assert newest_source(run.root) == first
    np.testing.assert_array_equal(mean_embeddings(run.root, CLIPS)[1], of_three_frames)


CLIP = {"clip_id": "x", "uri": "x.mp4", "height": 64, "width": 96, "num_frames": 6, "fps_num": 24, "fps_den": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embeddings": {"model": "ViT-B-33"}}, "open_clip knows no model 'ViT-B-33': set scores.embeddings.model"),
        ({"embeddings": {"pretrained": "moon"}}, r"'moon' is neither a checkpoint nor a tag of ViT-L-14.*openai"),
        ({"embeddings": {"model": "{w}/vit"}}, r"the CLIP model .* cannot be used \(scores.embeddings\): .*holds no"),
        (
            {"embeddings": {"model": "{w}/clip", "aesthetic_head": "{w}/wide.pth"}},
            "features of width 12, but the CLIP .* 8",
        ),
        ({"embeddings": {"model": "{w}/clip", "aesthetic_head": "{w}/gone.pth"}}, "aesthetic_head: there is no file"),
        ({"classifiers": {"nudity": {"model": "{w}/vit", "label": "nude"}}}, r"scores.classifiers.nudity\): .*'nude'"),
        ({"classifiers": {"nudity": {"model": "{w}/clip", "label": "x"}}}, r"scores.classifiers.nudity\): .*config"),
    ],
)
def test_weights_that_do_not_serve_stop_the_step_before_ray(tmp_path, weights, settings, message):
    config = ModelScoresConfig.model_validate(json.loads(json.dumps(settings).replace("{w}", str(weights))))
    with pytest.raises(StepError, match=message):
        planned(Run(root=str(tmp_path)), config, [CLIP])


def test_a_checkpoint_of_a_model_of_open_clips_own_is_loaded_with_its_config(tmp_path, write_open_clip, monkeypatch):
    import open_clip

    folder = write_open_clip(tmp_path / "tiny-clip")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "models")
    run = Run(root=str(tmp_path / "root"))
    from tasks.models.score_models import load_open_clip, open_clip_folder

    uri = open_clip_folder(run, "tiny", str(folder / "open_clip_pytorch_model.bin"))
    assert uri.startswith(run.root)
    frames = [np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)]
    expected = load_open_clip(str(folder)).embed_frames(frames)[0]
    torch.testing.assert_close(load_open_clip(uri).embed_frames(frames)[0], expected)


def test_names_that_would_mean_two_scores_are_refused():
    for name in ("motion", "nsfw"):
        with pytest.raises(ValueError, match=f"two scorers would be called {name}"):
            ScoresConfig.model_validate({"classifiers": {name: {"model": "m", "label": "x"}}})
    question = {"prompts": ["beautiful"], "against": ["ugly"]}
    with pytest.raises(ValueError, match="two scorers would be called aesthetic"):
        ScoresConfig.model_validate({"embeddings": {"zero_shot": {"aesthetic": question}}})
    with pytest.raises(ValueError, match="'Water mark' cannot name a score"):
        ScoresConfig.model_validate({"classifiers": {"Water mark": {"model": "m", "label": "x"}}})
    for name in ("width", "fps", "caption", "keep"):
        with pytest.raises(ValueError, match=f"'{name}' is a column or a figure of clips"):
            ScoresConfig.model_validate({"classifiers": {name: {"model": "m", "label": "x"}}})


def test_scores_of_a_model_change_the_hash_of_the_settings():
    assert params_hash(ScoresConfig()) != params_hash(ScoresConfig.model_validate({"nsfw": {}}))
