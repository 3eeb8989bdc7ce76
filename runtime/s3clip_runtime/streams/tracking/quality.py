"""How much each crop tells about its person, and which crops of a tracklet are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import best_indices
from s3clip_runtime.inference.spec import CLIP_LENGTH, HR_MIN_SIZE, LR_SIZE
from s3clip_runtime.streams.looks import Chosen, CropQuality

SIZE_SHARE, SHARP_SHARE, SCORE_SHARE = 0.4, 0.4, 0.2
"""What size, sharpness and the detector's score add to the quality of a whole, uncovered person."""

SHARP_VARIANCE = 500.0
"""Variance of the Laplacian, at 64x32, that counts as half sharp."""

CUT_LOSS = 0.5
"""What touching the frame's border costs: feet or head are often missing."""

_BORDER = 1.0
"""Pixels from the frame's border within which a box touches it."""


def crop_quality(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], scores: NDArray[np.float32]
) -> list[CropQuality]:
    """How much the crops of one frame tell about their persons. Our rule, not the paper's.

    value = (0.4 size + 0.4 sharp + 0.2 score) * (1 - 0.5 cut) * (1 - covered), with
    size: side of a square of the crop's area over that of an HR frame (128x64), at most 1;
    sharp: v / (v + 500), v the variance of the Laplacian of the grey crop at 64x32, the same for all sizes;
    score: of the detector; cut: 1 if the box touches the frame's border, else 0;
    covered: largest share of the box that one other box of the frame lies over.

    Args:
        image: uint8 (h, w, 3) RGB.
        boxes: float32 (N, 4) in pixels of it.
        scores: float32 (N,) in [0, 1].

    Returns:
        N qualities, in the order of the boxes.
    """
    if len(boxes) == 0:
        return []
    height, width = image.shape[:2]
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1)
    size = np.minimum(np.sqrt(areas / (HR_MIN_SIZE[0] * HR_MIN_SIZE[1])), 1)
    variance = np.array([_laplacian_variance(image, box) for box in boxes])
    sharp = variance / (variance + SHARP_VARIANCE)
    border = np.array([width, height], np.float32) - _BORDER
    cut = (boxes[:, :2] < _BORDER).any(axis=1) | (boxes[:, 2:] > border).any(axis=1)
    covered = _covered(boxes, areas)
    worth = SIZE_SHARE * size + SHARP_SHARE * sharp + SCORE_SHARE * scores
    value = np.asarray(worth * (1 - CUT_LOSS * cut) * (1 - covered), np.float32)
    columns = [np.asarray(term).tolist() for term in (value, size, sharp, scores, covered, cut)]
    return [CropQuality(*row) for row in zip(*columns, strict=True)]


def choose(qualities: Sequence[CropQuality]) -> tuple[Chosen, ...]:
    """The T crops of a tracklet that are embedded: the best of each of T equal spans, in temporal order.

    Args:
        qualities: one a crop, in temporal order, at least one. Fewer than T: the last crop is repeated.

    Returns:
        T = `CLIP_LENGTH` choices. Weights are shares of the clip's quality; equal if no crop has any.
    """
    values = np.array([quality.value for quality in qualities], np.float32)
    positions = best_indices(values)
    total = float(values[positions].sum(dtype=np.float64))
    weights = [float(values[position]) / total if total > 0 else 1 / CLIP_LENGTH for position in positions]
    return tuple(Chosen(position, weight) for position, weight in zip(positions, weights, strict=True))


def pixel_box(image: NDArray[np.uint8], box: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the whole pixels that `box` touches, inside the picture, at least 1x1."""
    # Four single numbers cost NumPy 48 us, and every person of every frame comes by here twice.
    height, width = image.shape[:2]
    left, top, right, bottom = box.tolist()
    x1, y1 = max(min(floor(left), width - 1), 0), max(min(floor(top), height - 1), 0)
    return x1, y1, max(min(ceil(right), width), x1 + 1), max(min(ceil(bottom), height), y1 + 1)


def _covered(boxes: NDArray[np.float32], areas: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(boxes[:, None], boxes[None]), np.minimum(boxes[:, None], boxes[None])
    inner = np.maximum(high[..., 2:] - low[..., :2], 0).prod(axis=-1)
    np.fill_diagonal(inner, 0)
    return np.asarray(np.minimum((inner / areas[:, None]).max(axis=1), 1), np.float32)


def _laplacian_variance(image: NDArray[np.uint8], box: NDArray[np.float32]) -> float:
    x1, y1, x2, y2 = pixel_box(image, box)
    # Shrunk before the grey conversion: the crop may be large, the small picture never is.
    small = cv2.resize(image[y1:y2, x1:x2], (LR_SIZE[1], LR_SIZE[0]), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))  # whole numbers, at most 4 * 255
    return float(deviation[0, 0]) ** 2
