"""Tracklets on disk to the uint8 tensors that the network takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from s3clip.datasets import Tracklet
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.spec import LR_SIZE

U8 = NDArray[np.uint8]

JPEG_END = b"\xff\xd9"
"""End-of-image marker."""


def load_crops(tracklet: Tracklet, indices: Sequence[int]) -> list[U8]:
    """The chosen native frames, uint8 (h, w, 3) RGB each; a repeated index is decoded once.

    Raises:
        DataError: a frame is missing, truncated or no picture.
    """
    decoded: dict[int, U8] = {}
    for index in indices:
        if index not in decoded:
            decoded[index] = decode(tracklet.frame(index))
    return [decoded[index] for index in indices]


def decode(path: Path) -> U8:
    """One picture, uint8 (h, w, 3) RGB, as Pillow decodes it.

    OpenCV gives the same pixels of a JPEG in 0.4 of the time, but fills up a truncated one without a word:
    files that do not end as a JPEG must are left to Pillow.

    Raises:
        DataError: as of `load_crops`.
    """
    try:
        content = path.read_bytes()
        if content.endswith(JPEG_END):
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
            if picture is not None:
                return cast(U8, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: a frame must be a readable image ({error}); restore or remove it") from None


def lr_tensor(crops: Sequence[U8]) -> Tensor:
    """Crops of any size to uint8 (T, 3, 64, 32): Pillow bicubic, as the runtime does it (A7)."""
    return _channels_first(lr_batch(crops))


def aliased_lr_batch(crops: Sequence[U8], out: U8) -> None:
    """Write crops to (T, 64, 32, 3) by torch's bicubic without antialiasing: the option of A7."""
    for row, crop in zip(out, crops, strict=True):
        picture = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None].float()
        small = torch.nn.functional.interpolate(picture, size=LR_SIZE, mode="bicubic", align_corners=False)
        row[...] = small[0].round().clamp(0, 255).permute(1, 2, 0).numpy()


def hr_tensor(crops: Sequence[U8]) -> Tensor:
    """Crops of any size to uint8 (T, 3, 256, 128)."""
    return _channels_first(hr_batch(crops))


def unit_range(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [0, 1]."""
    return pixels.float() / 255.0


def _channels_first(batch: U8) -> Tensor:
    """A view: the pixels stay as they are."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
