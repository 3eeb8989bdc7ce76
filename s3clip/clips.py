"""Tracklets on disk to the uint8 tensors that the network takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from s3clip.datasets import Tracklet
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.spec import LR_SIZE


def load_crops(tracklet: Tracklet, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The chosen native frames, uint8 (h, w, 3) RGB each; a repeated index is decoded once."""
    decoded: dict[int, NDArray[np.uint8]] = {}
    for index in indices:
        if index not in decoded:
            with Image.open(tracklet.frame(index)) as picture:
                decoded[index] = np.asarray(picture.convert("RGB"))
    return [decoded[index] for index in indices]


def lr_tensor(crops: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Crops of any size to uint8 (T, 3, 64, 32): Pillow bicubic, as the runtime does it (A7)."""
    return _channels_first(lr_batch(crops))


def aliased_lr_tensor(crops: Sequence[NDArray[np.uint8]]) -> Tensor:
    """As `lr_tensor` by torch's bicubic without antialiasing, rounded to 8 bits: the option of A7."""
    small = [
        torch.nn.functional.interpolate(
            _channels_first(crop[None]).float(), size=LR_SIZE, mode="bicubic", align_corners=False
        )
        for crop in crops
    ]
    return torch.cat(small).round().clamp(0, 255).to(torch.uint8)


def hr_tensor(crops: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Crops of any size to uint8 (T, 3, 256, 128)."""
    return _channels_first(hr_batch(crops))


def unit_range(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [0, 1]."""
    return pixels.float() / 255.0


def _channels_first(batch: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
