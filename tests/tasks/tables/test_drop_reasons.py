"""A drop reason says which rule it is of."""

import pytest

from tasks.tables.drop_reasons import HIGH, LATER_RULES, LOW, MISSING, OUTER_SET, limit_suffix


@pytest.mark.parametrize("suffix", [MISSING, LOW, HIGH])
def test_a_limit_on_a_score_has_the_suffix_of_its_side(suffix):
    assert limit_suffix(f"motion{suffix}") == suffix


@pytest.mark.parametrize("reason", [*LATER_RULES, f"{OUTER_SET}low", f"{OUTER_SET}set{HIGH}"])
def test_other_rules_have_no_suffix_whatever_the_names_of_sets(reason):
    assert limit_suffix(reason) == ""
