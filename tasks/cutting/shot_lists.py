"""Shots of any video files. A child process decodes them, since a decoder may crash or hang on a damaged file."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from pyramid_model.shots.shots import ShotsConfig
from tasks.running.isolated import Crashed, Isolated, MemoryExceeded, TimedOut

MAX_BYTES = 4 * 2**30  # memory limit of the child process, as clips.max_memory_gb


class ShotList(TypedDict, total=False):
    """Shots of a file, or why there are none; as JSON. Frames are counted from 0 in the order of the decoder.

    cuts: first frame of each new shot.
    gradual: first and last frame of each dissolve, fade or empty span.
    fps: frame rate.
    frames: number of decoded frames.
    problem: damage of the file, if any.
    error: why the file cannot be read; then the other keys are missing.
    setting: what a setting of the method needs and is missing; then the other keys are missing.
    """

    cuts: Sequence[int]
    gradual: Sequence[Sequence[int]]
    fps: float
    frames: int
    problem: str
    error: str
    setting: str


def list_shots(files: Sequence[str], config: ShotsConfig, timeout_s: float) -> Iterator[tuple[str, ShotList]]:
    """Each file with its shots, or with `error` if it cannot be read. timeout_s: longest time for one file.

    Raises:
        ValueError: the method needs a package or file that is missing.
    """
    child = Isolated("tasks.cutting.shot_lists:shots_of", max_bytes=MAX_BYTES)
    settings = config.model_dump(mode="json")
    try:
        for file in files:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    shots: ShotList = child.call(timeout_s, file=file, config=settings, folder=folder)
            except Crashed as err:
                shots = {"error": f"decoder_crashed: the decoding process ended: {err}"}
            except TimedOut:
                shots = {"error": f"timeout: not done after {timeout_s:g} s (--timeout)"}
            except MemoryExceeded as err:
                shots = {"error": f"too_much_memory: decoding it took {err}"}
            except OSError as err:
                shots = {"error": f"unreadable: {err.strerror or err}"}
            if "setting" in shots:
                raise ValueError(shots["setting"])
            yield file, shots
    finally:
        child.close()


def shots_of(file: str, config: Mapping[str, object], folder: str) -> ShotList:
    """Shots of a local file or URI; the function that the child process runs.

    Args:
        file: path or URI.
        config: a ShotsConfig as JSON.
        folder: empty local folder for the copy of a remote file.
    """
    import cv2

    from pyramid_model.shots.shots import find_shots
    from pyramid_model.video.video import VideoError
    from tasks.sources.reading import reading_source
    from tasks.tables.web_hosts import addresses_now

    cv2.setNumThreads(1)
    try:
        with reading_source(file, folder, addresses_now(file)) as path:
            result = find_shots(path, ShotsConfig.model_validate(config))
    except VideoError as err:
        return {"error": f"{err.kind}: {err}"}
    except ValueError as err:
        return {"setting": str(err)}
    shots: ShotList = {
        "cuts": result.cuts,
        "gradual": result.gradual,
        "fps": float(result.fps),
        "frames": result.num_frames,
    }
    if result.problem:
        shots["problem"] = f"{result.problem.kind}: {result.problem}"
    return shots
