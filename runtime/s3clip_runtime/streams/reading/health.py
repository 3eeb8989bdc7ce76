"""What is wrong with the pictures of a connected camera: frozen, black, or partly a decoder's filler."""

from __future__ import annotations

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
"""Share of filler, above that of the last key frame, that makes a picture faulty: one row of macroblocks of 576 lines. The most that 795 frames
of a real car park showed is 0.0012."""

FILLED_CORRUPT = 0.01
"""The same where the decoder has flagged the picture as damaged."""

GRID = 8
"""Every so many-th pixel of every so many-th row is looked at."""

_FILLERS = (((126, 126, 126), (134, 134, 134)), ((0, 131, 0), (4, 139, 4)))
"""What FFmpeg paints where data is missing, as RGB bounds: YUV 128 (H.264 without a reference) and YUV 0
(H.265)."""

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
        elif self._is_filled(filled_share(grid), corrupt, key):
            faults.append("grey")
        return tuple(faults)

    def _is_filled(self, share: float, corrupt: bool, key: bool) -> bool:
        if key and not corrupt:
            self._usual_share = share
        return share - self._usual_share >= (FILLED_CORRUPT if corrupt else FILLED)

    def _stands_since(self, grid: Picture, image: Picture, now_s: float) -> float:
        """Since when no pixel has changed. The whole picture is compared where the grid stands still."""
        before, self._grid = self._grid, grid
        if before is None or not np.array_equal(before, grid):
            self._whole, self._since_s = None, now_s
        elif self._whole is None or not np.array_equal(self._whole, image):
            self._whole, self._since_s = image.copy(), now_s
        return self._since_s


def filled_share(grid: Picture) -> float:
    """Share in [0, 1] of a picture, thinned by `GRID`, that a decoder has filled for want of data."""
    if min(grid.shape[:2]) < 2:
        return 0.0
    share = 0.0
    for low, high in _FILLERS:
        near = np.asarray(cv2.inRange(grid, low, high), np.uint8)
        flat = near[1:, 1:] & near[1:, :-1] & near[:-1, 1:]  # a lone pixel of that colour is a coincidence
        share += cv2.countNonZero(flat) / flat.size
    alike = cv2.inRange(cv2.absdiff(grid[1:], grid[:-1]), (0, 0, 0), (_SMEAR_STEP,) * 3)
    green = grid[1:, :, 1]
    varied = green.max(axis=1).astype(np.int16) - green.min(axis=1) >= _SMEAR_SPREAD
    smeared = varied & (alike.mean(axis=1) >= 255 * _SMEAR_WIDTH)
    return share + float(smeared.mean())
