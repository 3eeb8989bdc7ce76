"""Crops to graph inputs. The kernel is Pillow's antialiased bicubic (a = -0.5), decision A7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3clip_runtime.inference.resampling import Scratch, resize_exact
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
    out = np.empty((*size, 3), np.uint8)
    resize_into(out, image, Scratch())
    return out


def resize_into(out: U8, image: U8, scratch: Scratch) -> None:
    """Resize one RGB picture into `out`; `scratch` may serve any number of calls of one thread.

    Args:
        out: uint8 (H, W, 3); overwritten.
        image: uint8 (h, w, 3) with h, w >= 1.
        scratch: memory.
    """
    if image.shape == out.shape:
        out[...] = image
    elif len(image) <= len(out) and out.flags.c_contiguous:
        resize_exact(image, out, scratch)
    else:
        # Which pass comes first depends on Pillow's version here, and a level here and there on the order.
        picture = Image.fromarray(np.ascontiguousarray(image))
        out[...] = np.asarray(picture.resize((out.shape[1], out.shape[0]), Image.Resampling.BICUBIC))


def lr_batch(crops: Sequence[U8], out: U8 | None = None) -> U8:
    """Input of the `enhance` graph: uint8 (N, 64, 32, 3), made or `out`, from N crops of any size."""
    return _batch(crops, LR_SIZE, out)


def hr_batch(crops: Sequence[U8], out: U8 | None = None) -> U8:
    """Input of the `patchify` graph: uint8 (N, 256, 128, 3), made or `out`, from N crops of any size."""
    return _batch(crops, FRAME_SIZE, out)


class CropRows:
    """The input of one graph, made in memory that every batch uses again. Crops of equal pixels share a row.

    Args:
        size: (height, width) of a row.
        limit: rows at most, >= 1; the memory is touched only as far as it is used.
    """

    def __init__(self, size: tuple[int, int], limit: int) -> None:
        self._memory = np.empty((limit, *size, 3), np.uint8)
        self._scratch = Scratch()
        self._count = 0
        self._seen: dict[_Key, list[tuple[int, U8]]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> U8:
        """uint8 (N, height, width, 3), valid until the next batch begins."""
        return self._memory[: self._count]

    @contextmanager
    def filling(self) -> Iterator[CropRows]:
        """A new, empty batch. At its end the crops are let go."""
        self._count = 0
        try:
            yield self
        finally:
            self._seen.clear()

    def place(self, crop: U8) -> int:
        """The row of a crop, uint8 (h, w, 3) with h, w >= 1, which is resized unless its pixels are there.

        Raises:
            IndexError: all rows are taken.
        """
        # One line tells nearly all crops apart; only equal ones are compared as a whole.
        same = self._seen.setdefault((crop.shape, crop[len(crop) // 2].tobytes()), [])
        for row, other in same:
            if other is crop or np.array_equal(other, crop):
                return row
        row = self._count
        resize_into(self._memory[row], crop, self._scratch)
        same.append((row, crop))
        self._count += 1
        return row


_Key = tuple[tuple[int, ...], bytes]


def _batch(crops: Sequence[U8], size: tuple[int, int], out: U8 | None) -> U8:
    batch = np.empty((len(crops), *size, 3), dtype=np.uint8) if out is None else out
    scratch = Scratch()
    for row, crop in zip(batch, crops, strict=True):
        resize_into(row, crop, scratch)
    return batch
