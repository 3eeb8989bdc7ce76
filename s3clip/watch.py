"""What stage 2 does to the super-resolver, to look at: strips of pictures, PSNR, SSIM and drift.

S sees only synthetic bicubic LR while it learns, so natural LR may leave its range unseen (method.md 9):
the drift is how far S is from plain bicubic on natural LR.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from s3clip.clips import load_crops, lr_tensor, unit_range
from s3clip.datasets import Tracklet
from s3clip.model import S3Clip
from s3clip_runtime.inference.preprocess import resize_bicubic
from s3clip_runtime.inference.spec import LR_SIZE, SR_SIZE

GAP = 2
"""White pixels between the pictures of a strip."""

BEST_PSNR = 100.0
"""Stands for infinity, which equal pictures would have and a metric must not."""

U8 = NDArray[np.uint8]


class SuperResolutionWatch:
    """Looks at the same crops each time: the middle frames of tracklets spread over the training split.

    Args:
        model: its `sr` is looked at.
        tracklets: training split.
        folder: where the strips go.
        every: epochs between two looks.
        count: HR and LR tracklets, each.
        device: of the model.
    """

    def __init__(
        self,
        model: S3Clip,
        tracklets: Sequence[Tracklet],
        folder: Path,
        *,
        every: int,
        count: int,
        device: str,
    ) -> None:
        self._model, self._folder, self._every, self._device = model, folder, every, device
        self._sharp = _middle_crops([t for t in tracklets if t.hr], count)
        self._natural = _middle_crops([t for t in tracklets if not t.hr], count)

    def look(self, epoch: int) -> dict[str, float]:
        """Measure and write `epoch-EEE.png`, or nothing in an epoch between two looks.

        Returns:
            `psnr` in dB and `ssim` of S on degraded HR crops at 128x64, means over the crops; `drift`, the
            mean absolute difference between S and bicubic x2 on natural LR, in levels of 255.
        """
        if self._every == 0 or epoch % self._every:
            return {}
        truth = [resize_bicubic(crop, SR_SIZE) for crop in self._sharp]
        small = self._small(self._sharp)
        resolved, natural = self._resolve(small), self._small(self._natural)
        unseen = self._resolve(natural)
        plain = [resize_bicubic(crop, SR_SIZE) for crop in natural]
        rows = [
            _row([resize_bicubic(crop, SR_SIZE) for crop in small], resolved, truth),
            _row(plain, unseen, [resize_bicubic(crop, SR_SIZE) for crop in self._natural]),
        ]
        self._folder.mkdir(parents=True, exist_ok=True)
        picture = np.concatenate([row for row in rows if row is not None], axis=0)
        Image.fromarray(picture).save(self._folder / f"epoch-{epoch:03}.png")
        return _quality(resolved, truth) | _drift(unseen, plain)

    def _small(self, crops: Sequence[U8]) -> list[U8]:
        return [resize_bicubic(crop, LR_SIZE) for crop in crops]

    @torch.no_grad()
    def _resolve(self, crops: Sequence[U8]) -> list[U8]:
        """uint8 (64, 32, 3) to uint8 (128, 64, 3), clamped: pictures are for people (A11)."""
        if not crops:
            return []
        training = self._model.training
        self._model.eval()
        resolved = self._model.super_resolve(unit_range(lr_tensor(crops).to(self._device)))
        self._model.train(training)
        pixels = (resolved.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return list(pixels)


def _middle_crops(tracklets: Sequence[Tracklet], count: int) -> list[U8]:
    count = min(count, len(tracklets))
    chosen = [tracklets[i * len(tracklets) // count] for i in range(count)]
    return [load_crops(tracklet, [len(tracklet) // 2])[0] for tracklet in chosen]


def _row(*columns: Sequence[U8]) -> U8 | None:
    """Groups of pictures side by side: for each crop one picture of every column."""
    if not columns[0]:
        return None
    white = np.full((SR_SIZE[0], GAP, 3), 255, np.uint8)
    parts = [part for group in zip(*columns, strict=True) for picture in group for part in (picture, white)]
    row = np.concatenate(parts, axis=1)
    return np.concatenate([row, np.full((GAP, row.shape[1], 3), 255, np.uint8)], axis=0)


def _quality(resolved: Sequence[U8], truth: Sequence[U8]) -> dict[str, float]:
    pairs = list(zip(truth, resolved, strict=True))
    if not pairs:
        return {}
    ssim = [
        structural_similarity(a, b, channel_axis=2, gaussian_weights=True, use_sample_covariance=False)
        for a, b in pairs
    ]
    psnr = [min(peak_signal_noise_ratio(a, b), BEST_PSNR) for a, b in pairs]
    return {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}


def _drift(resolved: Sequence[U8], plain: Sequence[U8]) -> dict[str, float]:
    if not resolved:
        return {}
    return {"drift": float(np.abs(np.stack(resolved).astype(np.float32) - np.stack(plain)).mean())}
