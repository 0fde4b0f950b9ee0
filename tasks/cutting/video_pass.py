"""One decode pass over one video: cuts, clips and their scores.

Runs in a child process that may crash (`tasks.running.isolated`).
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import Interpolation

from pyramid_model.metrics.scorers import ClipView
from pyramid_model.shots.shots import ShotDetector, Verdict, analysis_size
from pyramid_model.video.cropping import find_picture, framing
from pyramid_model.video.footage import Footage, Integrity, mean_fps
from pyramid_model.video.frame import Frame, turned
from pyramid_model.video.probe import VideoProbe
from pyramid_model.video.video import ClipWriter, VideoError
from tasks.cutting.clips import SALVAGED, ClipsConfig
from tasks.cutting.planning import ClipRules, plan_clips
from tasks.scoring.scores import score_rows, scored_size
from tasks.sources.reading import reading_source
from tasks.tables import storage
from tasks.tables.delta import bad_row, content_id, ok_row
from tasks.tables.files import file_crc32

ENCODER = "libx264-1"  # enters the clip ids: count up when the same settings give other frames
Rows = dict[str, list[dict[str, Any]]]


def cut_video(item: dict[str, Any], config: dict[str, Any], media: str, staging: str) -> Rows:
    """Cut one source video; returns its rows for `clips`, `scores` and `videos`, with the media files in place.

    Args:
        item: a row of `sources`, with its attempt and with the ids of `known` clips and scores, committed before.
        config: a ClipsConfig as JSON.
        media: URI of the folder of clips.
        staging: an empty local folder on the file system of `media`; the caller removes it.

    Raises:
        OSError: the clips cannot be written.
    """
    cv2.setNumThreads(1)
    video = VideoPass(item, ClipsConfig.model_validate(config), staging)
    try:
        clips = video.cut()
    except VideoError as err:
        status = "skipped" if err.kind in ("hdr", "no_clips") else "failed"
        return {"clips": [], "scores": [], "videos": [bad_row(item, err, status, **video.columns)]}
    except av.error.FFmpegError as err:
        if isinstance(err, OSError):  # reading is over by now: the clips cannot be written
            raise
        problem = ("codec_error", f"its frames cannot be scaled or encoded: {err}")
        return {"clips": [], "scores": [], "videos": [bad_row(item, problem, **video.columns)]}
    rows: Rows = {"clips": [], "scores": []}
    for clip in clips:
        row = video.clip_row(clip, media)
        storage.publish(clip.path, row["uri"])
        rows["clips"].append(row)
        rows["scores"] += clip.scores
    clip_ids = [row["clip_id"] for row in rows["clips"]]
    done = ok_row(item, **video.columns, clip_ids=clip_ids, error=video.remark)
    known = set(item["known"])
    rows["clips"] = [row for row in rows["clips"] if row["clip_id"] not in known]
    rows["scores"] = [row for row in rows["scores"] if row["score_id"] not in known]
    return rows | {"videos": [done]}


class _Damaged(Exception):
    """A damaged frame was met and nothing is to be salvaged."""


@dataclass
class ShownFrame:
    """A frame on its way into a clip."""

    index: int
    pts: int
    end_pts: int  # when the next frame is shown
    is_corrupt: bool
    image: Any  # av.VideoFrame, yuv420p, upright, of the clips' size
    gray: Any  # (h w) uint8, upright and small: for scores
    starts_shot: bool = False
    is_blended: bool = False


@dataclass(frozen=True)
class CutClip:
    """A clip that lies encoded at `path`, not yet at its place."""

    shot: int
    first: ShownFrame
    last: ShownFrame
    num_frames: int
    scores: list[dict[str, Any]]  # its rows of `scores`; the frames they came from would fill the memory
    path: str


class VideoPass:
    """The decode pass over one video; what it finds about the video gathers in `columns`."""

    def __init__(self, item: Mapping[str, Any], config: ClipsConfig, staging: str):
        self.item, self.config, self.staging = item, config, staging
        kept = ("video_id", "uri", "path", "size_bytes", "source", "license")
        self.columns: dict[str, Any] = {name: item[name] for name in kept} | {"num_shots": 0, "num_clips": 0}
        self.remark = ""
        self._num_blended = 0

    def cut(self) -> list[CutClip]:
        """Clips of a sound video, or of the sound parts of a damaged one with `salvage`.

        Raises:
            VideoError: the video gives no clips, with the reason.
        """
        with reading_source(self.item["uri"], self.staging) as path:
            if os.path.isfile(path) and os.path.getsize(path) != self.item["size_bytes"]:
                raise VideoError(
                    "source_changed", f"{self.item['uri']} is not the file that was ingested: ingest again"
                )
            max_pixels = int(self.config.max_megapixels * 1e6)
            self.picture = find_picture(path, max_pixels) if self.config.crop_letterbox else None
            with Footage(path, max_pixels) as footage:
                self.probe = footage.probe
                self.framing = framing(footage.probe, self.config.max_side, self.picture)
                self.columns |= probe_columns(footage.probe)
                if footage.probe.is_hdr and not self.config.keep_hdr:
                    transfer = footage.probe.color_transfer
                    raise VideoError("hdr", f"HDR ({transfer}) would look washed out: tone-map it, or set keep_hdr")
                return self._cut(footage)

    def _cut(self, footage: Footage) -> list[CutClip]:
        frames = footage.frames()
        clips: list[CutClip] = []
        with contextlib.suppress(_Damaged):
            clips = list(self._encoded(self._shown(footage, frames)))
        for _ in frames:  # of a damaged video the rest is only counted
            pass
        integrity = footage.integrity()
        self.columns |= integrity_columns(integrity)
        self.remark = _remark(integrity)
        if integrity.problem and not self.config.salvage:
            raise integrity.problem
        if not clips:
            raise VideoError("no_clips", self._why_none(integrity.num_frames))
        self.columns["num_clips"] = len(clips)
        return clips

    def _why_none(self, num_frames: int) -> str:
        """Why no part of a sound video is a clip."""
        why = f"no clip of {self.config.min_frames} frames or more (clips.min_frames) in the {num_frames} frames of"
        why += f" {self.columns['num_shots']} shots"
        if not self._num_blended:
            return why
        blended = f"{self._num_blended} are left out as empty or blended by fades and dissolves"
        return f"{why}, of which {blended}: clips.shots.find_gradual=false would keep them"

    def _shown(self, footage: Footage, frames: Iterator[Frame]) -> Iterator[ShownFrame]:
        """Frames scaled to the clips' size, each with the verdict whether it starts a shot."""
        detector = ShotDetector(self.config.shots)
        small_size = analysis_size(footage.probe)
        waiting: deque[ShownFrame] = deque()
        self.columns["num_shots"] = 1

        def decided(verdicts: Iterator[Verdict]) -> Iterator[ShownFrame]:
            for verdict in verdicts:
                shown = waiting.popleft()
                shown.starts_shot, shown.is_blended = verdict.starts_shot, verdict.is_blended
                self.columns["num_shots"] += verdict.starts_shot
                self._num_blended += verdict.is_blended
                yield shown

        for frame in frames:
            if frame.is_corrupt and not self.config.salvage:
                raise _Damaged
            if waiting:
                waiting[-1].end_pts = frame.pts
            small = frame.small(*small_size)
            image = self.framing.crop(frame.upright(*self.framing.scaled))
            gray = self._gray(frame, small, image)
            waiting.append(ShownFrame(frame.index, frame.pts, 0, frame.is_corrupt, image, gray))
            yield from decided(detector.add(small))
        if waiting:
            waiting[-1].end_pts = footage.end_pts()
        yield from decided(detector.end())

    def _gray(self, frame: Frame, small: np.ndarray, image: av.VideoFrame) -> np.ndarray:
        """The miniature that is scored: the one that shot detection saw, or of the picture alone where that is cut out.

        small: BGR as coded; image: upright, as it will be encoded.
        """
        if self.framing.box is None:
            return turned(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), self.probe)
        height, width = scored_size(*self.framing.size)
        scaled = frame.scaler.scaled(image, height, width, "bgr24", interpolation=Interpolation.AREA)
        return cv2.cvtColor(scaled.to_ndarray(), cv2.COLOR_BGR2GRAY)

    def _encoded(self, frames: Iterator[ShownFrame]) -> Iterator[CutClip]:
        """Clips as their last frame passes, each a file in the staging folder."""
        writer, clip, path = None, [], ""
        try:
            for shot, shown, is_last in plan_clips(frames, self._rules()):
                if writer is None:
                    path = os.path.join(self.staging, f"{shown.index}.mp4")
                    writer, clip = self._writer(path, shown.image), []
                writer.write(shown.image, shown.pts - (clip[0] if clip else shown).pts)
                # Encoded: what remains of it is its gray miniature, until the clip is scored.
                frame = replace(shown, image=None)
                clip.append(frame)
                if is_last:
                    writer.close()
                    writer = None
                    fps = self.fps(len(clip), clip[0], frame)
                    view = ClipView(np.stack([shown.gray for shown in clip]), float(fps), path)
                    scores = score_rows(self.clip_id(clip[0], frame), view)
                    clip[0].gray = frame.gray = None
                    yield CutClip(shot, clip[0], frame, len(clip), scores, path)
                    clip = []
        finally:
            if writer:
                writer.abandon()

    def _writer(self, path: str, image: av.VideoFrame) -> ClipWriter:
        probe, config, color = self.probe, self.config, int(image.colorspace)
        return ClipWriter(path, image.height, image.width, probe.fps, probe.time_base, config.crf, config.preset, color)

    def _rules(self) -> ClipRules:
        """How long clips are; a picture is one whatever the rules for videos say."""
        return ClipRules(min_frames=1, max_frames=2, margin_frames=0) if self.probe.is_image else self.config

    def clip_id(self, first: ShownFrame, last: ShownFrame) -> str:
        """Identity of the clip from `first` to `last`."""
        config, base = self.config, self.probe.time_base
        encoding = [ENCODER, config.crf, config.preset, *self.framing.size]
        if self.framing.box:
            encoding += [self.framing.scaled, self.framing.box]
        span = [first.pts, last.end_pts, base.numerator, base.denominator]
        return content_id(self.item["video_id"], span, encoding)

    def fps(self, num_frames: int, first: ShownFrame, last: ShownFrame) -> Fraction:
        """Frames a second of a clip."""
        return mean_fps(num_frames, first.pts, last.pts, self.probe.time_base, self.probe.fps)

    def clip_row(self, clip: CutClip, media: str) -> dict[str, Any]:
        """The clip's row; its `uri` is where the media file has to go."""
        probe = self.probe
        base = probe.time_base
        height, width = self.framing.size
        clip_id = self.clip_id(clip.first, clip.last)
        fps = self.fps(clip.num_frames, clip.first, clip.last)
        return ok_row(
            {},  # a first attempt always: a clip is made or not, only its video may fail
            clip_id=clip_id,
            video_id=self.item["video_id"],
            shot=clip.shot,
            start_frame=clip.first.index,
            end_frame=clip.last.index + 1,
            start_pts=clip.first.pts,
            end_pts=clip.last.end_pts,
            start_s=float((clip.first.pts - probe.start_pts) * base),
            end_s=float((clip.last.end_pts - probe.start_pts) * base),
            num_frames=clip.num_frames,
            fps_num=fps.numerator,
            fps_den=fps.denominator,
            width=width,
            height=height,
            uri=storage.join(media, f"{clip_id}.mp4"),
            size_bytes=os.path.getsize(clip.path),
            crc32=file_crc32(clip.path),
            cut_method=self.config.shots.method,
            crop=self.framing.crop_of(probe),
        )


