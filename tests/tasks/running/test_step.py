"""Steps: what they record, how roots are made absolute, and that settings alone make their identity."""

import logging
from pathlib import Path

import pytest

from pyramid_model.config import Config
from tasks.running.run import STEPS, Run, StepResult, params_hash
from tasks.running.step import config_class, result_class, step


class CountConfig(Config):
    """Settings of the step below."""

    number: int = 3


class CountResult(StepResult):
    """What the step below hands on."""

    names: tuple[str, ...]


@step
def count(run: Run, config: CountConfig) -> CountResult:
    return CountResult(step="count", num_in=config.number, num_ok=config.number, names=("a", "b"))


def test_a_step_is_timed_and_its_result_is_kept_under_the_root(tmp_path):
    run = Run(root=str(tmp_path), run_id="r1")
    result = count(run, CountConfig())
    assert result.wall_s > 0
    [record] = (tmp_path / "runs" / "r1").glob("*-count.json")
    assert CountResult.model_validate_json(record.read_text()) == result
    assert result.names == ("a", "b")


def test_a_step_says_by_its_annotations_what_its_settings_and_its_result_are():
    assert (config_class(count), result_class(count)) == (CountConfig, CountResult)


def test_listeners_hear_of_start_and_finish(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger=STEPS.name):
        count(Run(root=str(tmp_path)), CountConfig())
    assert [(record.step, record.event) for record in caplog.records] == [("count", "started"), ("count", "finished")]


def test_a_step_refuses_a_root_it_cannot_write_before_it_works(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot write under root"):
        count(Run(root=str(tmp_path / "file" / "root")), CountConfig())


def test_a_relative_root_becomes_absolute_at_the_edge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run(root="here").root == str(Path(tmp_path, "here").resolve())
    assert Run(root="s3://bucket/root/").root == "s3://bucket/root"


@pytest.mark.parametrize("root", ["", "/data/a[b]", "/data/a%20b", "back\\slash"])
def test_a_root_that_delta_cannot_hold_is_refused_in_a_sentence(root):
    with pytest.raises(ValueError, match=r"root is empty|contains .* which Delta tables cannot have"):
        Run(root=root)


def test_media_names_cannot_leave_the_root():
    with pytest.raises(ValueError, match="would leave the root"):
        Run(root="/data").media("clips", "../../etc/passwd")


def test_params_hash_depends_on_settings_alone():
    assert params_hash(CountConfig()) == params_hash(CountConfig(number=3)) != params_hash(CountConfig(number=4))


def test_counts_of_new_work_add_up():
    result = StepResult(step="s", num_in=10, num_done=4, num_ok=3, num_failed=2, num_skipped=1)
    assert result.num_done + result.num_new == result.num_in
