"""Frames of a network camera: newest first served, old ones dropped, lost connections opened again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.reading.addresses import SourceSpec, redact

_log = logging.getLogger(__name__)

NEWEST_FRAMES = 2
"""Frames that wait for the consumer; two bridge the jitter of a network, more would only be late."""

BACKOFF_S = (0.5, 30.0)
"""Shortest and longest wait before the next attempt; doubled each time, jittered so that cameras spread."""

HEALTHY_S = 60.0
"""A connection that lived this long starts the waits from the shortest again."""

ANALYSE_US = 1_000_000
"""Longest look at a new stream, in microseconds. FFmpeg's own 5 s would be lost at every reconnect."""


def backoff_s(failures: int) -> float:
    """Seconds to wait after `failures` (from 1) failures in a row: exponential, jittered to 50..100 %."""
    return min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)


class LiveSource:
    """One stream, read by a thread that decodes and keeps the newest frames. `close` ends the thread.

    Frame times are Unix times of arrival, always rising. `frames` ends only when `stop` is set or the source
    is closed: an end of the stream, an error, or `read_timeout_s` without a picture is a disconnect.

    Every wait has a limit: `close` returns after at most the longer of both timeouts and 2 s. Should the
    system hold the thread longer (a name look-up), a warning says so; the thread dies with the process.
    """

    live = True

    def __init__(
        self, spec: SourceSpec, *, open_timeout_s: float, read_timeout_s: float, stop: threading.Event
    ) -> None:
        self.spec = spec
        self._timeouts_s = (open_timeout_s, read_timeout_s)
        self._stop = stop
        self._closed = threading.Event()
        self._ready = threading.Condition()
        self._newest: deque[tuple[float, int, av.VideoFrame]] = deque(maxlen=NEWEST_FRAMES)
        self._arrivals: deque[float] = deque(maxlen=64)
        self._last_s = 0.0
        self._count = 0
        self._dropped = 0
        self._connections = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"camera {spec.name}", daemon=True)
        self._thread.start()

    @property
    def fps(self) -> float | None:
        """Measured on this connection; None before eight frames. Rates that cameras state are often wrong."""
        with self._ready:
            arrivals = list(self._arrivals)
        return (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]) if len(arrivals) >= 8 else None

    @property
    def dropped(self) -> int:
        """Frames that came but were damaged or replaced by newer ones before anyone took them."""
        return self._dropped

    @property
    def reconnects(self) -> int:
        """Connections after the first one."""
        return max(self._connections - 1, 0)

    def frames(self) -> Iterator[Frame]:
        """The newest frames in order; waits for them. Indices count arrivals: a gap shows dropped frames."""
        reformatter = VideoReformatter()  # kept: one per frame costs four times the conversion
        while not self._ending():
            with self._ready:
                self._ready.wait_for(lambda: self._newest or self._failure or self._ending(), timeout=0.2)
                if self._failure:
                    raise self._failure
                taken = self._newest.popleft() if self._newest else None
            if taken is None:
                continue
            time_s, index, picture = taken
            image = reformatter.reformat(picture, format="rgb24").to_ndarray()
            yield Frame(self.spec.name, index, time_s, image.astype(np.uint8, copy=False))

    def close(self) -> None:
        """End the thread and the connection. Calling it again does nothing."""
        self._closed.set()
        self._thread.join(max(self._timeouts_s) + 2)
        if self._thread.is_alive():
            _log.warning("camera %s: the reader does not end; it is left behind", self.spec.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ending(self) -> bool:
        return self._stop.is_set() or self._closed.is_set()

    def _run(self) -> None:
        try:
            self._connect_for_ever()
        except Exception as error:  # a bug: hand it to the consumer, who shows the traceback
            with self._ready:
                self._failure = error
                self._ready.notify_all()

    def _connect_for_ever(self) -> None:
        failures = 0
        while not self._ending():
            began = time.monotonic()
            reason = self._read_once()
            if self._ending():
                return
            failures = 1 if time.monotonic() - began >= HEALTHY_S else failures + 1
            wait_s = backoff_s(failures)
            shown = redact(self.spec.url)
            _log.warning("camera %s (%s): %s; next try in %.1f s", self.spec.name, shown, reason, wait_s)
            self._rest(wait_s)

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._ending() and (left := end - time.monotonic()) > 0:
            self._closed.wait(min(left, 0.2))

    def _read_once(self) -> str:
        """One connection, start to end; returns why it ended, without the address that av errors quote."""
        options = {"analyzeduration": str(ANALYSE_US), "fpsprobesize": "0"}
        if self.spec.url.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        connected = False
        try:
            with av.open(self.spec.url, options=options, timeout=self._timeouts_s) as container:
                connected = True
                if not container.streams.video:
                    return "the stream has no video"
                with self._ready:
                    self._connections += 1
                    self._arrivals.clear()
                _log.info("camera %s (%s): connected", self.spec.name, redact(self.spec.url))
                return self._read(container)
        except av.FFmpegError as error:
            return f"{'lost' if connected else 'not reachable'} ({type(error).__name__}: {error.strerror})"

    def _read(self, container: InputContainer) -> str:
        last = time.monotonic()
        for packet in container.demux():  # all streams: the sound alone must not keep a dead picture alive
            if self._ending():
                return "closed"
            if packet.stream.type == "video":
                try:
                    pictures = packet.decode()
                except av.FFmpegError:
                    self._dropped += 1
                    continue
                for picture in pictures:
                    if isinstance(picture, av.VideoFrame) and self._keep(picture):
                        last = time.monotonic()
            if time.monotonic() - last > self._timeouts_s[1]:
                return f"no picture for {self._timeouts_s[1]:g} s"
        return "the camera ended the stream"

    def _keep(self, picture: av.VideoFrame) -> bool:
        """Store a sound picture with its time of arrival, in place of the oldest if nobody took that."""
        if picture.is_corrupt:
            self._dropped += 1
            return False
        with self._ready:
            # The clock may be set back: times go on rising.
            self._last_s = max(time.time(), self._last_s + 1e-3)
            self._arrivals.append(self._last_s)
            self._dropped += len(self._newest) == NEWEST_FRAMES
            self._newest.append((self._last_s, self._count, picture))
            self._count += 1
            self._ready.notify_all()
        return True