def probe_columns(probe: VideoProbe) -> dict[str, Any]:
    """Columns of `videos` that header and first frame give."""
    return {
        "container": probe.container,
        "codec": probe.codec,
        "pix_fmt": probe.pix_fmt,
        "width": probe.width,
        "height": probe.height,
        "coded_width": probe.coded_width,
        "coded_height": probe.coded_height,
        "rotation": probe.rotation,
        "fps_num": probe.fps.numerator,
        "fps_den": probe.fps.denominator,
        "num_frames_header": probe.num_frames_header,
        "duration_s": probe.duration_s,
        "start_pts": probe.start_pts,
        "time_base_num": probe.time_base.numerator,
        "time_base_den": probe.time_base.denominator,
        "color_transfer": probe.color_transfer,
        "color_primaries": probe.color_primaries,
        "color_matrix": probe.color_matrix,
        "color_range": probe.color_range,
        "is_hdr": probe.is_hdr,
        "has_audio": probe.has_audio,
        "bit_rate": probe.bit_rate,
    }


def integrity_columns(integrity: Integrity) -> dict[str, Any]:
    """Columns of `videos` that decoding gives; they replace what the header said."""
    return {
        "fps_num": integrity.fps.numerator,
        "fps_den": integrity.fps.denominator,
        "is_vfr": integrity.is_vfr,
        "num_frames": integrity.num_frames,
        "num_frames_corrupt": integrity.num_frames_corrupt,
        "duration_s": integrity.duration_s,
    }


def _remark(integrity: Integrity) -> str:
    """What is worth knowing of a video that is used all the same."""
    remarks = [f"{SALVAGED}{integrity.problem}"] if integrity.problem else []
    if integrity.num_pts_repaired:
        remarks.append(f"{integrity.num_pts_repaired} frames had no time, or one out of order: moved behind the others")
    return "; ".join(remarks)
