"""Triplets of tracklets to the tensors of a micro-batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from s3clip.batching import Triplet, TripletSampler
from s3clip.clips import aliased_lr_tensor, hr_tensor, load_crops, lr_tensor
from s3clip.datasets import Tracklet
from s3clip.loop import step_seed
from s3clip.schedules import train_frame_indices
from s3clip.transforms import flip_horizontally


class MicroBatch(NamedTuple):
    """B triplets, uint8 pixels, frames in temporal order (A23); flips are shared inside an HR pair (A22).

    Attributes:
        hr: (B, T, 3, 256, 128).
        h2l: (B, T, 3, 64, 32), the same frames degraded (A7).
        lr: (B, T, 3, 64, 32), another tracklet of the identity, natural LR where there is one.
        labels: int64 (B,).
        platform_hr: int64 (B,) of `hr`.
        platform_h2l: int64 (B,) of `h2l`; equals `platform_hr` where `paired`.
        platform_lr: int64 (B,) of `lr`.
        paired: bool (B,); False where the identity has no HR tracklet: it stays out of L_SR (A10).
    """

    hr: Tensor
    h2l: Tensor
    lr: Tensor
    labels: Tensor
    platform_hr: Tensor
    platform_h2l: Tensor
    platform_lr: Tensor
    paired: Tensor

    def to(self, device: str) -> MicroBatch:
        """All tensors on a device."""
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class _Item(NamedTuple):
    hr: Tensor
    h2l: Tensor
    lr: Tensor
    label: int
    platform_hr: int
    platform_h2l: int
    platform_lr: int
    paired: bool


class TripletDataset(Dataset[MicroBatch]):
    """Micro-batches by their number in the run; each depends on (seed, number) only, so resuming is exact.

    Args:
        sampler: chooses the triplets of an epoch.
        epochs: of the run.
        labels: class of each identity.
        clip_length: frames of a clip.
        flip: probability of mirroring a clip.
        antialias: how HR crops are degraded (A7).
        seed: of frames and flips.

    Attributes:
        lengths: micro-batches of each epoch.
    """

    def __init__(
        self,
        sampler: TripletSampler,
        epochs: int,
        labels: dict[int, int],
        *,
        clip_length: int,
        flip: float,
        antialias: bool,
        seed: int,
    ) -> None:
        self._sampler, self._labels = sampler, labels
        self._clip_length, self._flip, self._seed = clip_length, flip, seed
        self._degrade = lr_tensor if antialias else aliased_lr_tensor
        self.lengths = [len(sampler.epoch(number)) for number in range(epochs)]
        self._ends = np.cumsum(self.lengths)
        self._latest: tuple[int, list[list[Triplet]]] = (-1, [])

    def __len__(self) -> int:
        return sum(self.lengths)

    def triplets(self, index: int) -> list[Triplet]:
        """What micro-batch `index` consists of. One epoch is kept: all of them would fill the memory."""
        epoch = int(np.searchsorted(self._ends, index, side="right"))
        if self._latest[0] != epoch:
            self._latest = (epoch, self._sampler.epoch(epoch))
        return self._latest[1][index - int(self._ends[epoch]) + self.lengths[epoch]]

    def __getitem__(self, index: int) -> MicroBatch:
        rng = np.random.default_rng(step_seed(self._seed, "triplets", index))
        items = [self._item(triplet, rng) for triplet in self.triplets(index)]
        return MicroBatch(
            hr=torch.stack([item.hr for item in items]),
            h2l=torch.stack([item.h2l for item in items]),
            lr=torch.stack([item.lr for item in items]),
            labels=torch.tensor([item.label for item in items]),
            platform_hr=torch.tensor([item.platform_hr for item in items]),
            platform_h2l=torch.tensor([item.platform_h2l for item in items]),
            platform_lr=torch.tensor([item.platform_lr for item in items]),
            paired=torch.tensor([item.paired for item in items]),
        )

    def _item(self, triplet: Triplet, rng: np.random.Generator) -> _Item:
        # Without an HR tracklet the pair's places are taken by two more natural LR tracklets (A10); the one
        # in the HR place is resized bicubically.
        low, high = triplet.low[0], triplet.hr
        degraded = high if high is not None else triplet.low[1]
        sharp = high if high is not None else triplet.low[2]
        indices = self._indices(degraded, rng)
        pair = load_crops(degraded, indices)
        target = pair if high is not None else load_crops(sharp, self._indices(sharp, rng))
        hr, h2l = hr_tensor(target), self._degrade(pair)
        lr = lr_tensor(load_crops(low, self._indices(low, rng)))
        if rng.random() < self._flip:
            hr, h2l = flip_horizontally(hr), flip_horizontally(h2l)
        if rng.random() < self._flip:
            lr = flip_horizontally(lr)
        label = self._labels[triplet.identity]
        return _Item(hr, h2l, lr, label, sharp.platform, degraded.platform, low.platform, high is not None)

    def _indices(self, tracklet: Tracklet, rng: np.random.Generator) -> list[int]:
        return train_frame_indices(len(tracklet), self._clip_length, rng)
