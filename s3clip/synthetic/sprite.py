"""Small pictures with transparency, and laying them over a frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sprite:
    """A picture to be laid over a frame.

    image: uint8 (h, w, 4), RGB multiplied by alpha, and alpha. x, y: frame position of its top left pixel.
    """

    image: NDArray[np.uint8]
    x: int
    y: int


def swayed(sprite: Sprite, move: float) -> Sprite:
    """The sprite moved sideways, and a little down, by `move` pixels; fractions count."""
    height, width = sprite.image.shape[:2]
    shift = np.array([[1.0, 0.0, move], [0.0, 1.0, 0.3 * move]])
    return Sprite(
        np.asarray(cv2.warpAffine(sprite.image, shift, (width, height)), np.uint8), sprite.x, sprite.y
    )


def paste(frame: U8, sprite: Sprite, owner: NDArray[np.int16] | None = None, number: int = -1) -> None:
    """Lay a sprite over the frame in place, cut at the border; write `number` to its solid pixels in `owner`.

    Args:
        frame: uint8 (h, w, 3), changed.
        sprite: what to lay over it.
        owner: int16 (h, w), changed, or None.
        number: who is on top now.
    """
    height, width = frame.shape[:2]
    top, left = max(0, sprite.y), max(0, sprite.x)
    bottom = min(height, sprite.y + sprite.image.shape[0])
    right = min(width, sprite.x + sprite.image.shape[1])
    if bottom <= top or right <= left:
        return
    part = sprite.image[top - sprite.y : bottom - sprite.y, left - sprite.x : right - sprite.x]
    under = frame[top:bottom, left:right]
    clear = cv2.cvtColor(255 - part[:, :, 3], cv2.COLOR_GRAY2RGB)
    under[:] = cv2.add(cv2.multiply(under, clear, scale=1 / 255), part[:, :, :3])
    if owner is not None:
        owner[top:bottom, left:right][part[:, :, 3] > 127] = number
