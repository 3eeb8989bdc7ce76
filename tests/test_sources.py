"""Files and folders, read by real child processes, against what was written here."""

from __future__ import annotations

import contextlib
import logging
import re
import select
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_runtime.errors import ConfigError, SourceError
from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.reading.addresses import scrub, with_encoded_login
from s3clip_runtime.streams.reading.sources import (
    ReadOptions,
    Source,
    SourceSpec,
    open_source,
    parse_source,
    redact,
)
from s3clip_runtime.streams.status import State

HEIGHT, WIDTH = 96, 128


def picture(index: int) -> NDArray[np.uint8]:
    """A plain grey whose level tells the index, and a red left half, so that RGB and BGR differ."""
    image = np.full((HEIGHT, WIDTH, 3), 20 + 8 * index, np.uint8)
    image[:, : WIDTH // 2] = (200, 10, 10)
    return image


def index_of(image: NDArray[np.uint8]) -> int:
    return round((float(image[:, WIDTH // 2 + 8 :].mean()) - 20) / 8)


def write_video(path: Path, stamps: list[int], rate: int = 10) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.gop_size = 5
        for index, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def spec(path: Path | str) -> SourceSpec:
    return SourceSpec("cam", str(path), "ground")


@contextlib.contextmanager
def opened(path: Path | str, options: ReadOptions | None = None) -> Iterator[Source]:
    with contextlib.closing(open_source(spec(path), options or ReadOptions())) as source:
        yield source


def frames_of(source: Source) -> list[Frame]:
    """All frames of a file or folder."""
    frames: list[Frame] = []
    end_s = time.monotonic() + 30
    while not source.ended:
        assert time.monotonic() < end_s
        select.select([source], [], [], 1)
        while (frame := source.take()) is not None:
            frames.append(frame)
    return frames


def error_of(path: Path | str) -> SourceError:
    with opened(path) as source:
        assert frames_of(source) == []
        assert source.error is not None
        assert source.status().state is State.FAILED
        return source.error


@pytest.mark.parametrize(
    ("text", "name", "url", "platform"),
    [
        ("gate=rtsp://user:pw@host/x@ground", "gate", "rtsp://user:pw@host/x", "ground"),
        ("drone=clips/a.mp4@aerial", "drone", "clips/a.mp4", "aerial"),
        ("clips/a b.mp4@aerial", "a-b", "clips/a b.mp4", "aerial"),
        (
            "rtsp://u:p@10.0.0.1:554/s?ch=1@ground",
            "10.0.0.1-554-s",
            "rtsp://u:p@10.0.0.1:554/s?ch=1",
            "ground",
        ),
        ("d=http://h/v.cgi?user=a@b@ground", "d", "http://h/v.cgi?user=a@b", "ground"),
        (
            "gst:rtspsrc location=rtsp://h/x ! decodebin@ground",
            "gst",
            "gst:rtspsrc location=rtsp://h/x ! decodebin",
            "ground",
        ),
    ],
)
def test_parse_source(text: str, name: str, url: str, platform: str) -> None:
    assert parse_source(text) == SourceSpec(name, url, platform)


@pytest.mark.parametrize(
    "text",
    ["a.mp4", "a.mp4@moon", "rtsp://u:s3cret@host/x", "@ground", "x=@ground", "a cam=rtsp://h/x@ground", ""],
)
def test_parse_source_refuses_and_tells_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\[name=\]URL_OR_PATH@platform") as caught:
        parse_source(text)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://user:s3cret@host:554/x", "rtsp://***@host:554/x"),
        ("rtsp://user:s3c/r#e@t@host/x", "rtsp://***@host/x"),
        ("http://host/v?user=a&pwd=s3cret", "http://host/v?***"),
        ("rtsp://user:s3?cret@host/x?k=s3cret", "rtsp://***@host/x?***"),
        ("rtsp://host/x", "rtsp://host/x"),
        ("clips/a@b.mp4", "clips/a@b.mp4"),
        ("gst:rtspsrc location=rtsp://u:s3cret@h/x user-pw=s3cret ! decodebin", "gst:rtspsrc ***"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert "s3cret" not in repr(spec(url))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("Timeout: 'rtsp://admin:s3cret@host/x'", "rtsp://admin:s3cret@host/x"),
        ("401 for admin with s3cret", "rtsp://admin:s3cret@host/x"),
        ("bad s3cr@t and s3cr%40t", "rtsp://admin:s3cr%40t@host/x"),
        ("GET /v?pwd=s3cret", "http://host/v?user=a&pwd=s3cret"),
        ("could not open rtsp://admin:s3cret@other/x", "rtsp://host/x"),
        ("rtspsrc: user-pw=s3cret wrong", "gst:rtspsrc location=rtsp://h/x user-pw=s3cret ! decodebin"),
        ("no rtsp://a:s3cret@h/x", 'gst:rtspsrc location="rtsp://a:s3cret@h/x" ! decodebin'),
    ],
)
def test_scrub(text: str, url: str) -> None:
    shown = scrub(text, url)
    assert "s3cr" not in shown
    assert "***" in shown


def test_video_file_gives_all_frames_in_rgb_with_their_times(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [0, 1, 2, 5, 6, 7, 8, 12, 13, 14])
    with opened(tmp_path / "a.mp4") as source:
        frames = frames_of(source)
    assert not source.live
    status = source.status()
    assert status.reconnects == status.restarts == sum(status.drops.values()) == 0
    assert frames[-1].clock == "stream"
    assert [frame.index for frame in frames] == list(range(10))
    assert [index_of(frame.image) for frame in frames] == list(range(10))
    np.testing.assert_allclose([f.time_s for f in frames], [0, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 1.2, 1.3, 1.4])
    red = frames[3].image[:, : WIDTH // 2 - 8].mean(axis=(0, 1))
    np.testing.assert_allclose(red, (200, 10, 10), atol=12)
    assert frames[0].image.dtype == np.uint8
    assert frames[0].image.shape == (HEIGHT, WIDTH, 3)


def test_times_of_a_file_start_at_zero(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", [70, 71, 73])
    with opened(tmp_path / "a.mkv") as source:
        times = [frame.time_s for frame in frames_of(source)]
    np.testing.assert_allclose(times, [0, 0.1, 0.3], atol=1e-6)


def test_raw_stream_without_time_stamps_counts_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.h264"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert [frame.pts for frame in container.decode(video=0)] == [None] * 12
    with opened(path) as source:
        frames = frames_of(source)
        fps = source.fps
    assert fps == 25  # what FFmpeg assumes for raw streams
    assert [index_of(frame.image) for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(12) / 25)


def test_an_early_end_of_a_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", list(range(29)))
    with opened(tmp_path / "a.mp4") as source:
        select.select([source], [], [], 10)
        assert not source.ended
        began_s = time.monotonic()
        source.close()
        assert time.monotonic() - began_s < 2.5
        assert source.ended
        assert source.take() is None
        assert source.fileno() == -1


def test_files_wait_for_a_slow_consumer(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", list(range(20)))
    with opened(tmp_path / "a.mp4") as source:
        time.sleep(0.8)
        assert [index_of(frame.image) for frame in frames_of(source)] == list(range(20))


def test_file_cut_short_gives_the_frames_it_has_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.avi"
    write_video(path, list(range(20)))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"movi") + (len(whole) - whole.index(b"movi")) // 2])
    with opened(path) as source:
        shown = [index_of(frame.image) for frame in frames_of(source)]
    assert 1 <= len(shown) < 20
    assert shown[:-1] == list(range(len(shown) - 1))  # the last one may be damaged
    assert [record for record in caplog.records if record.levelno == logging.WARNING]


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())


def make_sound(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))


def make_header_only(path: Path) -> None:
    write_video(path, list(range(5)))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"movi") + 4])


@pytest.mark.parametrize("make", [make_empty, make_noise, make_sound, make_header_only])
def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, make: object) -> None:
    path = tmp_path / "a.avi"
    assert callable(make)
    make(path)
    error = str(error_of(path))
    assert re.match(r"source cam \(.*a\.avi\): ", error)
    assert "\n" not in error


