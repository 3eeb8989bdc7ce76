"""Boxes as JSON lines: the format, and cutting a stream of bytes into lines that cannot fill the memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from s3clip_runtime.streams.detection.boxes import Floats

MAX_LINE_BYTES = 1 << 20
MAX_BOXES = 500
"""Of one line."""
MAX_PIXEL = 1e5
"""Largest coordinate; far above any camera, and far below what overflows."""


class BadLine(Exception):
    """A line that is not taken.

    Attributes:
        kind: a word to count it by.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class BoxLine:
    """All persons of one frame of one camera.

    Attributes:
        camera: name of the camera.
        time_s: as `Frame.time_s`; None if `frame` is given.
        frame: as `Frame.index`, from 0; None if `time_s` is given.
        boxes: float32 (N, 5) x1, y1, x2, y2, score.
        normalised: the corners are shares of width and height, not pixels.
    """

    camera: str
    time_s: float | None
    frame: int | None
    boxes: Floats
    normalised: bool


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        BadLine: it is none.
    """
    try:
        data = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # RecursionError: nested thousands deep
        reason = "nested too deeply" if isinstance(error, RecursionError) else "not JSON in UTF-8"
        raise BadLine("json", reason) from None
    if not isinstance(data, dict):
        raise BadLine("json", "not a JSON object")
    return data


def parse_line(line: bytes) -> BoxLine:
    """Read one line, see docs/detectors.md. Keys that are not known are ignored.

    Raises:
        BadLine: it breaks the format; it is taken as a whole or not at all.
    """
    data = parse_object(line)
    camera, time_s, frame = data.get("camera"), data.get("time"), data.get("frame")
    if not isinstance(camera, str):
        raise BadLine("form", "camera must be a name")
    if (time_s is None) == (frame is None):
        raise BadLine("form", "give either time or frame")
    normalised = data.get("normalised", False)
    if not isinstance(normalised, bool):
        raise BadLine("form", "normalised must be true or false")
    boxes = data.get("boxes")
    if not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
        raise BadLine("boxes", f"boxes must be a list of at most {MAX_BOXES}")
    limit = 2.0 if normalised else MAX_PIXEL
    rows = np.array([_box(box, limit) for box in boxes], np.float32).reshape(-1, 5)
    return BoxLine(
        camera,
        None if time_s is None else _number(time_s, "form", "time", 0, 1e11),
        None if frame is None else _index(frame),
        rows,
        normalised,
    )


class LineCutter:
    """Cuts a stream of bytes into lines and holds at most `MAX_LINE_BYTES` of it.

    Attributes:
        skipped: bytes of the present line that were thrown away because it is too long.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Lines that are complete now, without their end; None where one begins to be too long."""
        for number, part in enumerate(data.split(b"\n")):
            if number > 0:
                if self.skipped == 0:
                    yield bytes(self._held)
                self._held.clear()
                self.skipped = 0
            if self.skipped or len(self._held) + len(part) > MAX_LINE_BYTES:
                if self.skipped == 0:
                    yield None
                self.skipped += len(self._held) + len(part)
                self._held.clear()
            else:
                self._held += part

    def rest(self) -> bytes:
        """The last line of a stream that ended without a line end; empty if there is none."""
        return bytes(self._held)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _number(value: object, kind: str, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine(kind, f"{name} must be a number")
    if not low <= value <= high or not math.isfinite(value):  # before float(): it refuses huge integers
        raise BadLine(kind, f"{name} must be from {low:g} to {high:g}")
    return float(value)


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise BadLine("form", "frame must be a whole number from 0")
    return value


def _box(box: object, limit: float) -> list[float]:
    if not isinstance(box, list) or len(box) not in (4, 5):
        raise BadLine("boxes", "a box must be x1, y1, x2, y2 and perhaps a score")
    corners = [_number(value, "boxes", "a corner", -limit, limit) for value in box[:4]]
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise BadLine("boxes", "a box must have x1 < x2 and y1 < y2")
    return [*corners, _number(box[4], "boxes", "a score", 0, 1) if len(box) == 5 else 1.0]
