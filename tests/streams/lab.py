"""The laboratory as tests use it: clips that are encoded once, and an RTSP server in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streams.clips import FPS, Clip
from streams.pictures import Picture, black_pictures, encode_clip, street_pictures, video_pictures

TESTS = Path(__file__).parents[1]
SIZE, OTHER_SIZE = (240, 320), (352, 640)
"""(height, width) of the usual clip, and of the one called "other"."""

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A port nobody listens on, below the range from which the kernel takes ports for outgoing connections:
    a client that tries a closed port of that range for long enough can be connected to itself."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as plain:
            if plain.connect_ex(("127.0.0.1", port)) != 0:
                return port


def end_with_parent() -> None:
    """For a child before it becomes another program: a test that is killed leaves nothing behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def write_clips(folder: Path, cameras: int, *, video: Path | None = None, other: bool = False) -> Path:
    """Clips of cameras 1 to `cameras`; what is there already is kept. 0.3 s a camera.

    Args:
        video: film this file instead of walkers, 768x576.
        other: also a clip of another size for camera 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    black: Clip | None = None
    for camera in range(1, cameras + 1):
        films: dict[str, Iterator[Picture]] = {"street": street_pictures(camera, SIZE)}
        if video is not None:
            films["street"] = video_pictures(video, camera, (576, 768))
        if other and camera == 1:
            films["other"] = street_pictures(camera, OTHER_SIZE)
        for name, pictures in films.items():
            path = folder / f"cam{camera}-{name}.clip"
            if not path.exists():
                encode_clip(pictures).save(path)
        path = folder / f"cam{camera}-black.clip"
        if not path.exists():
            black = black or encode_clip(black_pictures(SIZE if video is None else (576, 768)))
            black.save(path)
    return folder


class RtspServer:
    """The process of `streams.rtsp_server`. It can be stopped, killed and started again on the same port.

    Args:
        clips: from `write_clips`.
        cameras: as many of them are served.
        secret: user and password that it asks for.
        fps: of all cameras.
    """

    def __init__(
        self, clips: Path, cameras: int = 1, *, secret: tuple[str, str] | None = None, fps: float = FPS
    ) -> None:
        self.port = free_port()
        self._control_port = free_port()
        self._secret = secret
        ports = "--port", str(self.port), "--control-port", str(self._control_port)
        self._command = [sys.executable, "-S", "-m", "streams.rtsp_server", "--clips", str(clips), *ports]
        self._command += ["--cameras", str(cameras), "--fps", str(fps)]
        if secret:
            self._command += ["--user", secret[0], "--password", secret[1]]
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def url(self, camera: int = 1, *, port: int | None = None) -> str:
        """Address of a camera, with its password; `port` is that of a proxy."""
        secret = ":".join(self._secret) + "@" if self._secret else ""
        return f"rtsp://{secret}127.0.0.1:{port or self.port}/cam{camera}"

    def start(self) -> None:
        """Start, or start again; returns when it listens."""
        path = {**os.environ, "PYTHONPATH": str(TESTS)}
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, env=path, preexec_fn=end_with_parent
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line == "ready\n", line

    def kill(self) -> None:
        """SIGKILL: the kernel closes all connections."""
        if self._process:
            self._process.kill()
            self._process.wait(10)
            assert self._process.stdout
            self._process.stdout.close()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and the kernel still accepts new ones."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def order(self, name: str, /, **words: str | float) -> dict[str, Any]:
        """An order as listed in `streams.rtsp_server`; its state after that."""
        query = "&".join(f"{key}={value}" for key, value in words.items())
        address = f"http://127.0.0.1:{self._control_port}/{name}?{query}"
        with urllib.request.urlopen(address, timeout=5) as answer:
            state: dict[str, Any] = json.loads(answer.read())
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self.resume()
        self.kill()


def wait_until(what: str, true: Any, timeout_s: float, every_s: float = 0.05) -> float:  # noqa: ANN401
    """Seconds until `true()` holds.

    Raises:
        TimeoutError: it did not within `timeout_s`; the message is `what`.
    """
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - start
