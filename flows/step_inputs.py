"""Passes ids and folders from the results of a flow to the sections of later steps.

Only fields that the recipe leaves empty are set. An empty field would mean "the newest in the root", which may come
from another recipe.
"""

from flows.recipe import Recipe, replaced
from tasks.captioning.config import CaptionsResult
from tasks.cutting.clips import ClipsResult
from tasks.encoding.latents import LatentsResult
from tasks.encoding.text_features import TextFeaturesResult
from tasks.running.run import StepResult
from tasks.selecting.select_config import SelectResult
from tasks.training.job import TrainingResult
from tasks.training.train_dit import TrainDiTResult


def with_clips(plan: Recipe, cut: ClipsResult) -> Recipe:
    """Scores, duplicates and the selection use the clips that this run's settings cut."""
    return replaced(
        plan,
        scores=replaced(plan.scores, clips=plan.scores.clips or cut.clips),
        duplicates=replaced(plan.duplicates, clips=plan.duplicates.clips or cut.clips),
        select=replaced(plan.select, clips=plan.select.clips or cut.clips),
    )


def with_scores(plan: Recipe, scored: StepResult) -> Recipe:
    """Duplicates and the selection read the scores and embeddings of this run, even if another run adds others."""
    return replaced(
        plan,
        duplicates=replaced(plan.duplicates, versions=scored.versions | plan.duplicates.versions),
        select=replaced(plan.select, versions=scored.versions | plan.select.versions),
    )


def with_duplicates(plan: Recipe, searched: StepResult) -> Recipe:
    """The selection reads the groups that this run searched."""
    return replaced(plan, select=replaced(plan.select, versions=searched.versions | plan.select.versions))


def with_selection(plan: Recipe, selected: SelectResult) -> Recipe:
    """Captions, features, both trainings and the evaluation use this selection."""
    selection = selected.selection
    return replaced(
        plan,
        captions=replaced(plan.captions, selection=plan.captions.selection or selection),
        text_features=replaced(plan.text_features, selection=plan.text_features.selection or selection),
        train_vae=plan.train_vae and replaced(plan.train_vae, selection=plan.train_vae.selection or selection),
        latents=replaced(plan.latents, selection=plan.latents.selection or selection),
        train_dit=replaced(plan.train_dit, selection=plan.train_dit.selection or selection),
        evaluate=replaced(plan.evaluate, selection=plan.evaluate.selection or selection),
    )


def with_captions(plan: Recipe, captioned: CaptionsResult) -> Recipe:
    """Text features, the training of the DiT and its evaluation use the captions of this run."""
    captions = captioned.captions
    return replaced(
        plan,
        text_features=replaced(plan.text_features, captions=plan.text_features.captions or captions),
        train_dit=replaced(plan.train_dit, captions=plan.train_dit.captions or captions),
        evaluate=replaced(plan.evaluate, captions=plan.evaluate.captions or captions),
    )


def with_vae(plan: Recipe, trained: TrainingResult) -> Recipe:
    """The trained VAE encodes the clips."""
    return replaced(plan, latents=replaced(plan.latents, vae=plan.latents.vae or trained.uri))


def with_features(plan: Recipe, texts: TextFeaturesResult, latents: LatentsResult) -> Recipe:
    """The DiT is trained on the latents of this VAE and the features of this text encoder."""
    vae, encoder = plan.train_dit.vae or latents.vae, plan.train_dit.encoder or texts.encoder
    return replaced(plan, train_dit=replaced(plan.train_dit, vae=vae, encoder=encoder))


def with_dit(plan: Recipe, trained: TrainDiTResult) -> Recipe:
    """The trained DiT is evaluated with the VAE and the text encoder of its training."""
    config = plan.evaluate
    evaluate = replaced(
        config, dit=config.dit or trained.uri, vae=config.vae or trained.vae, encoder=config.encoder or trained.encoder
    )
    return replaced(plan, evaluate=evaluate)
