"""The decode pass over one video, which makes its clips and their scores.

It runs in a child process, since a decoder may crash (`tasks.running.isolated`).
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
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
from tasks.cutting.clips import SALVAGED, SOURCE_COLUMNS, ClipsConfig, VideoItem
from tasks.cutting.planning import ClipRules, plan_clips
from tasks.scoring.scores import score_rows, scored_size
from tasks.sources.reading import reading_source
from tasks.tables import storage
from tasks.tables.content_ids import content_id
from tasks.tables.rows import Row, bad_row, ok_row, skipped_row

ENCODER = "libx264-1"  # part of clip ids: count up when the same settings give other frames
Rows = dict[str, list[Row]]  # by table


def cut_video(item: VideoItem, config: Mapping[str, object], media: str, staging: str) -> Rows:
    """Cut one source video and publish its clips; returns its rows of `clips`, `scores` and `videos`.

    Args:
        item: the file of the video.
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
        row = skipped_row if err.kind in ("hdr", "no_clips") else bad_row
        return {"clips": [], "scores": [], "videos": [row(item, err, **video.columns)]}
    except av.error.FFmpegError as err:
        if isinstance(err, OSError):  # the video has been read, so this error comes from writing the clips
            raise
        problem = ("codec_error", f"its frames cannot be scaled or encoded: {err}")
        return {"clips": [], "scores": [], "videos": [bad_row(item, problem, **video.columns)]}
    rows: Rows = {"clips": [], "scores": []}
    for clip in clips:
        row = video.clip_row(clip, media)
        storage.publish(clip.path, str(row["uri"]))
        rows["clips"].append(row)
        rows["scores"] += clip.scores
    clip_ids = [row["clip_id"] for row in rows["clips"]]
    done = ok_row(item, **video.columns, clip_ids=clip_ids, error=video.remark)
    committed = set(item["committed_ids"])
    rows["clips"] = [row for row in rows["clips"] if row["clip_id"] not in committed]
    rows["scores"] = [row for row in rows["scores"] if row["score_id"] not in committed]
    return rows | {"videos": [done]}


class _Damaged(Exception):
    """A frame is damaged, and `salvage` is off."""


@dataclass
class ScaledFrame:
    """A frame at the size of the clips."""

    index: int
    pts: int
    end_pts: int  # time at which the next frame is displayed
    is_corrupt: bool
    image: Any  # av.VideoFrame, yuv420p, upright, at the size of the clips; None once it is encoded
    gray: Any  # (h w) uint8, upright and small, for scores; None once the clip is scored
    starts_shot: bool = False
    is_blended: bool = False


@dataclass(frozen=True)
class CutClip:
    """An encoded clip at `path` in the staging folder."""

    shot: int
    first: ScaledFrame
    last: ScaledFrame
    num_frames: int
    scores: Sequence[Row]  # of `scores`; computed at once, since the frames of all clips would need too much memory
    path: str


