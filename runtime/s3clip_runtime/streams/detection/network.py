"""Persons by a network, for all cameras that use it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.streams.detection.boxes import (
    Floats,
    Window,
    best_boxes,
    clipped,
    seen_whole,
    windows,
)
from s3clip_runtime.streams.detection.layouts import person_class_of, recognise
from s3clip_runtime.streams.detection.tensors import Found
from s3clip_runtime.streams.frames import Detections, Frame

MAX_BATCH = 8
"""Pictures of one run of a graph with a dynamic batch: 8 of 640x640 are 39 MB of input."""

TILED_IOU = 0.45
"""Suppression between the tiles of a frame where the layout itself needs none."""

_UNTILED = (1, 1)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a network's layout proposes and its user may change; None takes the layout's own.

    Attributes:
        layout: name in `layouts.LAYOUTS`; None recognises it.
        person_class: index of the class person, from 0.
        threshold: least score, in (0, 1].
        nms_iou: of two boxes that overlap more, the better one stays; 1 keeps all.
    """

    layout: str | None = None
    person_class: int | None = None
    threshold: float | None = None
    nms_iou: float | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    """One picture for the network: a window of a frame."""

    frame: int
    window: Window


class NetworkDetector:
    """Persons by any network of a known layout; one instance serves all cameras that use it.

    The frames of a call and their tiles go through the network in as few runs as its batch allows. Not for
    several threads at once.

    Args:
        session: the open graph; `close` closes it.
        settings: of the network.
        tiles: camera to (rows, columns) of overlapping parts that are searched besides the whole frame, which
            finds persons that are small in large frames and costs rows x columns more pictures; other
            cameras are not tiled.

    Raises:
        BackendError: the graph is of no known layout, or does not tell which class is a person.
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings | None = None,
        *,
        tiles: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        settings = settings or Settings()
        for rows, columns in tiles.values():
            if min(rows, columns) < 1:
                raise ConfigError(f"tiles must be at least 1x1, found {rows}x{columns}")
        self._session, self._tiles = session, dict(tiles)
        self.graph = recognise(session, settings.layout)
        layout = self.graph.layout
        self._person = person_class_of(self.graph) if settings.person_class is None else settings.person_class
        self._threshold = layout.threshold if settings.threshold is None else settings.threshold
        self._nms_iou = layout.nms_iou if settings.nms_iou is None else settings.nms_iou
        self._check_settings()

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """See `Detector.detect`.

        Raises:
            BackendError: the network cannot run.
        """
        tiles = [self._tiles.get(frame.camera, _UNTILED) for frame in frames]
        pieces = [
            _Piece(number, window)
            for number, (frame, parts) in enumerate(zip(frames, tiles, strict=True))
            for window in windows(_size(frame), parts)
        ]
        found: list[list[Found]] = [[] for _ in frames]
        for piece, (boxes, scores) in zip(pieces, self._search(frames, pieces), strict=True):
            whole = seen_whole(boxes, piece.window, _size(frames[piece.frame]))
            found[piece.frame].append((boxes[whole], scores[whole]))
        return [
            self._joined(parts, _size(frame), tiled=tile != _UNTILED)
            for frame, parts, tile in zip(frames, found, tiles, strict=True)
        ]

    def close(self) -> None:
        """Close the session. A second call does nothing."""
        self._session.close()

    @property
    def settings(self) -> Settings:
        """What is in force."""
        return Settings(self.graph.layout.name, self._person, self._threshold, self._nms_iou)

    def _check_settings(self) -> None:
        classes = self.graph.tensors.classes
        if self._person < 0 or (classes is not None and self._person >= classes):
            limit = "" if classes is None else f" to {classes - 1}"
            raise ConfigError(f"detector: person class must be from 0{limit}, found {self._person}")
        if not 0 < self._threshold <= 1:
            raise ConfigError(f"detector: threshold must be above 0 and at most 1, found {self._threshold}")
        if self._nms_iou is not None and not 0 <= self._nms_iou <= 1:
            raise ConfigError(f"detector: nms_iou must be from 0 to 1, found {self._nms_iou}")

    def _search(self, frames: Sequence[Frame], pieces: Sequence[_Piece]) -> Iterator[Found]:
        """Boxes in pixels of their frame, and scores, of each piece."""
        batch = self.graph.batch or MAX_BATCH
        for low in range(0, len(pieces), batch):
            part = pieces[low : low + batch]
            canvases = np.zeros((len(part), *self.graph.size, 3), np.uint8)
            scales = [
                self.graph.layout.picture.draw(_cut(frames[piece.frame], piece.window), canvas)
                for piece, canvas in zip(part, canvases, strict=True)
            ]
            for piece, scale, (boxes, scores) in zip(part, scales, self._run(canvases), strict=False):
                corner = np.array(piece.window[:2] * 2, np.float32)
                yield np.asarray(boxes / np.array(scale * 2, np.float32) + corner, np.float32), scores

    def _run(self, canvases: NDArray[np.uint8]) -> list[Found]:
        """What each canvas shows, in its own pixels. A fixed batch is filled up with black canvases."""
        graph, count = self.graph, len(canvases)
        if graph.batch is not None and count < graph.batch:
            filling = np.zeros((graph.batch - count, *canvases.shape[1:]), np.uint8)
            canvases = np.concatenate([canvases, filling])
        tensors, height_width = graph.tensors, graph.size
        info = self._session.inputs[tensors.image]
        inputs: dict[str, NDArray[np.generic]] = {
            tensors.image: graph.layout.picture.pack(canvases, info.dtype)
        }
        if tensors.sizes is not None:
            kind = self._session.inputs[tensors.sizes].dtype
            inputs[tensors.sizes] = np.tile(np.array(height_width[::-1], kind), (len(canvases), 1))
        outputs = self._session.run(inputs)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out below
            found = graph.layout.decode(tensors, outputs, height_width, self._person, self._threshold)
        finite = [np.isfinite(boxes).all(axis=1) for boxes, _ in found]
        return [(boxes[good], scores[good]) for (boxes, scores), good in zip(found, finite, strict=True)][
            :count
        ]

    def _joined(self, parts: Sequence[Found], size: tuple[int, int], *, tiled: bool) -> Detections:
        boxes: Floats = np.concatenate([boxes for boxes, _ in parts])
        scores: Floats = np.concatenate([scores for _, scores in parts])
        iou = TILED_IOU if self._nms_iou is None and tiled else self._nms_iou
        keep = np.argsort(-scores, kind="stable") if iou is None else best_boxes(boxes, scores, iou)
        return clipped(boxes[keep], scores[keep], size)


def _size(frame: Frame) -> tuple[int, int]:
    return frame.image.shape[0], frame.image.shape[1]


def _cut(frame: Frame, window: Window) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = window
    return frame.image[y1:y2, x1:x2]
