"""Shots of files that nobody has looked at yet: each is decoded in a process that may crash or hang."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from pyramid_model.shots.shots import ShotsConfig
from tasks.running.isolated import Crashed, Isolated, TimedOut, TookTooMuch

MAX_BYTES = 4 * 2**30  # of memory for one file, as clips.max_memory_gb


def list_shots(files: Sequence[str], config: ShotsConfig, timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each file as given, with what `shots_of` says of it, or with `error`: why nothing can be said.

    Raises:
        ValueError: the method needs something that is not installed.
    """
    child = Isolated("tasks.cutting.shot_lists:shots_of", max_bytes=MAX_BYTES)
    settings = config.model_dump(mode="json")
    try:
        for file in files:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    found = child.call(timeout_s, file=file, config=settings, folder=folder)
            except Crashed as err:
                found = {"error": f"decoder_crashed: the decoding process was lost: {err}"}
            except TimedOut:
                found = {"error": f"timeout: not done after {timeout_s:g} s (--timeout)"}
            except TookTooMuch as err:
                found = {"error": f"too_much_memory: decoding it took {err}"}
            except OSError as err:
                found = {"error": f"unreadable: {err.strerror or err}"}
            if "setting" in found:
                raise ValueError(found["setting"])
            yield file, found
    finally:
        child.close()


def shots_of(file: str, config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Shots of a local file or URI, as JSON. What is no local file is copied into `folder` meanwhile.

    Returns:
        `cuts`, the first frame of each new shot; `gradual`, the first and last frame of each dissolve, fade or empty
        stretch; `fps`; `frames`, how many were decoded; and for a damaged file `problem`. Frames are counted from 0 in
        the order in which the decoder gives them. For what is no video: `error`. For settings that cannot be met:
        `setting`, what is missing.
    """
    import cv2

    from pyramid_model.shots.shots import find_shots
    from pyramid_model.video.video import VideoError
    from tasks.sources.reading import reading_source

    cv2.setNumThreads(1)
    try:
        with reading_source(file, folder) as path:
            found = find_shots(path, ShotsConfig.model_validate(config))
    except VideoError as err:
        return {"error": f"{err.kind}: {err}"}
    except ValueError as err:
        return {"setting": str(err)}
    problem = {"problem": f"{found.problem.kind}: {found.problem}"} if found.problem else {}
    facts = {"cuts": found.cuts, "gradual": found.gradual, "fps": float(found.fps), "frames": found.num_frames}
    return facts | problem
