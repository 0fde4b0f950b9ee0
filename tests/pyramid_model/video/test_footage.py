"""Files from outside: what they are is found by decoding, and damage never passes unseen. About 5 s."""

import itertools
import os
import shutil
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyramid_model.video.footage import Footage, decode, probe
from pyramid_model.video.video import VideoError


def examine(path):
    """(probe, integrity) of a file."""
    with Footage(str(path)) as footage:
        for _ in footage.frames():
            pass
        return footage.probe, footage.integrity()


def test_a_sound_file_has_the_frames_that_were_filmed(tmp_path, shoot):
    shoot(tmp_path / "a.mp4", [30, 20], fps=25)
    header, integrity = examine(tmp_path / "a.mp4")
    assert (header.width, header.height, header.rotation, header.fps) == (160, 96, 0, 25)
    assert (integrity.num_frames, integrity.num_frames_corrupt, integrity.num_pts_repaired) == (50, 0, 0)
    assert (integrity.is_vfr, integrity.problem, integrity.duration_s) == (False, None, pytest.approx(2.0))


def test_frames_come_in_order_with_growing_times(tmp_path, shoot):
    filmed = shoot(tmp_path / "a.mp4", [12])
    frames = list(decode(str(tmp_path / "a.mp4")))
    assert [frame.index for frame in frames] == list(range(12))
    assert all(before.pts < after.pts for before, after in itertools.pairwise(frames))
    error = [[np.abs(frame.rgb().astype(int) - other).mean() for other in filmed] for frame in frames]
    assert np.argmin(error, axis=1).tolist() == list(range(12))


def test_decoding_only_to_look_spares_deblocking_and_shows_the_same_miniatures():
    path = str(Path(__file__).parents[3] / "datasets" / "sample" / "bbb_meadow.mp4")
    with Footage(path) as footage, Footage(path, only_to_look=True) as quick:
        pairs = list(itertools.islice(zip(footage.frames(), quick.frames(), strict=True), 60))
    whole = [np.array_equal(frame.image.to_ndarray(), other.image.to_ndarray()) for frame, other in pairs]
    assert 0.2 < np.mean(whole) < 0.8, "frames from which others are predicted must be exact, and others are not"
    small = [np.abs(frame.small(144, 256).astype(int) - other.small(144, 256)).mean() for frame, other in pairs]
    assert max(small) < 0.5
    assert [frame.pts for frame, _ in pairs] == [other.pts for _, other in pairs]


def test_a_variable_frame_rate_is_noticed_and_measured(tmp_path, shoot):
    times = [*range(0, 1000, 40), *range(1000, 3000, 125)]  # 25 fps, then 8
    shoot(tmp_path / "a.mp4", [41], times=times)
    _, integrity = examine(tmp_path / "a.mp4")
    assert integrity.is_vfr
    assert float(integrity.fps) == pytest.approx(40 / 2.875, rel=1e-3)
    assert [frame.pts for frame in decode(str(tmp_path / "a.mp4"))] == pytest.approx(
        [round(t / 1000 / probe(str(tmp_path / "a.mp4")).time_base) for t in times]
    )


def test_a_bare_stream_without_times_keeps_its_rate(tmp_path, shoot):
    shoot(tmp_path / "a.h264", [50], fps=25)
    header, integrity = examine(tmp_path / "a.h264")
    assert (integrity.fps, integrity.num_pts_repaired, integrity.is_vfr) == (header.fps, 49, False) == (25, 49, False)
    assert integrity.duration_s == pytest.approx(2)


def test_millisecond_rounding_is_not_a_variable_rate(tmp_path, shoot):
    shoot(tmp_path / "a.mkv", [40], fps=24)
    _, integrity = examine(tmp_path / "a.mkv")
    assert (integrity.is_vfr, integrity.fps, integrity.problem) == (False, Fraction(24), None)


def test_a_longer_sound_track_is_no_truncation(tmp_path, shoot):
    shoot(tmp_path / "a.mkv", [24], audio_s=3.0)
    shoot(tmp_path / "a.mp4", [24], audio_s=3.0)
    for name in ("a.mkv", "a.mp4"):
        header, integrity = examine(tmp_path / name)
        assert (header.has_audio, integrity.num_frames, integrity.problem) == (True, 24, None)


def test_a_transport_stream_may_start_late(tmp_path, shoot):
    shoot(tmp_path / "a.ts", [30], fps=25, times=list(range(5000, 6200, 40)))
    header, integrity = examine(tmp_path / "a.ts")
    assert header.start_pts * header.time_base == 5
    assert (header.num_frames_header, integrity.num_frames, integrity.problem) == (0, 30, None)
    assert integrity.duration_s == pytest.approx(1.2)


