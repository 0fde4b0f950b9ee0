"""Fixtures for every test folder."""

import os

import pytest


@pytest.fixture(scope="session")
def ray_local():
    """An embedded Ray with two CPUs, started once for the whole session the way the steps start it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tasks.pipeline import connect
    from tasks.step import RayConfig

    connect(RayConfig(num_cpus=2))
    yield
    import ray

    ray.shutdown()
