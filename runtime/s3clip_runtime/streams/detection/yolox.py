"""Persons by a YOLOX network."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError, ConfigError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.streams.detection.boxes import MIN_SIDE, Floats, best_boxes, clipped
from s3clip_runtime.streams.frames import Detections, Frame


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
