"""Streams, read by real child processes from real HTTP cameras, sockets and pipelines of this machine."""

from __future__ import annotations

import contextlib
import gc
import http.server
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.reading import backoff
from s3clip_runtime.streams.reading.backoff import BACKOFF_S, HEALTHY_S, Backoff
from s3clip_runtime.streams.reading.connection import Lost
from s3clip_runtime.streams.reading.hardware import missing
from s3clip_runtime.streams.reading.knock import knock
from s3clip_runtime.streams.reading.link import Link, Task
from s3clip_runtime.streams.reading.live import Knocker
from s3clip_runtime.streams.reading.ring import SLOTS, RingReader
from s3clip_runtime.streams.reading.sources import ReadOptions, Source, SourceSpec, open_source
from s3clip_runtime.streams.status import State

QUICK = ReadOptions(open_timeout_s=2, read_timeout_s=2)
HEIGHT, WIDTH = 96, 128


class Camera(http.server.ThreadingHTTPServer):
    """An MJPEG camera: sends `burst` pictures a connection at 50 fps, then closes it, or stalls if told.

    The level of picture i is 20 + 4 * (i % 50). Other paths answer with their number as HTTP status.
    """

    daemon_threads = True
    burst = 10
    film = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CameraHandler)
        self.connections = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def handle_error(self, *_: object) -> None:
        """Readers come and go."""

    def spec(self, path: str = "cam.mjpg", name: str = "cam") -> SourceSpec:
        return SourceSpec(name, f"http://user:s3cret@127.0.0.1:{self.server_port}/{path}", "ground")


