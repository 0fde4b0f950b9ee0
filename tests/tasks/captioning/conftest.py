"""Captions by an endpoint: settings, and rows of all clips that nobody commits."""

from collections.abc import Callable

import pytest

from tasks.captioning.config import CaptionsConfig
from tasks.captioning.writing import CLIP_COLUMNS, CaptionWriter, find_writer, wanted_items
from tasks.running.run import Run
from tasks.tables.current import selected_clips

PRICES = {"usd_per_million_prompt_tokens": 10.0, "usd_per_million_completion_tokens": 100.0}


@pytest.fixture(scope="session")
def by_endpoint() -> Callable[..., CaptionsConfig]:
    """`by_endpoint(server, kind, max_concurrency=1, **settings)`: settings of the step."""

    def by_endpoint(server, kind, max_concurrency: int = 1, **settings) -> CaptionsConfig:
        endpoint = {"base_url": server.url, "model": "tiny", "max_retries": 0, "max_concurrency": max_concurrency}
        given = {"kind": kind, "endpoint": endpoint | PRICES, "frames": {"num_frames": 3}, "block_size": 6}
        return CaptionsConfig.model_validate(given | settings)

    return by_endpoint


@pytest.fixture(scope="session")
def written() -> Callable[..., list[dict]]:
    """`written(run, config, attempt=1)`: rows that the actor makes of all clips, and that nobody commits."""

    def written(run: Run, config: CaptionsConfig, attempt: int = 1) -> list[dict]:
        clips = selected_clips(run.root, columns=("clip_id", *CLIP_COLUMNS)).to_pylist()
        writer = find_writer(run, config)
        items = wanted_items(config, config.by_model, writer, clips, {})
        worker = CaptionWriter(config, writer, run.root)
        return list(worker([item | {"attempt": attempt} for item in items]).rows["captions"])

    return written
