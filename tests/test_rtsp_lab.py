"""The laboratory itself: its cameras and its network, as PyAV, FFmpeg and plain sockets see them."""

from __future__ import annotations

import collections
import itertools
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from streams.clips import LOOP
from streams.lab import OTHER_SIZE, SIZE, RtspServer, wait_until, write_clips
from streams.pictures import read_strip
from streams.tcp_proxy import Link, TcpProxy

FPS = 30
"""Three times the usual: a test that waits for key frames is three times faster."""

FAST = {"analyzeduration": "100000", "fpsprobesize": "0"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), 2, other=True)


@pytest.fixture(scope="module")
def shared(clips: Path) -> Iterator[RtspServer]:
    """One server for all tests that leave it well."""
    with RtspServer(clips, 2, fps=FPS) as server:
        yield server


@pytest.fixture
def server(shared: RtspServer) -> Iterator[RtspServer]:
    yield shared
    shared.order("ok")


class Watch(threading.Thread):
    """Reads a camera in the background and remembers what it saw of each frame, and how it ended."""

    def __init__(self, url: str, *, transport: str = "tcp", timeout_s: float = 2) -> None:
        super().__init__(daemon=True)
        self.numbers: list[int | None] = []
        self.cameras: set[int] = set()
        self.sizes: list[tuple[int, int]] = []
        self.pts: list[float] = []
        self.late: list[float] = []
        self.means: list[float] = []
        self.corrupt = 0
        self.clock_error_s: float | None = None
        self.end: str | None = None
        self._done = threading.Event()
        self._open = url, {**FAST, "rtsp_transport": transport}, timeout_s
        self.start()

    def run(self) -> None:
        url, options, timeout_s = self._open
        try:
            with av.open(url, options=options, timeout=(timeout_s, timeout_s)) as container:
                for packet in container.demux(video=0):
                    try:
                        frames = packet.decode()
                    except av.FFmpegError:
                        self.corrupt += 1
                        continue
                    for frame in frames:
                        assert isinstance(frame, av.VideoFrame)
                        start = getattr(container, "start_time_realtime", None)
                        self._see(frame, start)
                    if self._done.is_set():
                        return
            self.end = "end of stream"
        except av.FFmpegError as error:
            self.end = type(error).__name__

    def stop(self) -> None:
        self._done.set()
        self.join(10)

    def frames(self, count: int, timeout_s: float = 6) -> Watch:
        """Wait for so many more frames."""
        target = len(self.numbers) + count
        wait_until(f"{count} frames; {self.end}", lambda: len(self.numbers) >= target, timeout_s)
        return self

    def _see(self, frame: av.VideoFrame, start_us: int | None) -> None:
        image = frame.to_ndarray(format="rgb24").astype(np.uint8)
        strip, now = read_strip(image), time.time()
        self.sizes.append((frame.height, frame.width))
        self.means.append(float(image.mean()))
        self.corrupt += frame.is_corrupt
        if frame.time is not None:
            self.pts.append(frame.time)
            if start_us and strip:
                self.clock_error_s = start_us / 1e6 + frame.time - captured_s(strip[1], now)
        if strip:
            self.cameras.add(strip[0])
            self.late.append(now - captured_s(strip[1], now))
        self.numbers.append(strip[1] if strip else None)


def captured_s(number: int, now_s: float) -> float:
    """Unix time of the newest frame of this number."""
    period = LOOP / FPS
    return now_s - (now_s - number / FPS) % period


def steps(numbers: list[int | None]) -> collections.Counter[int]:
    """How many frames further each readable frame is than the one before."""
    known = [number for number in numbers if number is not None]
    return collections.Counter((b - a) % LOOP for a, b in itertools.pairwise(known))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_well(server: RtspServer, transport: str) -> None:
    watch = Watch(server.url(2), transport=transport).frames(25)
    watch.stop()
    assert watch.end is None
    assert watch.cameras == {2}
    assert steps(watch.numbers) == {1: len(watch.numbers) - 1}
    assert set(watch.sizes) == {SIZE}
    np.testing.assert_allclose(np.diff(watch.pts), 1 / FPS, atol=1e-3)
    assert 0 <= watch.late[-1] < 0.5
    assert watch.clock_error_s == pytest.approx(0, abs=0.02)  # RTCP tells when a frame was captured
    wait_until("the server knows that we left", lambda: not playing(server), 2)