def test_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("to be or not to be\n" * 50)
    assert "notes.txt" in str(error_of(tmp_path / "notes.txt"))


def test_missing_file_and_unknown_scheme_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_source(spec(tmp_path / "gone.mp4"), ReadOptions())
    with pytest.raises(SourceError, match="no pipeline"):
        open_source(spec("gst: "), ReadOptions())
    with pytest.raises(SourceError, match="scheme 'ftp'") as caught:
        open_source(spec("ftp://u:s3cret@host/x"), ReadOptions())
    assert "s3cret" not in str(caught.value)


def test_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for index in (0, 1, 2, 9, 10, 11):
        cv2.imwrite(str(tmp_path / f"im{index}.png"), picture(index)[..., ::-1])
    (tmp_path / "notes.txt").write_text("not a picture")
    with opened(tmp_path, ReadOptions(folder_fps=5)) as source:
        frames = frames_of(source)
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2, 9, 10, 11]
    np.testing.assert_array_equal(frames[3].image, picture(9))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(6) / 5)


def test_folder_without_pictures_or_with_a_broken_first_one_is_refused(tmp_path: Path) -> None:
    assert "holds no" in str(error_of(tmp_path))
    (tmp_path / "1.jpg").write_bytes(b"nonsense")
    assert "1.jpg" in str(error_of(tmp_path))


def test_folder_stops_at_a_broken_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture(index))
    (tmp_path / "1.png").write_bytes(b"nonsense")
    with opened(tmp_path) as source:
        assert len(frames_of(source)) == 1
    assert "1.png" in caplog.text


@pytest.mark.parametrize(
    ("url", "encoded"),
    [
        ("rtsp://ann:p@ss/w#rd@h:8/x", "rtsp://ann:p%40ss%2Fw%23rd@h:8/x"),
        ("rtsp://ann:p%40ss@h/x?a=b", "rtsp://ann:p%40ss@h/x?a=b"),
        ("rtsp://ann:a:b@h/x?mail=c@d", "rtsp://ann:a%3Ab@h/x?mail=c@d"),
        ("http://ann@h/x", "http://ann@h/x"),
        ("rtsp://h/x?mail=c@d", "rtsp://h/x?mail=c@d"),
        ("/a/file@home.mp4", "/a/file@home.mp4"),
    ],
)
def test_logins_are_encoded_for_ffmpeg(url: str, encoded: str) -> None:
    """The truth: what Python's own parser takes for host, user and password."""
    assert with_encoded_login(url) == encoded
    if "://" in url:
        parts = urlsplit(encoded)
        assert parts.hostname == "h"
        assert unquote(parts.username or "") in ("ann", "")
