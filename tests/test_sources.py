"""Sources against files written here and against a real HTTP camera in this process."""

from __future__ import annotations

import http.server
import logging
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_runtime.errors import ConfigError, SourceError
from s3clip_runtime.streams.reading.live import BACKOFF_S, NEWEST_FRAMES, backoff_s
from s3clip_runtime.streams.reading.sources import SourceSpec, open_source, parse_source, redact

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
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert "s3cret" not in repr(spec(url))


def test_video_file_gives_all_frames_in_rgb_with_their_times(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [0, 1, 2, 5, 6, 7, 8, 12, 13, 14])
    with open_source(spec(tmp_path / "a.mp4"), stop=threading.Event()) as source:
        frames = list(source.frames())
    assert not source.live
    assert source.dropped == source.reconnects == 0
    assert [frame.index for frame in frames] == list(range(10))
    assert [index_of(frame.image) for frame in frames] == list(range(10))
    np.testing.assert_allclose([f.time_s for f in frames], [0, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 1.2, 1.3, 1.4])
    red = frames[3].image[:, : WIDTH // 2 - 8].mean(axis=(0, 1))
    np.testing.assert_allclose(red, (200, 10, 10), atol=12)
    assert frames[0].image.dtype == np.uint8
    assert frames[0].image.shape == (HEIGHT, WIDTH, 3)


def test_times_of_a_file_start_at_zero(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", [70, 71, 73])
    with open_source(spec(tmp_path / "a.mkv"), stop=threading.Event()) as source:
        times = [frame.time_s for frame in source.frames()]
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
    with open_source(spec(path), stop=threading.Event()) as source:
        frames = list(source.frames())
        fps = source.fps
    assert fps == 25  # what FFmpeg assumes for raw streams
    assert [index_of(frame.image) for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(12) / 25)


def test_stop_ends_a_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", list(range(10)))
    stop = threading.Event()
    with open_source(spec(tmp_path / "a.mp4"), stop=stop) as source:
        frames = source.frames()
        next(frames)
        stop.set()
        assert list(frames) == []


def test_file_cut_short_gives_the_frames_it_has_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.avi"
    write_video(path, list(range(20)))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"movi") + (len(whole) - whole.index(b"movi")) // 2])
    with open_source(spec(path), stop=threading.Event()) as source:
        shown = [index_of(frame.image) for frame in source.frames()]
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
    with pytest.raises(SourceError, match=r"^source cam \(.*a\.avi\): ") as caught:
        open_source(spec(path), stop=threading.Event())
    assert "\n" not in str(caught.value)


def test_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("to be or not to be\n" * 50)
    with pytest.raises(SourceError, match=r"notes\.txt"):
        open_source(spec(tmp_path / "notes.txt"), stop=threading.Event())


def test_missing_file_and_unknown_scheme_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_source(spec(tmp_path / "gone.mp4"), stop=threading.Event())
    with pytest.raises(SourceError, match="scheme 'ftp'") as caught:
        open_source(spec("ftp://u:s3cret@host/x"), stop=threading.Event())
    assert "s3cret" not in str(caught.value)


def test_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for index in (0, 1, 2, 9, 10, 11):
        cv2.imwrite(str(tmp_path / f"im{index}.png"), picture(index)[..., ::-1])
    (tmp_path / "notes.txt").write_text("not a picture")
    with open_source(spec(tmp_path), stop=threading.Event(), folder_fps=5) as source:
        frames = list(source.frames())
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2, 9, 10, 11]
    np.testing.assert_array_equal(frames[3].image, picture(9))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(6) / 5)


def test_folder_without_pictures_or_with_a_broken_first_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no"):
        open_source(spec(tmp_path), stop=threading.Event())
    (tmp_path / "1.jpg").write_bytes(b"nonsense")
    with pytest.raises(SourceError, match=r"1\.jpg"):
        open_source(spec(tmp_path), stop=threading.Event())


def test_folder_stops_at_a_broken_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture(index))
    (tmp_path / "1.png").write_bytes(b"nonsense")
    with open_source(spec(tmp_path), stop=threading.Event()) as source:
        assert len(list(source.frames())) == 1
    assert "1.png" in caplog.text


