"""What is wrong with the pictures of a connected camera: frozen, black, or partly a decoder's filler."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.streams.status import PictureFault

Picture = NDArray[np.uint8]

FROZEN_S = 5.0
"""Pictures in which no pixel changes for so long are called frozen. Most cameras send a key frame every 1 to
4 s, and that redraws their noise."""

BLACK_MEAN, BLACK_SPREAD = 16.0, 6.0
"""A picture whose mean and standard deviation are below shows nothing: covered lens, no light, no signal."""

FILLED = 0.03
"""Share of filler that makes a picture faulty: one row of macroblocks of 576 lines. The most that 795 frames
of a real car park showed is 0.0012."""

DOUBT_S = 2.0
"""So long after a picture that the decoder flagged, grey and smear are taken for filler. Without a flag they
are the scene: walls are grey, and fences look like a smear."""

GRID = 8
"""Every so many-th pixel of every so many-th row is looked at."""

_GREY = ((129, 129, 129), (131, 131, 131))
"""What FFmpeg paints where data is missing (H.264 without a reference): YUV 128, as RGB bounds."""

_GREEN = ((0, 133, 0), (2, 137, 2))
"""The same for H.265, whose decoder flags nothing: YUV 0, which no scene shows."""

_SMEAR_STEP, _SMEAR_SPREAD, _SMEAR_WIDTH = 2, 24, 0.9
"""Or it draws the last good row down (H.264): rows that equal the one above to 2 levels in 90 % of their
width, although their brightness varies by 24 levels along it."""


class PictureHealth:
    """Looks at the pictures of one camera. Not thread-safe.

    "frozen" is for people to see and no reason to drop frames: where nothing moves and the camera compresses
    hard, pictures are equal for a whole key-frame interval (measured: x264 at crf 40 swallows noise of 4
    levels), so with more than `FROZEN_S` between key frames an empty yard looks frozen. The other way round,
    a camera that encodes one picture again and again with a changing quality is not seen.

    Damage that the decoder mends from the picture before looks like a picture: what it flags, and all frames
    from there to the next key frame, must be left out by the reader.
    """

    def __init__(self) -> None:
        self._grid: Picture | None = None
        self._whole: Picture | None = None  # held only while the grid stands still
        self._since_s = 0.0
        self._doubted_until_s = -math.inf
        self._usual_share = 0.0

    def update(
        self, image: Picture, now_s: float, *, corrupt: bool = False, key: bool = False
    ) -> tuple[PictureFault, ...]:
        """The faults of the camera after this picture; 0.3 ms for 768x576.

        Args:
            image: uint8 (h, w, 3) RGB; not kept. Sizes may change.
            now_s: seconds of any clock that rises.
            corrupt: the decoder has flagged the picture as damaged.
            key: it is a key frame, which needs no other picture: the share of filler in it belongs to the
                scene (a grey wall, a camera's black and white night mode) and is no fault.
        """
        grid = np.ascontiguousarray(image[::GRID, ::GRID])
        faults: list[PictureFault] = []
        if self._stands_since(grid, image, now_s) <= now_s - FROZEN_S:
            faults.append("frozen")
        mean, spread = cv2.meanStdDev(grid)
        if mean.max() < BLACK_MEAN and spread.max() < BLACK_SPREAD:
            faults.append("black")
        elif self._filled_share(grid, now_s, corrupt, key) >= FILLED:
            faults.append("grey")
        return tuple(faults)

    def _filled_share(self, grid: Picture, now_s: float, corrupt: bool, key: bool) -> float:
        """Share of the picture that the decoder has filled for want of data."""
        if min(grid.shape[:2]) < 2:
            return 0.0
        share = _flat_share(grid, _GREY) + _smeared_share(grid)
        if corrupt:
            self._doubted_until_s = now_s + DOUBT_S
        elif key:
            self._usual_share = share
        believed = max(share - self._usual_share, 0.0) if now_s < self._doubted_until_s else 0.0
        return believed + _flat_share(grid, _GREEN)

    def _stands_since(self, grid: Picture, image: Picture, now_s: float) -> float:
        """Since when no pixel has changed. The whole picture is compared where the grid stands still."""
        before, self._grid = self._grid, grid
        if before is None or not np.array_equal(before, grid):
            self._whole, self._since_s = None, now_s
        elif self._whole is None or not np.array_equal(self._whole, image):
            self._whole, self._since_s = image.copy(), now_s
        return self._since_s


def _flat_share(grid: Picture, bounds: tuple[tuple[int, int, int], tuple[int, int, int]]) -> float:
    """Share of points whose colour, and that of their neighbours, is within the bounds."""
    near = np.asarray(cv2.inRange(grid, *bounds), np.uint8)
    flat = near[1:, 1:] & near[1:, :-1] & near[:-1, 1:]  # a lone point of that colour is a coincidence
    return cv2.countNonZero(flat) / flat.size


def _smeared_share(grid: Picture) -> float:
    """Share of rows that repeat the row above."""
    alike = cv2.inRange(cv2.absdiff(grid[1:], grid[:-1]), (0, 0, 0), (_SMEAR_STEP,) * 3)
    green = grid[1:, :, 1]
    varied = green.max(axis=1).astype(np.int16) - green.min(axis=1) >= _SMEAR_SPREAD
    return float((varied & (alike.mean(axis=1) >= 255 * _SMEAR_WIDTH)).mean())
