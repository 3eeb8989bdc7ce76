"""How a moving camera moved from one frame to the next, seen from the background."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

LONG_SIDE = 640
"""Larger frames are shrunk to this many pixels for the search."""

CORNERS = 200
"""Most corners that are followed."""

SPACING = 8
"""Least distance of two corners in shrunk pixels: they cover the picture, and not one strong texture."""

MIN_AGREEING, MIN_SHARE = 8, 0.3
"""Corners with one motion, and their share of all, below which no motion is stated.

At least half agreed in the panned vtest video; at most 0.17 of them, and 3 corners, in 110 pairs of unrelated
pictures. So a cut or a broken picture moves no track.
"""

_WINDOW = (15, 15)
_LEVELS = 3
_QUALITY = 0.01
_REACH = 3.0


class CameraMotion:
    """Shift, turn and zoom of the picture: corners outside persons, followed by optical flow, then RANSAC.

    On the panned and turned vtest video, at 4, 16 and 48 px a frame, the corners of a 1280x720 picture were
    0.3 px off (median; 0.9 px in 95 of 100 frames) for 7 to 9 ms of one core, those of 768x576 0.2 px for 9
    to 13 ms. The library's own estimator needs 20 to 31 and 14 to 18 ms for that at half size (2 px off at a
    quarter), and follows persons as if they were background.
    """

    def __init__(self) -> None:
        self._grey: NDArray[np.uint8] | None = None
        self._corners: NDArray[np.float32] | None = None

    def forget(self) -> None:
        """The next frame is the first one."""
        self._grey = self._corners = None

    def update(self, image: NDArray[np.uint8], persons: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """The map from the last frame's pixels to this one's.

        Args:
            image: uint8 (h, w, 3) RGB, of the size of the last one.
            persons: float32 (N, 4) x1, y1, x2, y2 in pixels; their corners are not followed from here on.

        Returns:
            float64 (2, 3) such that new = A @ (x, y, 1); None for the first frame, and where too little of
            the background is seen to tell.
        """
        height, width = image.shape[:2]
        shrink = min(1.0, LONG_SIDE / max(height, width))
        size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
        scale = np.array([size[0] / width, size[1] / height])
        full = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        grey = np.asarray(cv2.resize(full, size, interpolation=cv2.INTER_AREA), np.uint8)
        motion = None
        if self._grey is not None and self._corners is not None:
            motion = _motion(self._grey, grey, self._corners, scale)
        background = np.full(grey.shape, 255, np.uint8)
        for box in persons:
            x1, y1 = np.maximum(np.floor(box[:2] * scale), 0).astype(int)
            x2, y2 = np.ceil(box[2:] * scale).astype(int)
            background[y1:y2, x1:x2] = 0
        found = cv2.goodFeaturesToTrack(grey, CORNERS, _QUALITY, SPACING, mask=background)
        self._grey, self._corners = grey, None if found is None else np.asarray(found, np.float32)
        return motion


def _motion(
    before: NDArray[np.uint8],
    now: NDArray[np.uint8],
    corners: NDArray[np.float32],
    scale: NDArray[np.float64],
) -> NDArray[np.float64] | None:
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        before, now, corners, np.empty_like(corners), winSize=_WINDOW, maxLevel=_LEVELS
    )
    good = found.ravel() != 0
    if good.sum() < MIN_AGREEING:
        return None
    # Shrinking keeps the edges of pixels in place, not their centres, which carry the whole numbers.
    source, target = ((points.reshape(-1, 2)[good] + 0.5) / scale - 0.5 for points in (corners, moved))
    motion, agree = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=_REACH / float(scale.min())
    )
    if motion is None or agree.sum() < max(MIN_AGREEING, MIN_SHARE * good.sum()):
        return None
    return np.asarray(motion, np.float64)
