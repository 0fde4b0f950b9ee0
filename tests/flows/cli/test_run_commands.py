"""Commands that run the whole pipeline."""

from flows.cli.run_commands import trained_for
from flows.recipe import load_recipe


def test_more_minutes_are_more_steps_with_the_same_course_of_the_rate_and_number_of_validations():
    recipe = load_recipe("demo", {})
    longer = trained_for(recipe, 4)
    for before, after in (
        (recipe.train_vae.optim, longer.train_vae.optim),
        (recipe.train_dit.optim, longer.train_dit.optim),
    ):
        assert after.num_steps == 4 * before.num_steps
        assert after.warmup_steps == 4 * before.warmup_steps
        assert after.num_steps / after.val_every == before.num_steps / before.val_every
        assert (after.lr, after.decay_share) == (before.lr, before.decay_share)
    assert longer.train_dit.model == recipe.train_dit.model


def test_the_minutes_of_the_recipe_change_nothing_and_few_minutes_leave_valid_settings():
    recipe = load_recipe("demo", {})
    assert trained_for(recipe, 1) == recipe
    shorter = trained_for(recipe, 0.2)
    type(shorter).model_validate(shorter.model_dump())
