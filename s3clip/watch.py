"""What stage 2 does to the super-resolver, to look at: strips of pictures, PSNR, SSIM and drift.

S sees only synthetic bicubic LR while it learns, so natural LR may leave its range unseen (method.md 9):
the drift is how far S is from plain bicubic on natural LR.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from s3clip.clips import U8, load_crops
from s3clip.datasets import Tracklet
from s3clip.models.model import S3Clip
from s3clip.pictures import GAP, side_by_side, super_resolved
from s3clip_runtime.inference.preprocess import resize_bicubic
from s3clip_runtime.inference.spec import LR_SIZE, SR_SIZE

BEST_PSNR = 100.0
"""Stands for infinity, which equal pictures would have and a metric must not."""


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
        resolved, plain = self._resolved(self._sharp), _bicubic(self._sharp)
        unseen, unseen_plain = self._resolved(self._natural), _bicubic(self._natural)
        native = [resize_bicubic(crop, SR_SIZE) for crop in self._natural]
        groups = [(plain, resolved, truth), (unseen_plain, unseen, native)]
        rows = [
            side_by_side([picture for group in zip(*columns, strict=True) for picture in group])
            for columns in groups
            if columns[0]
        ]
        self._folder.mkdir(parents=True, exist_ok=True)
        picture = np.full(
            (len(rows) * (SR_SIZE[0] + GAP) - GAP, max(len(r[0]) for r in rows), 3), 255, np.uint8
        )
        for number, row in enumerate(rows):
            picture[number * (SR_SIZE[0] + GAP) :][: SR_SIZE[0], : row.shape[1]] = row
        Image.fromarray(picture).save(self._folder / f"epoch-{epoch:03}.png")
        return _quality(resolved, truth) | _drift(unseen, unseen_plain)

    def _resolved(self, crops: Sequence[U8]) -> list[U8]:
        return super_resolved(self._model, crops, self._device)


def _bicubic(crops: Sequence[U8]) -> list[U8]:
    """What a bicubic x2 in the place of S gives: uint8 (128, 64, 3)."""
    return [resize_bicubic(resize_bicubic(crop, LR_SIZE), SR_SIZE) for crop in crops]


def _middle_crops(tracklets: Sequence[Tracklet], count: int) -> list[U8]:
    count = min(count, len(tracklets))
    chosen = [tracklets[i * len(tracklets) // count] for i in range(count)]
    return [load_crops(tracklet, [len(tracklet) // 2])[0] for tracklet in chosen]


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
