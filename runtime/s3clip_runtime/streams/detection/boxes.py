"""Box geometry of the detectors: tiles, clipping and non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.streams.frames import Detections

Floats = NDArray[np.float32]
Window = tuple[int, int, int, int]
"""A part of a frame: x1, y1, x2, y2 in pixels."""

MIN_SIDE = 2.0
"""Boxes with a smaller width or height, in pixels, are dropped."""

OVERLAP = 0.2
"""Share of a tile that its neighbours see too. Larger persons are found in the whole frame."""


def clipped(boxes: Floats, scores: Floats, size: tuple[int, int]) -> Detections:
    """Detections inside a frame of `size` (height, width); too small ones are gone."""
    limits = np.array([size[1], size[0], size[1], size[0]], np.float32)
    boxes = np.clip(boxes, 0, limits).astype(np.float32)
    good = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    return Detections(boxes[good], np.clip(scores[good], 0, 1).astype(np.float32))


def best_boxes(boxes: Floats, scores: Floats, iou: float) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices of the boxes that stay, best first."""
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        inner = np.maximum(sides, 0).prod(axis=1)
        order = rest[inner <= iou * (areas[best] + areas[rest] - inner)]
    return np.array(kept, np.intp)


def windows(size: tuple[int, int], tiles: tuple[int, int]) -> list[Window]:
    """The whole frame of `size` (height, width), then its tiles (rows, columns), if more than one."""
    whole = [(0, 0, size[1], size[0])]
    if tiles == (1, 1):
        return whole
    spans = []
    for length, count in zip(size, tiles, strict=True):
        side = length / (count - (count - 1) * OVERLAP)
        starts = [round(i * side * (1 - OVERLAP)) for i in range(count)]
        spans.append([(start, min(start + int(np.ceil(side)), length)) for start in starts])
    return whole + [(x1, y1, x2, y2) for y1, y2 in spans[0] for x1, x2 in spans[1]]


def seen_whole(boxes: Floats, window: Window, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes, in pixels of a frame of `size` (height, width), do not touch a window's inner border.

    A box at an inner border shows a part of a person; a neighbour or the whole frame has all of it.
    """
    whole = np.ones(len(boxes), np.bool_)
    for axis, edge in ((0, 0), (1, 0), (2, size[1]), (3, size[0])):
        if window[axis] != edge:
            inward = boxes[:, axis] - window[axis] if axis < 2 else window[axis] - boxes[:, axis]
            whole &= inward > MIN_SIDE
    return whole