def stream_copied(source, target, first_pts_s: float) -> int:
    """Copy packets from the key frame before a time on and hide those before it, as `ffmpeg -ss -c copy` does.

    Returns the number of packets.
    """
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        old.seek(round(first_pts_s / stream.time_base), stream=stream)
        packets = [packet for packet in old.demux(stream) if packet.pts is not None]
        start = round(first_pts_s / stream.time_base)
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copied
            new.mux(packet)
    return len(packets)


def test_frames_that_a_stream_copied_cut_hides_are_not_seen(good, tmp_path):
    num_packets = stream_copied(good, tmp_path / "a.mp4", 30 / 24)
    header, integrity = examine(tmp_path / "a.mp4")
    assert header.num_frames_header == num_packets == 120
    assert (integrity.num_frames, integrity.problem) == (90, None)
    whole, rest = list(decode(str(good))), list(decode(str(tmp_path / "a.mp4")))
    for frame, expected in ((rest[0], whole[30]), (rest[-1], whole[-1])):
        assert (frame.rgb() == expected.rgb()).all()


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)])
def test_broadcast_rates_stay_exact(tmp_path, shoot, fps):
    shoot(tmp_path / "a.mp4", [30], fps=fps)
    header, integrity = examine(tmp_path / "a.mp4")
    assert header.fps == integrity.fps == fps


@pytest.fixture(scope="module")
def good(tmp_path_factory, shoot):
    """A sound file whose index comes first, so that a cut one still opens."""
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    shoot(path, [60, 60], size=(144, 256))
    return path


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_a_truncated_file_is_found_out(good, tmp_path, share):
    data = good.read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: int(len(data) * share)])
    _, integrity = examine(tmp_path / "a.mp4")
    assert integrity.num_frames < 120
    assert integrity.problem
    assert integrity.problem.kind in ("truncated", "corrupt_frames")
    assert share > 0.9 or integrity.problem.kind == "truncated"


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_are_found_out(good, tmp_path, seed):
    data = bytearray(good.read_bytes())
    random = np.random.default_rng(seed)
    for position in random.integers(len(data) // 3, len(data), 40):
        data[position] ^= 1 << int(random.integers(8))
    (tmp_path / "a.mp4").write_bytes(data)
    _, integrity = examine(tmp_path / "a.mp4")
    assert integrity.num_frames_corrupt > 0
    assert integrity.problem


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("text.mp4", b"this is not a video\n" * 30, "not_media"),
        ("zero.mp4", b"", "not_media"),
        ("notes.txt", b"plain text, which ffmpeg would render", "not_media"),
        ("list.mp4", b"ffconcat version 1.0\nfile good.mp4\n", "not_media"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n#EXT-X-ENDLIST\n", "not_media"),
        ("missing.mp4", None, "missing"),
    ],
)
def test_what_is_no_video_is_named(good, tmp_path, name, content, kind):
    shutil.copy(good, tmp_path / "good.mp4")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError) as caught:
        probe(str(tmp_path / name))
    assert caught.value.kind == kind


@pytest.mark.parametrize(("has_cover", "streams"), [(False, "audio"), (True, "a cover picture, audio")])
def test_sound_alone_is_no_video(tmp_path, has_cover, streams):
    import av
    from av.stream import Disposition

    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1) if has_cover else None
        if cover:
            cover.height, cover.width, cover.pix_fmt = 96, 160, "yuvj420p"
            cover.disposition = Disposition.attached_pic
            picture = av.VideoFrame.from_ndarray(np.zeros((96, 160, 3), np.uint8), "rgb24")
            container.mux([*cover.encode(picture), *cover.encode()])
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux([*stream.encode(silence), *stream.encode()])
    with pytest.raises(VideoError, match=rf"has no video stream \(streams: {streams}\)") as caught:
        probe(str(tmp_path / "a.m4a"))
    assert caught.value.kind == "no_video_stream"


SHARED = {
    "decord_corrupted.mp4": "corrupt_frames",
    "made_bitflips.mp4": "corrupt_frames",
    "made_header_only.mp4": "no_video_stream",
    "made_text_as_mp4.mp4": "not_media",
    "made_truncated60.mp4": "truncated",
    "made_zero_bytes.mp4": "not_media",
}


