"""Crops to graph inputs. The kernel is Pillow's antialiased bicubic (a = -0.5), decision A7."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3clip_runtime.inference.spec import FRAME_SIZE, LR_SIZE

U8 = NDArray[np.uint8]


def resize_bicubic(image: U8, size: tuple[int, int]) -> U8:
    """Resize one RGB picture to `size` (height, width), aspect ratio ignored.

    Args:
        image: uint8 (h, w, 3) with h, w >= 1.
        size: target (height, width).

    Returns:
        uint8 (height, width, 3), C-contiguous.
    """
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def lr_batch(crops: Sequence[U8], out: U8 | None = None) -> U8:
    """Input of the `enhance` graph: uint8 (N, 64, 32, 3), made or `out`, from N crops of any size."""
    return _batch(crops, LR_SIZE, out)


def hr_batch(crops: Sequence[U8], out: U8 | None = None) -> U8:
    """Input of the `patchify` graph: uint8 (N, 256, 128, 3), made or `out`, from N crops of any size."""
    return _batch(crops, FRAME_SIZE, out)


def _batch(crops: Sequence[U8], size: tuple[int, int], out: U8 | None) -> U8:
    batch = np.empty((len(crops), *size, 3), dtype=np.uint8) if out is None else out
    for row, crop in zip(batch, crops, strict=True):
        row[...] = resize_bicubic(crop, size)
    return batch
