"""From a tracklet to the T frames that represent it: the HR rule and the choice of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.spec import CLIP_LENGTH, HR_MIN_SIZE

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Clip:
    """T crops of one tracklet in temporal order.

    Attributes:
        crops: T uint8 (h, w, 3) RGB pictures of any sizes.
        platform: platform id of the camera (`spec.PLATFORMS`).
        hr: decided on the whole tracklet by `is_hr_tracklet`; HR crops skip super-resolution (A9).
    """

    crops: tuple[NDArray[np.uint8], ...]
    platform: int
    hr: bool

    @property
    def height_px(self) -> float:
        """Median height of the crops: what `Bundle.enhances` goes by."""
        return float(np.median([len(crop) for crop in self.crops]))


def is_hr_frame(size: Size) -> bool:
    """A frame is HR iff height >= 128 and width >= 64 (decision A8)."""
    return size[0] >= HR_MIN_SIZE[0] and size[1] >= HR_MIN_SIZE[1]


def is_hr_tracklet(sizes: Sequence[Size]) -> bool:
    """A tracklet is HR iff at least half of its frames are (decision A8). `sizes` must not be empty."""
    return 2 * sum(map(is_hr_frame, sizes)) >= len(sizes)


def spread_indices(count: int, length: int = CLIP_LENGTH) -> list[int]:
    """The deterministic choice for evaluation: frame i * floor(count / length).

    Fewer than `length` frames are padded by repeating the last one (method.md 5.3). `count` >= 1.
    """
    block = max(count // length, 1)
    return [min(i * block, count - 1) for i in range(length)]


def consecutive_indices(count: int, length: int = CLIP_LENGTH) -> list[list[int]]:
    """Every frame in consecutive clips of `length`; the last clip repeats the last frame. `count` >= 1."""
    return [[min(i, count - 1) for i in range(first, first + length)] for first in range(0, count, length)]


def best_indices(quality: NDArray[np.float32], length: int = CLIP_LENGTH) -> list[int]:
    """The runtime's choice: cut the tracklet into `length` equal spans, take the best frame of each.

    Spread over time and quality at once, in temporal order. Shorter tracklets repeat the last frame.
    With equal qualities the first frame of a span wins, so the choice is deterministic.

    Args:
        quality: float32 (count,), higher is better, count >= 1.
    """
    count = len(quality)
    if count <= length:
        return [min(i, count - 1) for i in range(length)]
    edges = [i * count // length for i in range(length + 1)]
    return [low + int(np.argmax(quality[low:high])) for low, high in pairwise(edges)]
