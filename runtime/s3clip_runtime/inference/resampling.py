"""Pillow's antialiased bicubic, bit for bit, as matrix products; for pictures that do not get less high.

Pillow rounds its weights to 22 binary places, adds products of integers, and rounds after each of its two
passes. Those sums need 31 bits, so float64 products give them exactly, in any order of adding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
Floats = NDArray[np.float64]

_ONE = 1 << 22
"""Pillow's fixed-point 1 for 8-bit pictures: 32 bits less 8 of the pixel and 2 of overshoot."""

_ROUND_UP = np.full((1, 1), 2.0**-24)
"""Below the weights' last place. OpenCV rounds halves to even numbers; with it they go up, as Pillow's do."""

_BAND = 16
"""Output lines of one product. A line needs few input lines, so one product of all would mostly add zeros:
80x36 to 256x128 took 448 us so, 148 us in bands of 16, 170 us in bands of 8."""

_LENGTHS_KEPT = 512
"""Pairs of lengths whose weights are kept: heights and widths below 256 px, at most 60 kB each."""


@dataclass(frozen=True, slots=True)
class _Band:
    """Lines `low` to `high` of the output are `weights` times lines `first` to `last` of the input."""

    low: int
    high: int
    first: int
    last: int
    weights: Floats


class Scratch:
    """Memory of `resize_exact` that is used again: one thread at a time. It grows to the largest picture."""

    def __init__(self) -> None:
        self._floats = (np.empty(0), np.empty(0))
        self._bytes = np.empty(0, np.uint8)

    def floats(self, count: int) -> tuple[Floats, Floats]:
        """Two arrays of `count` numbers, what the last call gave or larger ones."""
        if len(self._floats[0]) < count:
            self._floats = (np.empty(count), np.empty(count))
        return self._floats[0][:count], self._floats[1][:count]

    def bytes(self, count: int) -> U8:
        """`count` bytes, what the last call gave or larger ones."""
        if len(self._bytes) < count:
            self._bytes = np.empty(count, np.uint8)
        return self._bytes[:count]


def resize_exact(image: U8, out: U8, scratch: Scratch) -> None:
    """Resize one RGB picture as Pillow does, in half of its time.

    Pillow makes the horizontal pass first; from 13 on not for all pictures that get less high, so such ones
    must be left to Pillow itself.

    Args:
        image: uint8 (h, w, 3) with h, w >= 1 and h <= H.
        out: uint8 (H, W, 3), C-contiguous; overwritten.
        scratch: memory.
    """
    height, width = image.shape[:2]
    high, wide = out.shape[:2]
    size = 3 * max(height, high) * max(width, wide)
    (source, target), turned = scratch.floats(size), scratch.bytes(size)
    # Lines must lie one after the other in memory: the picture is turned for the horizontal pass.
    columns = turned[: width * height * 3]
    cv2.transpose(image, dst=columns.reshape(width, height, 3))
    _pass(columns.reshape(width, -1), turned[: wide * height * 3].reshape(wide, -1), source, target)
    lines = np.asarray(cv2.transpose(turned[: wide * height * 3].reshape(wide, height, 3)), np.uint8)
    _pass(lines.reshape(height, -1), out.reshape(high, -1), source, target)


def _pass(lines: U8, out: U8, source: Floats, target: Floats) -> None:
    """Resample uint8 (n, k) along its first axis into (N, k)."""
    floats = source[: lines.size].reshape(lines.shape)
    np.copyto(floats, lines)
    sums = target[: out.size].reshape(out.shape)
    for band in _bands(len(lines), len(out)):
        np.matmul(band.weights, floats[band.first : band.last], out=sums[band.low : band.high])
    cv2.add(sums, _ROUND_UP, dst=out, dtype=cv2.CV_8U)  # rounds, and cuts off what is below 0 or above 255


@lru_cache(_LENGTHS_KEPT)
def _bands(length: int, out_length: int) -> tuple[_Band, ...]:
    matrix = _weights(length, out_length)
    bands = []
    for low in range(0, out_length, _BAND):
        rows = matrix[low : low + _BAND]
        used = np.flatnonzero(rows.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        bands.append(_Band(low, low + len(rows), first, last, np.ascontiguousarray(rows[:, first:last])))
    return tuple(bands)


def _weights(length: int, out_length: int) -> Floats:
    """Pillow's weights, float64 (out_length, length), whole multiples of 2^-22."""
    scale = length / out_length
    stretch = max(scale, 1.0)
    centre = (np.arange(out_length) + 0.5) * scale
    first = np.maximum((centre - 2 * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + 2 * stretch + 0.5).astype(int), length)
    place = first[:, None] + np.arange((last - first).max())
    inside = place < last[:, None]
    taps = np.where(inside, _bicubic((place - centre[:, None] + 0.5) * (1 / stretch)), 0)
    # Not sum(): the last digit depends on the order of adding, and Pillow adds one after the other.
    taps *= 1 / np.cumsum(taps, axis=1)[:, -1:]
    matrix = np.zeros((out_length, length))
    lines = np.broadcast_to(np.arange(out_length)[:, None], place.shape)
    matrix[lines[inside], place[inside]] = np.trunc(taps * _ONE + np.copysign(0.5, taps))[inside] / _ONE
    return matrix


def _bicubic(x: Floats) -> Floats:
    """Keys' kernel with a = -0.5; 0 from 2 on."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))