class VideoPass:
    """The decode pass over one video. It collects the columns of the row of `videos` in `columns`."""

    def __init__(self, item: VideoItem, config: ClipsConfig, staging: str):
        self.item, self.config, self.staging = item, config, staging
        self.columns: Row = {"num_shots": 0, "num_clips": 0}
        self.columns |= {name: item[name] for name in SOURCE_COLUMNS}
        self.remark = ""
        self._num_shots, self._num_blended = 0, 0

    def cut(self) -> list[CutClip]:
        """Clips of an undamaged video, or with `salvage`, of the undamaged parts of a damaged one.

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
            clips = list(self._encoded(self._scaled(footage, frames)))
        for _ in frames:  # the frames after a damaged one are decoded only to be counted
            pass
        integrity = footage.integrity()
        self.columns |= integrity_columns(integrity)
        self.remark = _remark(integrity)
        if integrity.problem and not self.config.salvage:
            raise integrity.problem
        if not clips:
            raise VideoError("no_clips", self._no_clips_message(integrity.num_frames))
        self.columns["num_clips"] = len(clips)
        return clips

    def _no_clips_message(self, num_frames: int) -> str:
        """Message for an undamaged video without a clip."""
        message = f"no clip of {self.config.min_frames} frames or more (clips.min_frames) in the {num_frames} frames of"
        message += f" {self._num_shots} shots"
        if not self._num_blended:
            return message
        blended = f"{self._num_blended} are left out as empty or blended by fades and dissolves"
        return f"{message}, of which {blended}: clips.shots.find_gradual=false would keep them"

    def _scaled(self, footage: Footage, frames: Iterator[Frame]) -> Iterator[ScaledFrame]:
        """Frames at the size of the clips, each with the verdict whether it starts a shot or is blended."""
        detector = ShotDetector(self.config.shots)
        small_size = analysis_size(footage.probe)
        undecided: deque[ScaledFrame] = deque()
        self._count_shots(1)

        def with_verdicts(verdicts: Iterator[Verdict]) -> Iterator[ScaledFrame]:
            for verdict in verdicts:
                scaled = undecided.popleft()
                scaled.starts_shot, scaled.is_blended = verdict.starts_shot, verdict.is_blended
                self._count_shots(verdict.starts_shot)
                self._num_blended += verdict.is_blended
                yield scaled

        for frame in frames:
            if frame.is_corrupt and not self.config.salvage:
                raise _Damaged
            if undecided:
                undecided[-1].end_pts = frame.pts
            small = frame.small(*small_size)
            image = self.framing.crop(frame.upright(*self.framing.scaled))
            gray = self._gray(frame, small, image)
            undecided.append(ScaledFrame(frame.index, frame.pts, 0, frame.is_corrupt, image, gray))
            yield from with_verdicts(detector.add(small))
        if undecided:
            undecided[-1].end_pts = footage.end_pts()
        yield from with_verdicts(detector.end())

    def _count_shots(self, num_new: int) -> None:
        self._num_shots += num_new
        self.columns["num_shots"] = self._num_shots

    def _gray(self, frame: Frame, small: np.ndarray, image: av.VideoFrame) -> np.ndarray:
        """Gray image for scores, (h w) uint8: from that of shot detection, or from the cropped picture.

        small: BGR image for shot detection, not rotated; image: upright, as it is encoded.
        """
        if self.framing.box is None:
            return turned(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), self.probe)
        height, width = scored_size(*self.framing.size)
        scaled = frame.scaler.scaled(image, height, width, "bgr24", interpolation=Interpolation.AREA)
        return cv2.cvtColor(scaled.to_ndarray(), cv2.COLOR_BGR2GRAY)

    def _encoded(self, frames: Iterator[ScaledFrame]) -> Iterator[CutClip]:
        """Encode clips to files in the staging folder; yields each clip after its last frame."""
        writer, clip, path = None, [], ""
        try:
            for shot, scaled, is_last in plan_clips(frames, self._rules()):
                if writer is None:
                    path = os.path.join(self.staging, f"{scaled.index}.mp4")
                    writer, clip = self._writer(path, scaled.image), []
                writer.write(scaled.image, scaled.pts - (clip[0] if clip else scaled).pts)
                frame = replace(scaled, image=None)  # frees the memory of the encoded picture
                clip.append(frame)
                if is_last:
                    writer.close()
                    writer = None
                    fps = self.fps(len(clip), clip[0], frame)
                    view = ClipView(np.stack([frame.gray for frame in clip]), float(fps), path)
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
        """Rules for the lengths of clips; a picture is always a clip of one frame."""
        return ClipRules(min_frames=1, max_frames=2, margin_frames=0) if self.probe.is_image else self.config

    def clip_id(self, first: ScaledFrame, last: ScaledFrame) -> str:
        """Id of the clip from `first` to `last`: a hash of the video, the span and the encoding."""
        config, base = self.config, self.probe.time_base
        encoding = [ENCODER, config.crf, config.preset, *self.framing.size]
        if self.framing.box:
            encoding += [self.framing.scaled, self.framing.box]
        span = [first.pts, last.end_pts, base.numerator, base.denominator]
        return content_id(self.item["video_id"], span, encoding)

    def fps(self, num_frames: int, first: ScaledFrame, last: ScaledFrame) -> Fraction:
        """Frame rate of a clip."""
        return mean_fps(num_frames, first.pts, last.pts, self.probe.time_base, self.probe.fps)

    def clip_row(self, clip: CutClip, media: str) -> Row:
        """Row of a clip; the media file has to be published at its `uri`."""
        probe = self.probe
        base = probe.time_base
        height, width = self.framing.size
        clip_id = self.clip_id(clip.first, clip.last)
        fps = self.fps(clip.num_frames, clip.first, clip.last)
        return ok_row(
            {},  # always the first attempt: only videos fail, not clips
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
            crc32=storage.file_crc32(clip.path),
            cut_method=self.config.shots.method,
            crop=self.framing.crop_of(probe),
        )


def probe_columns(probe: VideoProbe) -> Row:
    """Columns of `videos` from the header and the first frame."""
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


def integrity_columns(integrity: Integrity) -> Row:
    """Columns of `videos` from decoding; they replace the values of the header."""
    return {
        "fps_num": integrity.fps.numerator,
        "fps_den": integrity.fps.denominator,
        "is_vfr": integrity.is_vfr,
        "num_frames": integrity.num_frames,
        "num_frames_corrupt": integrity.num_frames_corrupt,
        "duration_s": integrity.duration_s,
    }


def _remark(integrity: Integrity) -> str:
    """Column `error` of a video that is used although it has defects; "" if it has none."""
    remarks = [f"{SALVAGED}{integrity.problem}"] if integrity.problem else []
    if integrity.num_pts_repaired:
        remarks.append(
            f"{integrity.num_pts_repaired} frames had no time, or one out of order: set after the frame before"
        )
    return "; ".join(remarks)
