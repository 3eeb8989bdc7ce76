"""The boxes that were sent for one camera, and which of them belong to a frame."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from s3clip_runtime.streams.detection.box_lines import BoxLine
from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.status import FeedStatus

WINDOW = 512
"""Lines that are kept for a camera: 20 s at 25 lines a second, and 5 MB at most."""


@dataclass(slots=True)
class _Waiting:
    line: BoxLine
    used: bool = False


class Feed:
    """Lines of one camera that wait for their frames. Not thread-safe: its owner holds a lock.

    Args:
        tolerance_s: largest difference of the times of a line and of its frame.

    Attributes:
        live: the camera is no file; None before its first frame.
        stalled: its lines found no room for long; they are not waited for until a frame comes.
        given_up: its frames got no line for long; they do not wait until a line comes.
    """

    def __init__(self, tolerance_s: float) -> None:
        self.live: bool | None = None
        self.stalled = False
        self.given_up = False
        self._tolerance_s = tolerance_s
        self._waiting: deque[_Waiting] = deque()
        self._seen: Frame | None = None
        self._newest_time_s, self._newest_frame = float("-inf"), -1
        self._lines = self._used = self._unmatched = self._late = 0

    @property
    def status(self) -> FeedStatus:
        """Counts so far."""
        return FeedStatus(self._lines, self._used, self._unmatched, self._late)

    @property
    def full(self) -> bool:
        """There is no room for a line."""
        return len(self._waiting) >= WINDOW

    def add(self, line: BoxLine) -> bool:
        """Keep a line, for which the oldest may go; False if it is late."""
        self.given_up = False
        if self._is_late(line):
            self._late += 1
            return False
        if self.full:
            self._drop(self._waiting.popleft())
        self._lines += 1
        self._waiting.append(_Waiting(line))
        if line.frame is not None:
            self._newest_frame = max(self._newest_frame, line.frame)
        elif line.time_s is not None:
            self._newest_time_s = max(self._newest_time_s, line.time_s)
        return True

    def reached(self, frame: Frame) -> bool:
        """Whether the lines have come as far as the frame, so that waiting brings nothing."""
        return self._newest_frame >= frame.index or self._newest_time_s >= frame.time_s

    def take(self, frame: Frame) -> BoxLine | None:
        """The line of a frame: that with its number, else the nearest in time within the tolerance.

        A line may be the nearest to several frames. Frames come in their order.
        """
        self.live, self.stalled = frame.clock != "stream", False
        self._seen = frame
        for waiting in [one for one in self._waiting if self._is_late(one.line, before=frame)]:
            self._waiting.remove(waiting)
            self._drop(waiting)
        best: _Waiting | None = None
        best_s = self._tolerance_s
        for one in self._waiting:  # of equally near ones the last: it may be a correction
            if one.line.frame == frame.index:
                best, best_s = one, 0.0
            elif one.line.time_s is not None and abs(one.line.time_s - frame.time_s) <= best_s:
                best, best_s = one, abs(one.line.time_s - frame.time_s)
        if best is None:
            return None
        self._used += not best.used
        best.used = True
        return best.line

    def _is_late(self, line: BoxLine, before: Frame | None = None) -> bool:
        """Whether no frame can match it: `before` and later ones, or those after the last one seen."""
        frame = before or self._seen
        if frame is None:
            return False
        if line.frame is not None:
            return line.frame < frame.index + (before is None)
        return line.time_s is not None and line.time_s < frame.time_s - self._tolerance_s

    def _drop(self, waiting: _Waiting) -> None:
        self._unmatched += not waiting.used