class CameraHandler(http.server.BaseHTTPRequestHandler):
    server: Camera

    def do_GET(self) -> None:
        self.server.connections += 1
        name = self.path.rpartition("/")[2]
        with contextlib.suppress(OSError):  # the reader has gone
            if name.isdigit():
                self.send_error(int(name))
            elif name == "film.mp4":
                self._film()
            else:
                self._stream()

    def _film(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.film)))
        self.end_headers()
        self.wfile.write(self.server.film)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for index in range(self.server.burst):
            picture = np.full((HEIGHT, WIDTH, 3), 20 + 4 * (index % 50), np.uint8)
            picture[:, : WIDTH // 2] = (10, 10, 200)
            jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            self.wfile.write(head + jpeg + b"\r\n")
            time.sleep(0.02)
        self.server.go_on.wait()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def camera() -> Iterator[Camera]:
    server = Camera()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.go_on.set()
    server.burst = 0
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def opened(spec: SourceSpec, options: ReadOptions = QUICK) -> Iterator[Source]:
    with contextlib.closing(open_source(spec, options)) as source:
        yield source


def read_until(source: Source, done: Callable[[], bool], limit_s: float = 15) -> list[Frame]:
    """Take every frame until `done`; what was taken."""
    frames: list[Frame] = []
    end_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end_s, source.status()
        select.select([source], [], [], 0.05)
        while (frame := source.take()) is not None:
            frames.append(frame)
    return frames


def state_is(source: Source, state: State) -> Callable[[], bool]:
    return lambda: source.status().state is state


def children() -> list[int]:
    """Reading children of this process."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                if b"reading.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


def test_a_stream_reconnects_and_hides_the_password(camera: Camera, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    before_s = time.time()
    with opened(camera.spec()) as source:
        assert source.live
        frames = read_until(source, lambda: source.status().reconnects == 2)
        (child,) = children()
        secrets = Path(f"/proc/{child}/cmdline").read_bytes() + Path(f"/proc/{child}/environ").read_bytes()
        status = source.status()
    assert camera.connections >= 3
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0)
    assert np.all(np.diff([frame.index for frame in frames]) > 0)
    assert before_s < frames[0].time_s < time.time()
    assert {frame.clock for frame in frames} == {"arrival"}
    assert status.size == frames[0].image.shape[:2] == (HEIGHT, WIDTH)
    assert abs(float(frames[0].image[:, : WIDTH // 2 - 8, 0].mean()) - 200) < 12  # RGB
    assert b"s3cret" not in secrets
    assert "s3cret" not in caplog.text + repr(status)
    assert children() == []


def test_a_slow_consumer_gets_the_newest_frames_and_the_lost_are_counted(camera: Camera) -> None:
    camera.burst = 40
    camera.go_on.clear()  # the stream stays open, silent, after 40 pictures
    with opened(camera.spec(), ReadOptions(read_timeout_s=9)) as source:
        first = read_until(source, lambda: source.status().received > 0)
        end_s = time.monotonic() + 10
        while source.status().received < 40 and time.monotonic() < end_s:
            time.sleep(0.05)
        late = [frame for _ in range(SLOTS) if (frame := source.take()) is not None]
        assert source.take() is None
        status = source.status()
    assert [frame.index for frame in late] == list(range(40 - SLOTS, 40))
    assert status.drops["overrun"] == 40 - len(first) - SLOTS
    assert status.fps is not None
    assert 5 < status.fps < 60  # 50 sent; a busy machine sends fewer


@pytest.mark.slow
def test_a_silent_stream_is_stale_then_down_then_live(camera: Camera) -> None:
    camera.burst = 20
    camera.go_on.clear()
    with opened(camera.spec(), ReadOptions()) as source:
        read_until(source, state_is(source, State.LIVE))
        quiet_s = time.monotonic()
        read_until(source, state_is(source, State.STALE))
        assert time.monotonic() - quiet_s < 4
        assert "no picture" in source.status().reason
        read_until(source, state_is(source, State.DOWN))
        assert time.monotonic() - quiet_s < 8
        camera.burst = 10**6
        camera.go_on.set()
        read_until(source, state_is(source, State.LIVE))
        assert source.status().reason == ""


@pytest.mark.slow
def test_the_descriptor_tells_of_frames_and_of_changes(camera: Camera) -> None:
    camera.go_on.clear()
    with opened(camera.spec(), ReadOptions()) as source:
        assert select.select([source], [], [], 10)[0]
        read_until(source, lambda: source.status().received >= 9)
        time.sleep(0.3)  # CONNECTING to LIVE
        while source.take() is not None:
            pass
        assert not select.select([source], [], [], 0)[0]
        assert select.select([source], [], [], 5)[0]  # STALE
        assert source.status().state is State.STALE


@pytest.mark.parametrize(
    ("path", "state", "words"),
    [
        ("401", State.FAILED, "user and password"),
        ("503", State.DOWN, "503|5XX|Server"),
    ],
)
def test_refusals_are_told_apart(camera: Camera, path: str, state: State, words: str) -> None:
    with opened(camera.spec(path)) as source:
        read_until(source, state_is(source, state))
        assert any(word in source.status().reason for word in words.split("|"))
        asked = camera.connections
        time.sleep(1)
        # A refusal that needs a person is not repeated for 15 s and more; others within a second.
        assert (camera.connections > asked) is (state is State.DOWN)


def test_a_camera_that_is_off_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    off = SourceSpec("cam", "rtsp://user:s3cret@127.0.0.1:1/x", "ground")
    with opened(off) as source:
        read_until(source, state_is(source, State.DOWN))
        read_until(source, lambda: "next try in 1." in source.status().reason)  # the third failure
        assert source.take() is None
        assert not source.ended
        began_s = time.monotonic()
        source.close()
        source.close()
        assert time.monotonic() - began_s < 5  # 2 without load; a site has to end within 5
    assert caplog.text.count("is DOWN") == 1  # each change once
    assert "s3cret" not in caplog.text


def test_a_file_behind_http_is_read_without_loss(
    camera: Camera, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film = tmp_path / "film.mp4"
    with av.open(str(film), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(20):
            picture = np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    camera.film = film.read_bytes()
    with opened(camera.spec("film.mp4")) as source:
        select.select([source], [], [], 10)
        time.sleep(0.5)
        frames = read_until(source, lambda: source.ended)
        assert not source.live
        assert source.error is None
        assert source.fps == 10
    assert [round(float(frame.image.mean()) / 10) for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(20) / 10)
    assert "a file that ends" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGSEGV, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_crashed_or_hung_child_is_replaced_alone(camera: Camera, number: signal.Signals) -> None:
    camera.burst = 10**6
    with (
        opened(camera.spec(), ReadOptions(read_timeout_s=0.6)) as source,
        opened(camera.spec(name="other")) as other,
    ):
        read_until(other, state_is(other, State.LIVE))
        before = read_until(source, lambda: source.status().received > 5)
        victim = next(pid for pid in children() if pid in _children_of(source))
        os.kill(victim, number)
        after = read_until(source, lambda: source.status().restarts == 1)
        after += read_until(source, state_is(source, State.LIVE))
        after += read_until(source, lambda: source.status().received > 20)
        assert victim not in children()
        assert not Path(f"/proc/{victim}").exists()  # no zombie
        assert other.status().restarts == 0
        assert other.status().reconnects == 0
        assert read_until(other, lambda: True) == []
        frames = before + after
        status = source.status()
    assert np.all(np.diff([frame.index for frame in frames]) > 0)
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0)
    assert status.reconnects >= 1


def _children_of(source: Source) -> list[int]:
    name = f"camera {source.spec.name}"
    (thread,) = (thread for thread in threading.enumerate() if thread.name == name)
    return [int(pid) for pid in Path(f"/proc/self/task/{thread.native_id}/children").read_text().split()]


@pytest.mark.slow
def test_closing_does_not_wait_for_a_hung_child(camera: Camera) -> None:
    camera.burst = 10**6
    with opened(camera.spec()) as source:
        read_until(source, state_is(source, State.LIVE))
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        began_s = time.monotonic()
        source.close()
        assert time.monotonic() - began_s < 2.5
    assert not Path(f"/proc/{child}").exists()


def test_a_child_ignores_the_terminal_but_not_the_death_of_its_parent(camera: Camera) -> None:
    camera.burst = 10**6
    script = (
        "import sys, time; from s3clip_runtime.streams.reading.sources import *\n"
        "source = open_source(SourceSpec('cam', sys.stdin.readline().strip(), 'ground'), ReadOptions())\n"
        "while source.take() is None: time.sleep(0.01)\n"
        "print(open(f'/proc/self/task/{source._thread.native_id}/children').read(), flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdin is not None
        assert parent.stdout is not None
        print(camera.spec().url, file=parent.stdin, flush=True)
        child = int(parent.stdout.readline())
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(child, number)
        time.sleep(0.3)
        assert Path(f"/proc/{child}/status").read_text().split("State:")[1].split()[0] != "Z"
    finally:
        parent.kill()
        parent.communicate(timeout=10)
    end_s = time.monotonic() + 3
    while Path(f"/proc/{child}").exists():
        state = Path(f"/proc/{child}/status").read_text().split("State:")[1].split()[0]
        if state == "Z":  # dead; whoever adopted it has to collect it
            break
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.slow
def test_many_restarts_leak_nothing(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "BACKOFF_S", (0.01, 0.01))
    camera.burst = 10**6
    with opened(camera.spec()) as source:
        read_until(source, state_is(source, State.LIVE))
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        for count in range(1, 5):
            os.kill(_children_of(source)[0], signal.SIGKILL)
            read_until(source, lambda count=count: source.status().restarts == count)  # type: ignore[misc]
            read_until(source, state_is(source, State.LIVE))
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # a connection of the camera's own
        assert threading.active_count() <= threads + 1
        assert len(children()) == 1


@pytest.mark.slow
def test_many_reconnects_leak_nothing(
    camera: Camera, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"  # starts the same child, but one that hardly waits between its attempts
    python.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from s3clip_runtime.streams.reading import backoff, child\n"
        "backoff.BACKOFF_S = (0.001, 0.001)\n"
        "sys.argv = sys.argv[3:]\n"
        "child.main()\n"
    )
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    camera.burst = 3
    with opened(camera.spec()) as source:
        sizes = []
        for count in (50, 175, 300):
            read_until(source, lambda count=count: source.status().reconnects >= count, 90)  # type: ignore[misc]
            (pid,) = _children_of(source)
            memory_kb = int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])
            sizes.append((memory_kb, len(os.listdir(f"/proc/{pid}/fd"))))
            print(
                f"{count} reconnects: child {memory_kb} kB, {sizes[-1][1]} files; "
                f"parent {len(os.listdir('/proc/self/fd'))} files"
            )
        assert source.status().restarts == 0
    assert sizes[2][0] < sizes[0][0] + 1000, sizes
    assert sizes[2][1] <= sizes[0][1] + 1, sizes


class Silent:
    """A server as a stopped process shows it: it takes connections and says nothing, until `awake`."""

    def __init__(self) -> None:
        self.awake = threading.Event()
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.heard.append(connection.recv(1000))
            self.awake.wait(20)
            connection.sendall(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n")

    def close(self) -> None:
        self.awake.set()
        with contextlib.suppress(OSError):  # it is closed already
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept too
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    with contextlib.closing(Silent()) as server:
        yield server


@contextlib.contextmanager
def linked(url: str) -> Iterator[Link]:
    """A child's link in this process; its parent is this test."""
    ring = RingReader()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(Task("stream", url, 1, 1, "cpu", 10, 0, 0, ring.ends).packet())
    link = Link(theirs)
    try:
        yield link
    finally:
        theirs.setblocking(True)
        # The link's watch ends the process after its parent: this one must live on, so both ends stay open.
        _open.extend((ours, theirs))
        del link
        ring.child_has_started()


_open: list[socket.socket] = []


def test_a_knock_holds_no_secret_and_needs_an_answer(silent: Silent) -> None:
    url = f"rtsp://user:s3c/r@et@127.0.0.1:{silent.port}/private?key=s3cret"
    assert not knock(url, 0.3)
    silent.awake.set()
    assert knock(url, 2)
    assert silent.heard == [b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"] * 2
    silent.close()
    assert not knock(url, 0.3)
    assert not knock("rtsp:///nowhere", 0.3)


@pytest.mark.slow
def test_knocking_ends_a_long_wait_when_the_server_wakes_up(silent: Silent) -> None:
    with linked(f"rtsp://u:p@127.0.0.1:{silent.port}/x") as link:
        knocker = Knocker(link)
        knocker.attempt_ended(Lost("silent", timed_out=True))
        threading.Timer(2.6, silent.awake.set).start()
        began_s = time.monotonic()
        knocker.rest(30)
        assert 2.5 < time.monotonic() - began_s < 5
        # It answers knocks, but the stream gave no picture: then the wait is kept.
        knocker.attempt_ended(Lost("silent", timed_out=True))
        began_s = time.monotonic()
        knocker.rest(1)
        assert time.monotonic() - began_s > 0.9


@pytest.mark.slow
def test_a_half_open_server_is_a_time_out(silent: Silent) -> None:
    half_open = SourceSpec("cam", f"rtsp://127.0.0.1:{silent.port}/x", "ground")
    with opened(half_open, ReadOptions(open_timeout_s=0.5)) as source:
        read_until(source, state_is(source, State.DOWN))
        assert "silent for 0.5 s" in source.status().reason


def test_waits_double_are_bounded_and_start_anew() -> None:
    waits: dict[int, list[float]] = {count: [] for count in (1, 2, 3, 10, 300)}
    for _ in range(100):
        waiting = Backoff()
        for count in range(1, 301):
            wait_s = waiting.next_s(HEALTHY_S - 1)
            if count in waits:
                waits[count].append(wait_s)
        assert waiting.next_s(HEALTHY_S) <= BACKOFF_S[0]
    for count, taken in waits.items():
        full = min(BACKOFF_S[0] * 2 ** (count - 1), BACKOFF_S[1])
        assert full / 2 <= min(taken) < max(taken) <= full


@pytest.mark.skipif(missing("cuda") is None, reason="there is a CUDA device")
@pytest.mark.slow
def test_cuda_is_obeyed_or_refused(camera: Camera, tmp_path: Path) -> None:
    with opened(camera.spec(), ReadOptions(decode="cuda")) as source:
        read_until(source, state_is(source, State.FAILED))
        assert "decode = 'cpu'" in source.status().reason
    assert camera.connections == 0
    (tmp_path / "a.mp4").write_bytes(b"never read")
    with opened(SourceSpec("cam", str(tmp_path / "a.mp4"), "ground"), ReadOptions(decode="cuda")) as source:
        read_until(source, lambda: source.ended)
        assert "decode = 'cpu'" in str(source.error)


@pytest.mark.slow
def test_a_device_that_is_not_there_may_come() -> None:
    with opened(SourceSpec("cam", "/dev/video97", "ground")) as source:
        read_until(source, state_is(source, State.DOWN))
        assert source.live
        assert "No such file" in source.status().reason


def gstreamer_has(*plugins: str) -> bool:
    """Its library alone comes with other packages; the elements of the test are plugins."""
    return all(any(Path("/usr/lib").glob(f"*/gstreamer-1.0/libgst{name}.so")) for name in plugins)


@pytest.mark.skipif(not gstreamer_has("videotestsrc", "matroska", "rtsp"), reason="needs GStreamer's plugins")
@pytest.mark.slow
def test_a_pipeline_of_gstreamer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    red = (
        "gst:videotestsrc is-live=true pattern=red num-buffers=12"
        " ! video/x-raw,width=322,height=241,framerate=30/1"
    )
    with opened(SourceSpec("cam", red, "ground")) as source:
        frames = read_until(source, lambda: source.status().reconnects == 1)
    assert frames[0].image.shape == (241, 322, 3)  # rows that end in padding
    np.testing.assert_allclose(frames[0].image.mean(axis=(0, 1)), (255, 0, 0), atol=3)
    wrong = "gst:nosuchelement location=rtsp://u:s3cret@h/x user-pw=s3cret"
    with opened(SourceSpec("cam", wrong, "ground")) as source:
        read_until(source, state_is(source, State.FAILED))
        assert "nosuchelement" in source.status().reason
    off = "gst:rtspsrc location=rtsp://u:s3cret@127.0.0.1:1/x ! decodebin"
    with opened(SourceSpec("cam", off, "ground")) as source:
        read_until(source, state_is(source, State.DOWN))
        assert "not reachable (PipelineError: Could not" in source.status().reason
    assert "s3cret" not in caplog.text
