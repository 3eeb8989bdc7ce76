"""Persons in a frame: by motion against a still background, by a YOLOX network, or from a MOT file."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError, ConfigError, SourceError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.streams.boxes import MIN_SIDE, Floats, best_boxes, clipped
from s3clip_runtime.streams.frames import Detections, Frame


class Detector(Protocol):
    """Finds persons. Detectors may remember earlier frames: use one for each camera."""

    def detect(self, frame: Frame) -> Detections:
        """Persons of one frame; boxes are clipped to it and have sides of at least 2 px."""


class BackgroundDetector:
    """Moving person-like shapes in front of a still background; needs no network. For fixed cameras only.

    The mixture of Gaussians of OpenCV (MOG2) marks what changed; shadows are removed, shapes that were split
    vertically (a belt in the background's colour) are joined. All limits are shares of the frame, so persons
    of 12 px in 640x360 and of 150 px both pass. The score is how full the box is times how person-like its
    proportions are. Who stands still for long, or was there from the start, is not seen.
    """

    WARM_UP_FRAMES = 5
    LEARNING_RATE = 0.004
    """A frame's weight in the background: who stands still is lost after some 25 frames."""
    LONG_SIDE = 1280
    """Larger frames are shrunk to this many pixels for the search."""
    HEIGHT_SHARE = (0.025, 0.9)
    """Person height over frame height."""
    ASPECT = (0.9, 5.5)
    """Person height over width."""
    USUAL_ASPECT = 2.4
    MIN_FILL = 0.25
    """Changed pixels over all pixels of a box."""
    USUAL_FILL = 0.65
    MAX_CHANGED = 0.5
    """A frame that changed more than this share shows a camera that moved or a lamp, not persons."""
    JOINT_ASPECT = 3.5
    """Joined shapes may not be taller over width: two persons one behind the other often are."""
    MAX_GAP = 0.15
    """Gap between the halves of a split person over their joint height."""

    def __init__(self) -> None:
        self._seen = 0
        self._size = (0, 0)
        self._model = cv2.createBackgroundSubtractorMOG2(varThreshold=40, detectShadows=True)

    def detect(self, frame: Frame) -> Detections:
        """See `Detector.detect`. The first frames, and the first after a change of size, give none."""
        size = (frame.image.shape[0], frame.image.shape[1])
        if size != self._size:  # OpenCV starts its model again by itself
            self._size, self._seen = size, 0
        self._seen += 1
        scale = min(1.0, self.LONG_SIDE / max(size))
        shrunk = (max(round(size[1] * scale), 1), max(round(size[0] * scale), 1))
        image = frame.image if scale == 1 else cv2.resize(frame.image, shrunk, interpolation=cv2.INTER_AREA)
        # OpenCV's own rate falls slowly from 1: right for the start, later it would absorb walkers.
        warming = self._seen <= self.WARM_UP_FRAMES
        marked = self._model.apply(image, learningRate=-1 if warming else self.LEARNING_RATE)
        mask = np.asarray(marked == 255, np.uint8)  # 127 marks shadow
        if warming or mask.mean() > self.MAX_CHANGED:
            return Detections.none()
        mask = np.asarray(cv2.medianBlur(mask, 3), np.uint8)
        mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 3), np.uint8)), np.uint8)
        stats = np.asarray(cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:], np.float32)
        min_height = self.HEIGHT_SHARE[0] * mask.shape[0]
        stats = stats[stats[:, 4] >= min_height**2 / 16]  # specks: a half of a thin person has twice as much
        boxes = np.concatenate([stats[:, :2], stats[:, :2] + stats[:, 2:4]], axis=1)
        boxes, areas = self._join_split(boxes, stats[:, 4])
        return self._person_like(boxes, areas, mask.shape[0], np.float32(scale))

    def _join_split(self, boxes: Floats, areas: Floats) -> tuple[Floats, Floats]:
        """Join, nearest first, pairs that lie one above the other and together look like one person."""
        while len(boxes) > 1:
            one, other, widths = boxes[:, None], boxes[None], boxes[:, 2] - boxes[:, 0]
            inner = np.minimum(one, other)[..., 2:] - np.maximum(one, other)[..., :2]  # < 0 is a gap
            outer = np.maximum(one, other)[..., 2:] - np.minimum(one, other)[..., :2]
            narrow = np.minimum(widths[:, None], widths[None])
            aspect = outer[..., 1] / outer[..., 0]
            fits = (inner[..., 0] >= narrow / 2) & (-inner[..., 1] <= self.MAX_GAP * outer[..., 1])
            fits &= (aspect >= self.ASPECT[0]) & (aspect <= self.JOINT_ASPECT)
            first, second = np.nonzero(np.triu(fits, 1))
            if len(first) == 0:
                break
            nearest = int(np.argmax(inner[first, second, 1]))
            keep, gone = int(first[nearest]), int(second[nearest])
            boxes[keep, :2] = np.minimum(boxes[keep, :2], boxes[gone, :2])
            boxes[keep, 2:] = np.maximum(boxes[keep, 2:], boxes[gone, 2:])
            areas[keep] += areas[gone]
            boxes, areas = np.delete(boxes, gone, axis=0), np.delete(areas, gone)
        return boxes, areas

    def _person_like(self, boxes: Floats, areas: Floats, height: int, scale: np.float32) -> Detections:
        sides = boxes[:, 2:] - boxes[:, :2]
        share, aspect, fill = sides[:, 1] / height, sides[:, 1] / sides[:, 0], areas / sides.prod(axis=1)
        good = (share >= self.HEIGHT_SHARE[0]) & (share <= self.HEIGHT_SHARE[1]) & (fill >= self.MIN_FILL)
        good &= (aspect >= self.ASPECT[0]) & (aspect <= self.ASPECT[1])
        likeness = np.exp(-0.5 * (np.log(aspect / self.USUAL_ASPECT) / 0.8) ** 2)
        scores = np.minimum(fill / self.USUAL_FILL, 1) * likeness
        return clipped(boxes[good] / scale, scores[good], self._size)


