"""How a part of a frame becomes the input of a network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.spec import PIXEL_MEAN, PIXEL_STD

PAD = 114
"""Grey that YOLOX networks are trained with beside the picture."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a network wants to see.

    Attributes:
        form: "chw" floats, or "hwc" as the bytes are.
        letterbox: keep the proportions, in the top left corner, the rest grey; else stretch to the input.
        bgr: channels are blue, green, red; else red, green, blue.
        smooth: average when shrinking, as antialiased resizing does; else plain bilinear.
        mean, std: of each channel in 0..255: the network gets (value - mean) / std.
    """

    form: str = "chw"
    letterbox: bool = False
    bgr: bool = False
    smooth: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def draw(self, image: NDArray[np.uint8], canvas: NDArray[np.uint8]) -> tuple[float, float]:
        """Fit an image into a canvas, both uint8 (h, w, 3).

        Returns:
            Pixels of the canvas over pixels of the image, horizontally and vertically.
        """
        height, width = canvas.shape[:2]
        across, down = width / image.shape[1], height / image.shape[0]
        if self.letterbox:
            across = down = min(across, down)
            height, width = (max(int(side * across), 1) for side in image.shape[:2])
            canvas[...] = PAD
        shrinks = self.smooth and across < 1 and down < 1
        way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized = cv2.resize(image, (width, height), interpolation=way)
        canvas[:height, :width] = resized[..., ::-1] if self.bgr else resized
        return across, down

    def pack(self, canvases: NDArray[np.uint8], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """The network's input from canvases, uint8 (n, h, w, 3)."""
        if self.form == "hwc":
            return canvases
        values = canvases.transpose(0, 3, 1, 2).astype(np.float32)
        mean, std = (np.array(three, np.float32)[:, None, None] for three in (self.mean, self.std))
        if mean.any():
            values -= mean
        if (std != 1).any():
            values /= std
        return values.astype(dtype, copy=False)


_MEAN, _STD = (tuple(255 * value for value in three) for three in (PIXEL_MEAN, PIXEL_STD))

YOLOX_PICTURE = Picture(letterbox=True, bgr=True)
IMAGENET_PICTURE = Picture(mean=(_MEAN[0], _MEAN[1], _MEAN[2]), std=(_STD[0], _STD[1], _STD[2]))
UNIT_PICTURE = Picture(smooth=True, std=(255.0, 255.0, 255.0))
BYTE_PICTURE = Picture(form="hwc")