def playing(server: RtspServer) -> int:
    return sum(camera["playing"] for camera in server.order("state")["cameras"].values())


def test_ffprobe_reads_it(server: RtspServer) -> None:
    if not shutil.which("ffprobe"):
        pytest.skip("needs ffprobe")
    line = [
        "ffprobe",
        "-v",
        "error",
        "-rtsp_transport",
        "tcp",
        "-select_streams",
        "v",
        "-read_intervals",
        "%+1",
    ]
    line += ["-show_entries", "stream=codec_name,width,height", "-of", "csv=p=0", server.url()]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.strip() == f"h264,{SIZE[1]},{SIZE[0]}"


def test_stall_freeze_black_size_and_rate(server: RtspServer) -> None:
    """One connection through five faults; the decoder is told of none of them."""
    watch = Watch(server.url(), timeout_s=4).frames(5)
    server.order("stall", cam=1, s=1)
    before = time.monotonic()
    watch.frames(2)
    assert time.monotonic() - before > 0.7
    assert steps(watch.numbers).most_common(1)[0][0] == 1

    server.order("freeze", cam=1, s=0.5)
    wait_until("frozen", lambda: len(set(watch.numbers[-6:])) == 1, 3)
    assert watch.pts[-1] - watch.pts[-5] == pytest.approx(4 / FPS, abs=0.01)
    wait_until("well", lambda: len(set(watch.numbers[-6:])) == 6, 4)

    server.order("scene", cam=1, name="black")
    wait_until("black", lambda: watch.means[-1] < 1, 3)
    server.order("scene", cam=1, name="other")
    wait_until("other size", lambda: watch.sizes[-1] == OTHER_SIZE, 3)
    watch.frames(2)
    assert watch.numbers[-1] is not None

    server.order("ok", cam=1)
    server.order("fps", cam=1, fps=20)
    wait_until("20 fps", lambda: np.allclose(np.diff(watch.pts[-9:]), 1 / 20, atol=1e-3), 4)
    watch.stop()
    assert watch.end is None


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_loss(server: RtspServer, transport: str) -> None:
    server.order("drop", cam=1, value=0.2)
    watch = Watch(server.url(), transport=transport).frames(20, 10)
    watch.stop()
    assert watch.corrupt > 0 or steps(watch.numbers)[1] < len(watch.numbers) - 1


def test_corrupt_bytes(server: RtspServer) -> None:
    watch = Watch(server.url()).frames(5)
    server.order("corrupt", cam=1, value=1)
    wait_until("damage", lambda: watch.corrupt > 0 or None in watch.numbers, 4)
    watch.stop()


def test_time_stamps(server: RtspServer) -> None:
    watch = Watch(server.url()).frames(3)
    server.order("jump", cam=1, value=-5)
    wait_until("jump", lambda: min(np.diff(watch.pts)) < -4, 3)
    server.order("ok", cam=1)
    server.order("standing", cam=1)
    wait_until("standing", lambda: np.ptp(watch.pts[-5:]) < 0.01, 3)
    watch.stop()
    assert watch.end is None


@pytest.mark.parametrize(("fault", "value", "error_s"), [("skew", 90, 90.0), ("reports", 0, None)])
def test_clock_of_the_camera(server: RtspServer, fault: str, value: float, error_s: float | None) -> None:
    server.order(fault, cam=1, value=value)
    watch = Watch(server.url()).frames(5)
    watch.stop()
    assert watch.clock_error_s == (None if error_s is None else pytest.approx(error_s, abs=0.05))