class Camera(http.server.ThreadingHTTPServer):
    """An MJPEG camera: sends `burst` pictures a connection at 50 fps, then closes it, or stalls if told."""

    daemon_threads = True
    burst = 10
    stall = threading.Event()
    connections = 0


class CameraHandler(http.server.BaseHTTPRequestHandler):
    server: Camera

    def do_GET(self) -> None:
        self.server.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for index in range(self.server.burst):
            jpeg = cv2.imencode(".jpg", picture(index)[..., ::-1])[1].tobytes()
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            try:
                self.wfile.write(head + jpeg + b"\r\n")
            except OSError:  # the reader has gone
                return
            time.sleep(0.02)
        self.server.stall.wait()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def camera() -> Iterator[Camera]:
    server = Camera(("127.0.0.1", 0), CameraHandler)
    server.stall = threading.Event()
    server.stall.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stall.set()
    server.shutdown()
    server.server_close()
    thread.join()


def live_spec(server: Camera) -> SourceSpec:
    return spec(f"http://user:s3cret@127.0.0.1:{server.server_port}/cam.mjpg")


def test_live_stream_reconnects_and_hides_the_password(
    camera: Camera, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    before = time.time()
    with open_source(live_spec(camera), stop=stop, open_timeout_s=2, read_timeout_s=2) as source:
        frames = []
        for frame in source.frames():
            frames.append(frame)
            if source.reconnects == 2:
                stop.set()
    assert source.live
    assert camera.connections >= 3
    assert len(frames) + source.dropped > 20
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0)
    assert np.all(np.diff([frame.index for frame in frames]) > 0)
    assert before < frames[0].time_s < time.time()
    assert caplog.text.count("next try in") >= 2
    assert "s3cret" not in caplog.text
    assert not any(thread.name == "camera cam" for thread in threading.enumerate())


def test_slow_consumer_gets_the_newest_frames(camera: Camera) -> None:
    camera.burst = 40
    camera.stall.clear()  # the stream stays open, silent, after 40 pictures
    with open_source(live_spec(camera), stop=threading.Event(), open_timeout_s=2, read_timeout_s=9) as source:
        frames = source.frames()
        next(frames)
        time.sleep(2)
        late = [next(frames) for _ in range(NEWEST_FRAMES)]
        camera.stall.set()
    # FFmpeg holds the last picture back until the next one begins.
    assert late[-1].index >= 38
    assert source.dropped == late[0].index - 1
    assert source.fps is not None
    assert 5 < source.fps < 60  # 50 sent; a busy machine sends fewer


def test_silent_stream_is_a_disconnect(camera: Camera, caplog: pytest.LogCaptureFixture) -> None:
    camera.burst = 3
    camera.stall.clear()
    stop = threading.Event()
    with open_source(live_spec(camera), stop=stop, open_timeout_s=1, read_timeout_s=0.5) as source:
        for _ in source.frames():
            if source.reconnects:
                stop.set()
    assert camera.connections >= 2
    assert "lost (" in caplog.text


def test_camera_that_is_off_is_tried_again_until_closed(caplog: pytest.LogCaptureFixture) -> None:
    off = spec("rtsp://user:s3cret@127.0.0.1:1/x")
    stop = threading.Event()
    source = open_source(off, stop=stop, open_timeout_s=1, read_timeout_s=1)
    threading.Timer(1.2, stop.set).start()
    assert list(source.frames()) == []
    began = time.monotonic()
    source.close()
    source.close()
    assert time.monotonic() - began < 3
    assert caplog.text.count("not reachable") >= 2
    assert "s3cret" not in caplog.text


def test_backoff_doubles_and_is_bounded() -> None:
    for failures in (1, 2, 3, 10, 10_000):
        full = min(BACKOFF_S[0] * 2 ** (failures - 1), BACKOFF_S[1]) if failures < 100 else BACKOFF_S[1]
        waits = [backoff_s(failures) for _ in range(200)]
        assert full / 2 <= min(waits) < max(waits) <= full
