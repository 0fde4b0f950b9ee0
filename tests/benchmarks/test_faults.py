"""Whatever dies while videos become clips: each video ends in one row, clips are those of an undisturbed run. 40 s."""

import importlib
import signal
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.ray
@pytest.mark.slow
def test_killed_actors_and_drivers_and_damaged_videos_lose_and_double_nothing(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    faults = importlib.import_module("faults")
    blows = (
        faults.Blow(0.1, signal.SIGKILL, "actor"),
        faults.Blow(0.3, signal.SIGKILL, "driver"),
        faults.Blow(0.6, signal.SIGTERM, "driver"),
    )
    outcome = faults.run_under_fire(tmp_path, 28, len(faults.DAMAGE), blows)
    assert outcome.differences == []
    assert outcome.statuses == Counter(ok=21, failed=7)
    assert outcome.left_to_do == 0
