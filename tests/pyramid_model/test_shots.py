"""Cuts are found at the first frame of the new shot. About 2 s, and 20 s more where the shared videos are."""

import json

import pytest

from pyramid_model.shots import ShotsConfig, find_cuts


@pytest.mark.parametrize("method", ["adaptive", "content"])
def test_each_cut_is_the_first_frame_of_its_shot(tmp_path, shoot, method):
    shoot(tmp_path / "a.mp4", [30, 9, 40, 25])
    assert find_cuts(str(tmp_path / "a.mp4"), ShotsConfig(method=method)) == [30, 39, 79]


def test_motion_is_no_cut(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [60])
    assert find_cuts(str(tmp_path / "a.mp4")) == []


def test_a_rotated_file_has_the_same_cuts(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [20, 20], rotation=90)
    assert find_cuts(str(tmp_path / "a.mp4")) == [20]


@pytest.mark.slow
def test_labelled_cuts_are_found_and_no_others(shared_assets):
    transitions = json.loads((shared_assets / "transitions.json").read_text())
    missed, false = [], []
    for name, labelled in json.loads((shared_assets / "cuts.json").read_text()).items():
        spans = transitions.get(name, {})
        ignored = [span[:2] for key in ("gradual", "ignore") for span in spans.get(key, [])]
        found = find_cuts(str(shared_assets / "videos" / name))
        missed += [(name, cut) for cut in labelled if not any(abs(cut - other) <= 1 for other in found)]
        false += [
            (name, cut)
            for cut in found
            if not any(abs(cut - other) <= 1 for other in labelled) and not any(a <= cut <= b for a, b in ignored)
        ]
    assert (missed, false) == ([], [])