@pytest.mark.parametrize("code", [400, 401, 404, 500, 503])
def test_refusals(server: RtspServer, code: int) -> None:
    server.order("status", cam=1, value=code)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
        plain.sendall(f"DESCRIBE {server.url()} RTSP/1.0\r\nCSeq: 7\r\n\r\n".encode())
        answer = plain.recv(1000).decode()
    assert answer.startswith(f"RTSP/1.0 {code} ")
    assert "CSeq: 7" in answer
    watch = Watch(server.url())
    watch.join(5)
    assert watch.end is not None
    assert not watch.numbers


def test_password(clips: Path) -> None:
    with RtspServer(clips, fps=FPS, secret=("admin", "s3cret")) as server:
        Watch(server.url()).frames(2).stop()
        wrong = Watch(server.url().replace("s3cret", "guess"))
        wrong.join(5)
        assert wrong.end == "HTTPUnauthorizedError"


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_kick(server: RtspServer, how: str) -> None:
    watch = Watch(server.url(), timeout_s=1).frames(2)
    server.order("kick", cam=1, how=how)
    watch.join(5)
    assert watch.end is not None


def test_down_and_killed_and_started_again(clips: Path) -> None:
    with RtspServer(clips, fps=FPS) as server:
        watch = Watch(server.url(), timeout_s=1).frames(2)
        server.order("down", s=0.5)
        watch.join(5)
        assert watch.end is not None
        assert refused(server.port)
        wait_until("port open", lambda: not refused(server.port), 3)
        server.kill()
        assert refused(server.port)
        server.start()
        watch = Watch(server.url()).frames(2)
        watch.stop()
        assert 0 <= watch.late[-1] < 1  # numbers go by the time of day, whoever sends them


def refused(port: int) -> bool:
    with socket.socket() as plain:
        return plain.connect_ex(("127.0.0.1", port)) != 0


def test_pause_is_half_open(clips: Path) -> None:
    with RtspServer(clips, fps=FPS) as server:
        watch = Watch(server.url(), timeout_s=4).frames(3)
        server.pause()
        seen = len(watch.numbers)
        time.sleep(0.7)
        assert len(watch.numbers) - seen <= 2
        assert not refused(server.port)  # the kernel still accepts
        server.resume()
        watch.frames(5).stop()
        assert max(steps(watch.numbers)) >= 15
        assert watch.late[-1] < 0.5


def test_proxy_holes_and_ends(server: RtspServer) -> None:
    with TcpProxy(server.port) as proxy:
        watch = Watch(server.url(port=proxy.port), timeout_s=3).frames(3)
        proxy.link = Link(hole=frozenset({"server"}))
        seen = len(watch.numbers)
        time.sleep(0.5)
        assert len(watch.numbers) - seen <= 2
        assert watch.end is None
        for how in ("rst", "fin"):
            proxy.link = Link()
            watch = Watch(server.url(port=proxy.port), timeout_s=1).frames(2)
            proxy.cut("rst" if how == "rst" else "fin")
            watch.join(4)
            assert watch.end is not None
        proxy.shut()
        assert refused(proxy.port)
        proxy.open()
        assert not refused(proxy.port)


def test_slow_link_makes_frames_late_and_the_camera_drops(server: RtspServer) -> None:
    with TcpProxy(server.port) as proxy:
        watch = Watch(server.url(port=proxy.port), timeout_s=8).frames(3)
        proxy.link = Link(rate=30_000)  # a quarter of what the camera sends
        time.sleep(1.5)
        watch.stop()
        assert 0.7 < watch.late[-1] < 9
        assert watch.end is None


def test_jitter_keeps_order(server: RtspServer) -> None:
    with TcpProxy(server.port) as proxy:
        proxy.link = Link(delay_s=0.01)
        watch = Watch(server.url(port=proxy.port), timeout_s=5).frames(15, 10)
        watch.stop()
        assert set(steps(watch.numbers)) == {1}
