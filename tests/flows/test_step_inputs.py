"""Later steps of a run read what its earlier steps made."""

from flows.recipe import load_recipe
from flows.step_inputs import with_captions, with_clips, with_dit, with_features, with_selection, with_vae
from pyramid_model.config import CaptionsOfKind
from tasks.captioning.config import CaptionsResult
from tasks.cutting.clips import ClipsResult
from tasks.encoding.latents import LatentsResult
from tasks.encoding.text_features import TextFeaturesResult
from tasks.selecting.select_config import SelectResult
from tasks.training.job import TrainingResult
from tasks.training.train_dit import TrainDiTResult


def test_what_is_handed_on_fills_what_the_recipe_leaves_empty_and_nothing_else():
    recipe = load_recipe("demo", {"train_dit.selection": "given"})
    filled = with_selection(recipe, SelectResult(step="select", selection="selected"))
    assert filled.latents.selection == filled.captions.selection == filled.train_vae.selection == "selected"
    assert filled.train_dit.selection == "given"
    assert filled.ingest == recipe.ingest


def test_scores_duplicates_and_selection_are_of_the_clips_that_this_run_cut():
    filled = with_clips(load_recipe("demo", {"scores.clips": "given"}), ClipsResult(step="clips", clips="cut"))
    assert (filled.scores.clips, filled.duplicates.clips, filled.select.clips) == ("given", "cut", "cut")


def test_the_trained_vae_encodes_the_clips_that_the_dit_is_trained_and_judged_on():
    plan = load_recipe("demo", {"evaluate.encoder": "/given"})
    plan = with_vae(plan, TrainingResult(step="train_vae", model_id="v", weights_hash="1", uri="/vae"))
    texts = TextFeaturesResult(step="text_features", encoder="/encoder", encoder_hash="2", random_init=True)
    plan = with_features(plan, texts, LatentsResult(step="latents", vae=plan.latents.vae, vae_hash="1"))
    assert (plan.train_dit.vae, plan.train_dit.encoder) == ("/vae", "/encoder")
    dit = {"vae": plan.train_dit.vae, "encoder": plan.train_dit.encoder, "uri": "/dit"}
    plan = with_dit(plan, TrainDiTResult(step="train_dit", model_id="d", weights_hash="3", **dit))
    assert (plan.evaluate.dit, plan.evaluate.vae, plan.evaluate.encoder) == ("/dit", "/vae", "/given")


def test_captions_of_this_run_are_those_that_are_encoded_trained_on_and_judged_with():
    of_run = (CaptionsOfKind(kind="human", hashes=("1",)),)
    plan = with_captions(load_recipe("demo"), CaptionsResult(step="captions", captions=of_run))
    assert {plan.text_features.captions, plan.train_dit.captions, plan.evaluate.captions} == {of_run}
