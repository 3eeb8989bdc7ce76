"""Pictures for people to look at: crops after super-resolution, and strips of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from s3clip.clips import U8, lr_tensor, unit_range
from s3clip.models.model import S3Clip

GAP = 2
"""White pixels between the pictures of a strip."""


@torch.no_grad()
def super_resolved(model: S3Clip, crops: Sequence[U8], device: str) -> list[U8]:
    """Crops uint8 (h, w, 3) of any size to uint8 (128, 64, 3), clamped: pictures are for people (A11).

    The model's mode is left as it was.
    """
    if not crops:
        return []
    training = model.training
    model.eval()
    resolved = model.super_resolve(unit_range(lr_tensor(crops).to(device)))
    model.train(training)
    pixels = (resolved * 255).round().clamp(0, 255).to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).cpu().numpy())


def side_by_side(pictures: Sequence[U8]) -> U8:
    """Pictures uint8 (h, w, 3) of one size in a row, with white between them."""
    height, width = pictures[0].shape[:2]
    strip = np.full((height, len(pictures) * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        left = number * (width + GAP)
        strip[:, left : left + width] = picture
    return strip
