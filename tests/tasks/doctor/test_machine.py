"""Python, packages, memory, disk and root: what is missing is named, with what to do."""

import sys

import pytest

from tasks.doctor.machine import (
    check_bytecode,
    check_disk,
    check_hf_datasets,
    check_packages,
    check_python,
    check_root,
    check_shm,
    check_uv,
)


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "fail"), ((3, 12, 1), "ok"), ((3, 13, 0), "fail")])
def test_python_must_be_one_that_the_lock_knows(version, status):
    assert check_python(version).status == status


def test_packages_are_compared_with_what_is_asked_for():
    [line] = check_packages()
    assert line.status == "ok"
    [bad, rest] = check_packages(["numpy>=1", "fastapi<0.1", "torch; python_version < '3'"])
    assert (bad.name, bad.status) == ("fastapi", "fail")
    assert "needs fastapi<0.1" in bad.advice
    assert rest.facts == "1 of 2 as required"
    [missing, _] = check_packages(["no-such-package-anywhere>=2"])
    assert (missing.facts, missing.advice) == ("not installed", "uv sync (needs no-such-package-anywhere>=2)")


def test_hugging_face_datasets_wins_the_import():
    assert check_hf_datasets().status == "ok"


def test_missing_bytecode_is_reported_where_nothing_will_write_it(monkeypatch, tmp_path):
    (tmp_path / "bare_module.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert check_bytecode("bare_module").status == "warn"
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert check_bytecode("bare_module").status == "ok"


def test_a_root_that_cannot_be_written_is_reported(tmp_path):
    assert check_root(str(tmp_path / "not" / "yet")).status == "ok"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    check = check_root(str(tmp_path / "file" / "root"))
    assert check.status == "fail"
    assert "--root" in check.advice
    assert check_root("/proc/pyramid").status == "fail"
    assert check_root("nosuchprotocol://bucket/root").status == "fail"


def test_a_full_disk_is_told_apart_from_a_roomy_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.doctor.machine.MIN_DISK_GB", 0)
    assert check_disk(str(tmp_path)).status == "ok"
    monkeypatch.setattr("tasks.doctor.machine.MIN_DISK_GB", 1e9)
    check = check_disk(str(tmp_path))
    assert (check.status, "are recommended" in check.facts) == ("warn", True)


def test_shared_memory_may_be_absent(tmp_path):
    assert check_shm(str(tmp_path / "none")).status == "ok"


def test_the_uv_hook_of_ray_is_reported(monkeypatch):
    assert check_uv().status == "ok"
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1")
    assert check_uv().status == "warn"
