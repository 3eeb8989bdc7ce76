"""Triplets of tracklets to the tensors of a micro-batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from s3clip.batching import Triplet, TripletSampler
from s3clip.clips import U8, aliased_lr_batch, load_crops
from s3clip.datasets import Tracklet
from s3clip.loop import step_seed
from s3clip.schedules import train_frame_indices
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.spec import FRAME_SIZE, LR_SIZE


class MicroBatch(NamedTuple):
    """B triplets, uint8 pixels, frames in temporal order (A23); flips are shared inside an HR pair (A22).

    Attributes:
        hr: (B, T, 3, 256, 128).
        h2l: (B, T, 3, 64, 32), the same frames degraded (A7); T = 0 for a model without a super-resolver.
        lr: (B, T, 3, 64, 32), another tracklet of the identity, natural LR where there is one; 256x128 for
            a model without a super-resolver.
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


class TripletDataset(Dataset[MicroBatch]):
    """Micro-batches by their number in the run; each depends on (seed, number) only, so resuming is exact.

    Args:
        sampler: chooses the triplets of an epoch.
        epochs: of the run.
        labels: class of each identity.
        clip_length: frames of a clip.
        flip: probability of mirroring a clip.
        antialias: how HR crops are degraded (A7).
        direct: for a model without a super-resolver.
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
        direct: bool,
        seed: int,
    ) -> None:
        self._direct = direct
        self._sampler, self._labels = sampler, labels
        self._clip_length, self._flip, self._seed = clip_length, flip, seed
        self._degrade = lr_batch if antialias else aliased_lr_batch
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
        triplets = self.triplets(index)
        shape = (len(triplets), self._clip_length)
        hr = np.empty((*shape, *FRAME_SIZE, 3), np.uint8)
        h2l = np.empty((len(triplets), 0 if self._direct else self._clip_length, *LR_SIZE, 3), np.uint8)
        lr = np.empty((*shape, *(FRAME_SIZE if self._direct else LR_SIZE), 3), np.uint8)
        platforms = [
            self._fill(triplet, rng, *rows) for triplet, *rows in zip(triplets, hr, h2l, lr, strict=True)
        ]
        platform_hr, platform_h2l, platform_lr = torch.tensor(platforms).unbind(1)
        return MicroBatch(
            hr=_channels_first(hr),
            h2l=_channels_first(h2l),
            lr=_channels_first(lr),
            labels=torch.tensor([self._labels[triplet.identity] for triplet in triplets]),
            platform_hr=platform_hr,
            platform_h2l=platform_h2l,
            platform_lr=platform_lr,
            paired=torch.tensor([triplet.hr is not None for triplet in triplets]),
        )

    def _fill(self, triplet: Triplet, rng: np.random.Generator, hr: U8, h2l: U8, lr: U8) -> list[int]:
        """Write a triplet's clips (T, h, w, 3) and return the platforms of HR, h2l and natural LR."""
        # Without an HR tracklet the pair's places are taken by two more natural LR tracklets (A10); the one
        # in the HR place is resized bicubically.
        low, high = triplet.low[0], triplet.hr
        degraded = high if high is not None else triplet.low[1]
        sharp = high if high is not None else triplet.low[2]
        flip_pair, flip_low = rng.random() < self._flip, rng.random() < self._flip
        pair = self._crops(degraded, rng, flip_pair)
        hr_batch(pair if high is not None else self._crops(sharp, rng, flip_pair), out=hr)
        natural = self._crops(low, rng, flip_low)
        if self._direct:
            hr_batch(natural, out=lr)
        else:
            self._degrade(pair, out=h2l)
            lr_batch(natural, out=lr)
        return [sharp.platform, degraded.platform, low.platform]

    def _crops(self, tracklet: Tracklet, rng: np.random.Generator, flip: bool) -> list[U8]:
        """Native crops of a random clip, mirrored while they are small."""
        crops = load_crops(tracklet, train_frame_indices(len(tracklet), self._clip_length, rng))
        return [crop[:, ::-1] for crop in crops] if flip else crops


def _channels_first(pixels: U8) -> Tensor:
    """(B, T, h, w, 3) as (B, T, 3, h, w): a view, the pixels stay as they were decoded."""
    return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)
