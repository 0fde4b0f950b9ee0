"""Typed options, --set and defaults of a command become one set of overrides."""

import pytest

from flows.cli.settings import combined, command_recipe, common_options


def test_an_option_that_is_not_used_gives_no_setting():
    assert common_options() == {}
    assert common_options("videos", "auto", True) == {
        "ingest.source": "videos",
        "ray.address": "auto",
        "retry_failed": True,
    }


def test_defaults_of_a_command_lose_to_set_and_to_options():
    defaults = {"generate.num_gpus": 0, "generate.seed": 1}
    assert combined({"generate.num_gpus": 2}, {"generate.seed": 7}, defaults) == {
        "generate.num_gpus": 2,
        "generate.seed": 7,
    }
    whole_section = combined({"generate": {"num_gpus": 2}}, {}, defaults)
    assert list(whole_section) == ["generate.num_gpus", "generate.seed", "generate"]  # applied last


@pytest.mark.parametrize("settings", [{"generate.request.height": 64}, {"generate": {"request": {"height": 64}}}])
def test_an_option_and_set_may_agree_and_must_not_differ(settings):
    assert combined(settings, {"generate.request.height": 64})
    assert combined(settings, {"generate.request.width": 128})
    message = r"height is given twice: as '128' by an option and as '64' by --set"
    with pytest.raises(ValueError, match=message):
        combined(settings, {"generate.request.height": 128})


def test_a_command_reads_its_recipe_with_its_options_and_set():
    recipe = command_recipe("demo", ["train_dit.optim.num_steps=30"], {"retry_failed": True})
    assert (recipe.train_dit.optim.num_steps, recipe.retry_failed) == (30, True)
