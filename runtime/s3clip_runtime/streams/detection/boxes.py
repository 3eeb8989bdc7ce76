"""Box geometry of the detectors: clipping and non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.streams.frames import Detections

Floats = NDArray[np.float32]

MIN_SIDE = 2.0
"""Boxes with a smaller width or height, in pixels, are dropped."""


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
