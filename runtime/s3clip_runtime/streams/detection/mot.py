"""Boxes from a MOT file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s3clip_runtime.errors import SourceError
from s3clip_runtime.streams.detection.boxes import clipped
from s3clip_runtime.streams.frames import Detections, Frame


class MotDetector:
    """Boxes from a text file of the MOT Challenge: `frame,id,x,y,width,height,conf,...`, frames from 1.

    x and y are taken as pixels from 0. conf 0 means ignore; conf -1 means not given and counts as 1.

    Raises:
        SourceError: the file cannot be read, or a line is malformed (its number is named).
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{path}: cannot be read as MOT text ({error}); check the path") from error
        self._rows: dict[int, list[list[float]]] = {}
        for number, line in enumerate(lines, start=1):
            if line.strip():
                frame, row = _mot_line(path, number, line)
                if row[4] != 0:
                    self._rows.setdefault(frame, []).append(row)

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """See `Detector.detect`; the boxes of line frame number `frame.index` + 1."""
        return [self._of_frame(frame) for frame in frames]

    def close(self) -> None:
        """Nothing to close."""

    def _of_frame(self, frame: Frame) -> Detections:
        rows = np.array(self._rows.get(frame.index + 1, []), np.float32).reshape(-1, 5)
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        return clipped(boxes, rows[:, 4], (frame.image.shape[0], frame.image.shape[1]))


def _mot_line(path: Path, number: int, line: str) -> tuple[int, list[float]]:
    """Frame number and [x, y, width, height, conf] of one line."""
    form = "expected frame,id,x,y,width,height,conf with frame from 1 and conf in 0..1 or -1"
    try:
        values = [float(field) for field in line.split(",")[:7]]
    except ValueError:
        values = []
    good = len(values) == 7 and bool(np.isfinite(values).all()) and values[0] >= 1 and values[0].is_integer()
    if not good or not (0 <= values[6] <= 1 or values[6] == -1):
        raise SourceError(f"{path}, line {number}: {form}; found {line.strip()[:80]!r}; correct the line")
    return int(values[0]), [*values[2:6], 1.0 if values[6] == -1 else values[6]]