@pytest.mark.slow
def test_every_odd_file_ends_as_a_reason_or_as_a_video(shared_assets):
    for path in sorted((shared_assets / "odd").glob("*.m*")) + sorted((shared_assets / "odd").glob("*.avi")):
        try:
            _, integrity = examine(path)
            problem = integrity.problem
        except VideoError as err:
            problem = err
        assert (problem.kind if problem else None) == SHARED.get(path.name), path.name


OTHERS = {
    "list.mp4": b"ffconcat version 1.0\nfile other.mp4\n",
    "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
    "remote.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "list.mpd": b"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
        mediaPresentationDuration="PT5S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
        <AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>other.mp4</BaseURL>
        <SegmentBase indexRange="0-9"/></Representation></AdaptationSet></Period></MPD>""",
    "drawing.svg": b"""<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"
        xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="other.png" width="64" height="64"/></svg>""",
    "other%d.png": b"one of many",
    "subtitles.idx": b"# VobSub index file, v7 (do not modify this line!)\nsize: 720x576\nid: en, index: 0\n"
    b"timestamp: 00:00:01:000, filepos: 000000000\n",
    "session.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    b"a=rtpmap:96 H264/90000\n",
}


def test_a_file_that_names_others_is_refused_and_opens_none_of_them(tmp_path):
    # Whoever opens a pipe without a writer waits for ever.
    for name in ("other.mp4", "other.png", "other1.png", "subtitles.sub"):
        os.mkfifo(tmp_path / name)
    for name, content in OTHERS.items():
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys\nfrom pyramid_model.video.footage import probe\nfrom pyramid_model.video.video import VideoError\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        probe(path)\n    except VideoError as err:\n        print(err.kind)"
    )
    paths = [str(tmp_path / name) for name in OTHERS]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["not_media"] * len(OTHERS)


def test_frames_that_are_too_large_are_refused_before_any_is_decoded(good):
    with pytest.raises(
        VideoError, match=r"256x144 px, the limit is 0\.01 million px \(clips\.max_megapixels\)"
    ) as caught:
        Footage(str(good), max_pixels=10_000)
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("side", [200, 20_000, 60_000])
def test_a_picture_that_is_too_large_is_told_as_that_however_large_it_is(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(min(side, 200) * (3 * side + 1)))
    chunks = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))
    with pytest.raises(VideoError, match=rf"{side}x{side} px, .* \(clips\.max_megapixels\)") as caught:
        Footage(str(path), max_pixels=10_000)
    assert caught.value.kind == "too_large"


def test_frames_that_are_larger_than_the_header_says_are_not_decoded(good, tmp_path):
    data = bytearray(good.read_bytes())
    header = data.index(b"avc1", data.index(b"stsd"))
    assert struct.unpack_from(">HH", data, header + 28) == (256, 144)
    struct.pack_into(">HH", data, header + 28, 64, 64)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(VideoError) as caught:
        Footage(str(tmp_path / "a.mp4"), max_pixels=10_000)
    assert caught.value.kind in ("no_frames", "too_large")


def test_a_codec_that_nobody_knows_is_named(good, tmp_path):
    (tmp_path / "a.mp4").write_bytes(good.read_bytes().replace(b"avc1", b"zzz9"))
    with pytest.raises(VideoError) as caught:
        probe(str(tmp_path / "a.mp4"))
    assert caught.value.kind == "no_decoder"


def test_a_header_that_claims_a_billion_frames_gives_what_is_there_or_an_error(good, tmp_path):
    data = bytearray(good.read_bytes())
    sizes, chunks, times = (data.index(name) for name in (b"stsz", b"stsc", b"stts"))
    struct.pack_into(">II", data, sizes + 8, 1, 10**9)  # every sample one byte, a billion of them
    struct.pack_into(">I", data, chunks + 16, 10**9)
    struct.pack_into(">I", data, times + 12, 10**9)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(VideoError):
        examine(tmp_path / "a.mp4")


def test_five_hundred_files_take_no_more_memory_than_three_hundred(shoot, tmp_path):
    shoot(tmp_path / "a.mp4", [8], size=(48, 64))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-500])
    code = """
import contextlib, itertools, sys
import psutil
from pyramid_model.video.footage import decode
from pyramid_model.video.video import VideoError
own = psutil.Process()
for number in range(500):
    if number == 300:  # what is allocated once has been by now
        before = own.memory_info().rss
    with contextlib.suppress(VideoError):  # now and then left in the middle
        for frame in itertools.islice(decode(sys.argv[1 + number % 2]), 4 + number % 5):
            frame.small(32, 32), frame.upright(24, 32)
print((own.memory_info().rss - before) / 2**20)
"""
    paths = [str(tmp_path / "a.mp4"), str(tmp_path / "cut.mp4")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 2  # MiB
