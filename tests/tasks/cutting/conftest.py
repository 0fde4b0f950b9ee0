"""Footage, and one video cut in this process."""

from collections.abc import Callable

import pytest

from tasks.cutting.clips import ClipsConfig
from tasks.cutting.video_pass import cut_video
from tasks.sources.ingest import hash_file
from tasks.tables.content_ids import content_id

CONFIG = ClipsConfig(min_frames=10, max_frames=30, margin_frames=1, max_side=96)


def source_row(path, **changes) -> dict:
    """A row of `sources` for a file, as ingest writes it."""
    row = {
        "source_id": content_id(str(path)),
        "video_id": hash_file(str(path))[0],
        "uri": str(path),
        "path": path.name,
        "size_bytes": path.stat().st_size,
        "source": "test",
        "license": "CC0-1.0",
    }
    return row | changes


@pytest.fixture(scope="session")
def source() -> Callable[..., dict]:
    """A row of `sources` for a file."""
    return source_row


@pytest.fixture(scope="session")
def clips_config() -> ClipsConfig:
    """Settings for the footage of these tests."""
    return CONFIG


@pytest.fixture
def cut() -> Callable[..., dict[str, list[dict]]]:
    """Rows by table of one video, cut in this process."""

    def cut_file(path, tmp_path, config=CONFIG, committed_ids=()) -> dict[str, list[dict]]:
        media, staging = tmp_path / "media", tmp_path / "staging"
        media.mkdir(exist_ok=True)
        staging.mkdir(exist_ok=True)
        item = source_row(path) | {"attempt": 1, "committed_ids": list(committed_ids)}
        return cut_video(item, config.model_dump(mode="json"), str(media), str(staging))

    return cut_file


@pytest.fixture(scope="session")
def footage(tmp_path_factory, shoot):
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("footage")
    shoot(folder / "good.mp4", [40, 25, 5])
    shoot(folder / "turned.mp4", [20], rotation=90)
    shoot(folder / "short.mp4", [6])
    shoot(folder / "hdr.mp4", [20], transfer=16)
    shoot(folder / "vfr.mkv", [30], times=[*range(0, 600, 40), *range(600, 2100, 100)])
    data = (folder / "good.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) * 6 // 10])
    (folder / "copy.mp4").write_bytes(data)
    (folder / "text.mp4").write_text("not a video")
    (folder / "zero.mp4").touch()
    return folder
