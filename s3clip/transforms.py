"""Augmentation on tensors: shared flips and one erased rectangle per tracklet."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

EXPOSURE = (0.8, 1.25)
COLOUR_CAST = (0.9, 1.1)
SHIFT_SHARE = 0.06
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)
_ATTEMPTS = 100


def jitter_colours(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Another exposure and colour cast for each of (N, 3, H, W): what differs between cameras."""
    count = len(pictures)
    gain = rng.uniform(*EXPOSURE, (count, 1, 1, 1)) * rng.uniform(*COLOUR_CAST, (count, 3, 1, 1))
    return pictures * torch.from_numpy(gain).to(pictures)


def shift_pictures(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Move each of (N, 3, H, W) by up to 6 % of its sides, borders repeated: detectors' boxes wander."""
    height, width = pictures.shape[-2:]
    down, right = round(height * SHIFT_SHARE), round(width * SHIFT_SHARE)
    padded = torch.nn.functional.pad(pictures, (right, right, down, down), mode="replicate")
    offsets = zip(
        rng.integers(0, 2 * down + 1, len(pictures)),
        rng.integers(0, 2 * right + 1, len(pictures)),
        strict=True,
    )
    moved = [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)


def erase_tracklets(videos: Tensor, probability: float, fill: Tensor, rng: np.random.Generator) -> Tensor:
    """Random erasing (B, T, 3, H, W): one rectangle per tracklet, the same in all its frames (method.md 5.3).

    Args:
        videos: pixels; not changed in place.
        probability: of a tracklet being erased.
        fill: (3, 1, 1) value written; the pixel mean is 0 after normalisation.
        rng: decides which tracklets and where.
    """
    height, width = videos.shape[-2:]
    erased = torch.zeros(len(videos), 1, 1, height, width, dtype=torch.bool)
    for tracklet in erased:
        if rng.random() < probability:
            top, left, h, w = erased_rectangle(height, width, rng)
            tracklet[..., top : top + h, left : left + w] = True
    return torch.where(erased.to(videos.device), fill, videos)


def erased_rectangle(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a rectangle with area U(.02, .4) and log-uniform aspect in [.3, 3.3]."""
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    raise AssertionError("no rectangle fits: the area range guarantees one")