class YoloxDetector:
    """Persons by any network of the YOLOX layout (class 0 is person).

    Input (N, 3, H, W) float32 BGR 0..255, the picture in the top left corner, padded with 114. Output
    (N, cells of the strides 8, 16 and 32, 5 + classes): centre and size relative to the cell, objectness and
    class scores in [0, 1]. Source: YOLOX, arXiv 2107.08430.

    Args:
        session: the open graph; whoever opened it closes it. It may serve several detectors in turn.
        threshold: least objectness times person score.
        nms_iou: of two boxes that overlap more, the better one stays.
        tiles: (rows, columns) of overlapping parts that are searched besides the whole picture; helps with
            persons that are small in large pictures, and costs rows x columns more runs.

    Raises:
        BackendError: the graph has another layout.
        ConfigError: tiles below 1.
    """

    STRIDES = (8, 16, 32)
    PAD = 114
    OVERLAP = 0.2
    """Share of a tile that its neighbours see too. Larger persons are found in the whole picture."""

    def __init__(
        self,
        session: Session,
        *,
        threshold: float = 0.25,
        nms_iou: float = 0.45,
        tiles: tuple[int, int] = (1, 1),
    ) -> None:
        if min(tiles) < 1:
            raise ConfigError(f"tiles must be at least 1x1, found {tiles[0]}x{tiles[1]}")
        self._session, self._threshold, self._nms_iou, self._tiles = session, threshold, nms_iou, tiles
        self._input, self._batch, self._size = self._layout(session)
        self._cells, self._strides = self._grid()

    def detect(self, frame: Frame) -> Detections:
        """See `Detector.detect`."""
        size = (frame.image.shape[0], frame.image.shape[1])
        windows = self._windows(size)
        pictures = np.full((len(windows), *self._size, 3), self.PAD, np.uint8)
        scales = [
            self._letterbox(frame.image[y1:y2, x1:x2], picture)
            for (x1, y1, x2, y2), picture in zip(windows, pictures, strict=True)
        ]
        found = [
            self._decode(output, scale, window, size)
            for output, scale, window in zip(self._run(pictures), scales, windows, strict=True)
        ]
        boxes, scores = np.concatenate([b for b, _ in found]), np.concatenate([s for _, s in found])
        keep = best_boxes(boxes, scores, self._nms_iou)
        return clipped(boxes[keep], scores[keep], size)

    def _layout(self, session: Session) -> tuple[str, int | None, tuple[int, int]]:
        """Input name, fixed batch if any, and (height, width)."""
        expected = "a YOLOX graph has one input float32 (N, 3, H, W), H and W fixed multiples of 32"
        listed = ", ".join(f"{name} {info}" for name, info in session.inputs.items())
        name, info = next(iter(session.inputs.items()))
        shape = info.shape
        if len(session.inputs) != 1 or info.dtype != np.float32 or len(shape) != 4 or shape[1] != 3:
            raise BackendError(f"detector: {expected}; found {listed}; export a YOLOX model")
        batch, height, width = shape[0], shape[2], shape[3]
        if height is None or width is None or height % 32 or width % 32:
            raise BackendError(f"detector: {expected}; found {listed}; export a YOLOX model of fixed size")
        cells = sum((height // stride) * (width // stride) for stride in self.STRIDES)
        outputs = [info.shape for info in session.outputs.values()]
        rank_ok = len(outputs) == 1 and len(outputs[0]) == 3
        if not rank_ok or outputs[0][1] not in (cells, None) or (outputs[0][2] or 6) < 6:
            found = ", ".join(f"{name} {info}" for name, info in session.outputs.items())
            raise BackendError(f"detector: expected one output (N, {cells}, 5 + classes); found {found}")
        return name, batch, (height, width)

    def _grid(self) -> tuple[Floats, Floats]:
        """Column and row (A, 2), and stride (A, 1), of every output cell."""
        cells, strides = [], []
        for stride in self.STRIDES:
            rows, columns = np.mgrid[: self._size[0] // stride, : self._size[1] // stride]
            cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
            strides.append(np.full((rows.size, 1), stride))
        return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)

    def _windows(self, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """The whole picture, then the tiles, each x1, y1, x2, y2."""
        windows = [(0, 0, size[1], size[0])]
        if self._tiles == (1, 1):
            return windows
        spans = []
        for length, count in zip(size, self._tiles, strict=True):
            side = length / (count - (count - 1) * self.OVERLAP)
            starts = [round(i * side * (1 - self.OVERLAP)) for i in range(count)]
            spans.append([(start, min(start + int(np.ceil(side)), length)) for start in starts])
        return windows + [(x1, y1, x2, y2) for y1, y2 in spans[0] for x1, x2 in spans[1]]

    def _letterbox(self, image: NDArray[np.uint8], picture: NDArray[np.uint8]) -> float:
        """Draw `image` into the corner of `picture`, as BGR; returns the scale."""
        scale: float = min(self._size[0] / image.shape[0], self._size[1] / image.shape[1])
        height, width = (max(int(side * scale), 1) for side in image.shape[:2])
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        picture[:height, :width] = resized[..., ::-1]
        return scale

    def _run(self, pictures: NDArray[np.uint8]) -> Floats:
        """Outputs (N, A, 5 + classes) of N pictures, in batches of the graph's size."""
        batch = self._batch or len(pictures)
        outputs = []
        for low in range(0, len(pictures), batch):
            chunk = pictures[low : low + batch].transpose(0, 3, 1, 2).astype(np.float32)
            padded = np.concatenate([chunk, np.zeros((batch - len(chunk), *chunk.shape[1:]), np.float32)])
            output = next(iter(self._session.run({self._input: padded}).values()))
            outputs.append(np.asarray(output[: len(chunk)], np.float32))
        return np.concatenate(outputs)

    def _decode(
        self, output: Floats, scale: float, window: tuple[int, int, int, int], size: tuple[int, int]
    ) -> tuple[Floats, Floats]:
        """Boxes in pixels of the frame and scores of one output (A, 5 + classes)."""
        scores = output[:, 4] * output[:, 5]
        good = scores >= self._threshold
        output, scores, strides = output[good], scores[good], self._strides[good]
        centre = (output[:, :2] + self._cells[good]) * strides / np.float32(scale)
        half = np.exp(output[:, 2:4]) * strides / np.float32(2 * scale)
        corner = np.array(window[:2], np.float32)
        boxes = np.concatenate([centre - half, centre + half], axis=1) + np.tile(corner, 2)
        # A box at an inner border of a tile shows a part; a neighbour or the whole picture has it all.
        whole = np.ones(len(boxes), bool)
        for axis, edge in ((0, 0), (1, 0), (2, size[1]), (3, size[0])):
            if window[axis] != edge:
                inward = boxes[:, axis] - window[axis] if axis < 2 else window[axis] - boxes[:, axis]
                whole &= inward > MIN_SIDE
        return boxes[whole], scores[whole]


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

    def detect(self, frame: Frame) -> Detections:
        """See `Detector.detect`; the boxes of line frame number `frame.index` + 1."""
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
