"""Boxes from a MOT file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from s3clip_runtime.errors import SourceError
from s3clip_runtime.streams.detection.boxes import clipped
from s3clip_runtime.streams.frames import Detections, Frame, Observation


class MotDetector:
    """Boxes from a text file of the MOT Challenge: `frame,id,x,y,width,height,conf,...`, frames from 1.

    x and y are taken as pixels from 0. conf 0 means ignore; conf -1 means not given and counts as 1.

    Raises:
        SourceError: the file cannot be read, or a line is malformed (its number is named).
    """

    def __init__(self, path: Path) -> None:
        self._rows: dict[int, list[list[float]]] = {}
        for frame, _, row in _mot_rows(path):
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


class MotTracks:
    """Persons with their ids from such a file: its second column, a whole number from 0.

    Raises:
        SourceError: as `MotDetector`, or a line that counts has no id.
    """

    def __init__(self, path: Path) -> None:
        self._rows: dict[int, list[tuple[int, list[float]]]] = {}
        for frame, id, row in _mot_rows(path):
            if id < 0 or not id.is_integer():
                raise SourceError(
                    f"{path}, frame {frame}: the id must be a whole number from 0, found {id:g}; "
                    "give a file of tracks, not of detections"
                )
            self._rows.setdefault(frame, []).append((int(id), row))

    @property
    def ids(self) -> set[int]:
        """Of all persons."""
        return {id for rows in self._rows.values() for id, _ in rows}

    def observations(self, frame: Frame) -> list[Observation]:
        """The persons of line frame number `frame.index` + 1, as far as they lie in the picture."""
        found = []
        for id, (x, y, width, height, score) in self._rows.get(frame.index + 1, []):
            box = np.array([[x, y, x + width, y + height]], np.float32)
            inside = clipped(box, np.array([score], np.float32), (frame.image.shape[0], frame.image.shape[1]))
            if len(inside.boxes):
                found.append(Observation(id, inside.boxes[0], float(inside.scores[0])))
        return found


def _mot_rows(path: Path) -> Iterator[tuple[int, float, list[float]]]:
    """What `_mot_line` gives of each line that counts."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as MOT text ({error}); check the path") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            frame, id, row = _mot_line(path, number, line)
            if row[4] != 0:
                yield frame, id, row


def _mot_line(path: Path, number: int, line: str) -> tuple[int, float, list[float]]:
    """Frame number, id and [x, y, width, height, conf] of one line."""
    form = "expected frame,id,x,y,width,height,conf with frame from 1 and conf in 0..1 or -1"
    try:
        values = [float(field) for field in line.split(",")[:7]]
    except ValueError:
        values = []
    good = len(values) == 7 and bool(np.isfinite(values).all()) and values[0] >= 1 and values[0].is_integer()
    if not good or not (0 <= values[6] <= 1 or values[6] == -1):
        raise SourceError(f"{path}, line {number}: {form}; found {line.strip()[:80]!r}; correct the line")
    return int(values[0]), values[1], [*values[2:6], 1.0 if values[6] == -1 else values[6]]
