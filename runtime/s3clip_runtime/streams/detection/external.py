"""Boxes from outside: a pipeline that detects by itself sends them as JSON lines, see docs/detectors.md."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s3clip_runtime.streams.detection.box_address import BoxAddress
from s3clip_runtime.streams.detection.box_feed import Feed
from s3clip_runtime.streams.detection.box_lines import BadLine, BoxLine, parse_line
from s3clip_runtime.streams.detection.box_server import BoxServer
from s3clip_runtime.streams.detection.boxes import clipped
from s3clip_runtime.streams.frames import Detections, Frame
from s3clip_runtime.streams.status import FeedStatus

TOLERANCE_S = 0.2
"""Largest difference of the times of a line and of its frame."""

FILE_WAIT_S = 30.0
"""A frame of a file waits so long for its line, once: then not again until a line for its camera comes."""

ROOM_WAIT_S = 10.0
"""A line with a frame number waits so long for room, once: then not again until its camera has a frame."""

_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class BoxesStatus:
    """How the senders of one address do.

    Attributes:
        address: as it was given; holds no token.
        connections: senders that are connected now.
        dropped: connections that were dropped as hopeless, or to make room.
        refused: bad lines by kind: "json", "form", "boxes", "camera", "frame", "huge", "token", "full",
            "connection".
        cameras: camera to what became of its lines.
    """

    address: str
    connections: int
    dropped: int
    refused: Mapping[str, int]
    cameras: Mapping[str, FeedStatus]


class ExternalBoxes:
    """Boxes that others send; one instance serves all cameras of its address.

    A live camera takes what has come by the time of its frame and never waits. A file waits for its lines,
    and lines with frame numbers wait for it, so that neither side runs away.

    Args:
        address: where lines come in.
        cameras: whose lines are taken; those of others are refused.
        tolerance_s: largest difference of the times of a line and of its frame.
        stop: ends all waiting when it is set.
        descriptor: of standard input.

    Raises:
        SourceError: the address cannot be listened on.
    """

    def __init__(
        self,
        address: BoxAddress,
        cameras: Sequence[str],
        *,
        tolerance_s: float = TOLERANCE_S,
        stop: threading.Event | None = None,
        descriptor: int = 0,
    ) -> None:
        self._changed = threading.Condition()
        self._stop = stop or threading.Event()
        self._closed = False
        self._feeds = {camera: Feed(tolerance_s) for camera in cameras}
        self._server = BoxServer(address, self._hear, descriptor)

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """See `Detector.detect`; frames without a line have no persons."""
        with self._changed:
            self._await_lines([frame for frame in frames if frame.clock == "stream"])
            lines = [self._feeds[frame.camera].take(frame) for frame in frames]
            self._changed.notify_all()  # there may be room now
        return [_detections(line, frame) for line, frame in zip(lines, frames, strict=True)]

    @property
    def status(self) -> BoxesStatus:
        """Counts so far."""
        server = self._server
        with self._changed:
            feeds = {camera: feed.status for camera, feed in self._feeds.items()}
        return BoxesStatus(
            str(server.address), server.connections, server.dropped, dict(server.refused), feeds
        )

    @property
    def port(self) -> int | None:
        """Port that is listened on, None unless it is TCP."""
        return self._server.port

    def close(self) -> None:
        """Listen no more. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.close()

    def _await_lines(self, frames: list[Frame]) -> None:
        """Wait until the lines have reached these frames, or none can be expected."""
        deadline = time.monotonic() + FILE_WAIT_S
        while not self._ended and self._server.expecting:
            waiting = [frame for frame in frames if not self._is_ready(frame)]
            if not waiting:
                return
            if time.monotonic() >= deadline:
                for frame in waiting:
                    self._feeds[frame.camera].given_up = True
                    self._server.say(
                        f"wait {frame.camera}", f"no line for {frame.camera} within {FILE_WAIT_S:g} s"
                    )
                return
            self._changed.wait(_TICK_S)

    def _is_ready(self, frame: Frame) -> bool:
        feed = self._feeds[frame.camera]
        return feed.given_up or feed.reached(frame)

    @property
    def _ended(self) -> bool:
        return self._closed or self._stop.is_set()

    def _hear(self, text: bytes) -> None:
        """Take one line; called by the threads of the connections."""
        line = parse_line(text)
        feed = self._feeds.get(line.camera)
        if feed is None:
            known = ", ".join(self._feeds)
            raise BadLine("camera", f"camera {line.camera[:40]!r} is unknown; known are {known}")
        with self._changed:
            if line.frame is not None:
                self._await_room(feed)
            taken = feed.add(line)
            self._changed.notify_all()
        if not taken:
            self._server.say(
                f"late {line.camera}",
                f"a line for {line.camera} is older than its frames; check the sender's clock and delay",
            )

    def _await_room(self, feed: Feed) -> None:
        deadline = time.monotonic() + ROOM_WAIT_S
        while feed.full and not feed.stalled and not feed.live and not self._ended:
            if time.monotonic() >= deadline:
                feed.stalled = True
            self._changed.wait(_TICK_S)
        if feed.live:
            raise BadLine("frame", "a live camera has no frame numbers that others know; send the time")
        if feed.full:
            raise BadLine("full", "the camera takes no frames, its lines have no room")


def _detections(line: BoxLine | None, frame: Frame) -> Detections:
    if line is None:
        return Detections.none()
    height, width = frame.image.shape[:2]
    corners = line.boxes[:, :4]
    if line.normalised:
        corners = corners * np.array([width, height, width, height], np.float32)
    return clipped(corners, line.boxes[:, 4], (height, width))
