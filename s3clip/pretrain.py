"""A stand-in for public weights that cannot be had: L1 super-resolution, then single-frame identities.

Not part of the paper, which starts from SwinIR-S (DIV2K) and CLIP. Used by the synthetic configuration only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from s3clip.clips import hr_tensor, load_crops, lr_tensor, unit_range
from s3clip.config import PretrainSettings
from s3clip.datasets import Tracklet
from s3clip.loop import step_seed
from s3clip.losses import smoothed_cross_entropy, supcon
from s3clip.models.model import IdentityHeads, S3Clip
from s3clip.models.vit import is_adapter_parameter
from s3clip.transforms import jitter_colours, shift_pictures
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.preprocess import resize_bicubic
from s3clip_runtime.inference.spec import SR_SIZE

HEAD_RATE = 10.0
"""The classifiers start at N(0, .001) (method.md 2); at the backbone's rate they grow too slowly."""


TEMPERATURE = 0.1
"""Of the contrast on unit features. Without it they share one large mean: all cosines stay near 1."""


def cosine_lr(base: float, index: int, steps: int, warmup: int = 20) -> float:
    """Linear warm-up, then a half cosine to zero."""
    if index < warmup:
        return base * (index + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (index - warmup) / max(steps - warmup, 1)))


class SuperResolutionPretraining:
    """L1 between S(64x32) and the antialiased 128x64 picture of random HR crops."""

    name = "pretrain_sr"

    def __init__(
        self,
        model: S3Clip,
        tracklets: Sequence[Tracklet],
        settings: PretrainSettings,
        *,
        seed: int,
        device: str,
    ) -> None:
        self.steps = settings.sr_steps
        self._model, self._settings, self._seed, self._device = model, settings, seed, device
        self._tracklets = [t for t in tracklets if t.hr]
        if not self._tracklets:
            raise DataError("pretrain_sr needs HR tracklets (128x64 or more); the training split has none")
        optimizer = torch.optim.Adam(model.sr.parameters(), lr=settings.sr_lr)
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"sr": optimizer}
        self.scalers: Mapping[str, torch.amp.GradScaler] = {}
        self._optimizer = optimizer

    def describe(self, index: int) -> str:
        """What step `index` draws, for error messages."""
        return f"{self._settings.sr_batch} random HR crops"

    def step(self, index: int) -> dict[str, float]:
        """One batch of random crops, randomly mirrored."""
        rng = np.random.default_rng(step_seed(self._seed, self.name, index))
        crops = []
        for chosen in rng.integers(0, len(self._tracklets), self._settings.sr_batch):
            tracklet = self._tracklets[chosen]
            crop = load_crops(tracklet, [int(rng.integers(0, len(tracklet)))])[0]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        inputs = unit_range(lr_tensor(crops).to(self._device))
        pictures = np.stack([resize_bicubic(crop, SR_SIZE) for crop in crops])
        target = unit_range(torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self._device))
        self._model.train()
        _set_lr(self._optimizer, cosine_lr(self._settings.sr_lr, index, self.steps))
        loss = nn.functional.l1_loss(self._model.super_resolve(inputs), target)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        self._optimizer.step()
        return {"l1": loss.item(), "lr": self._optimizer.param_groups[0]["lr"]}


class VisualPretraining:
    """Identity classification and contrast on single frames, HR and bicubic LR, without adapters."""

    name = "pretrain_visual"

    def __init__(
        self,
        model: S3Clip,
        heads: IdentityHeads,
        tracklets: Sequence[Tracklet],
        labels: Mapping[int, int],
        settings: PretrainSettings,
        *,
        seed: int,
        device: str,
    ) -> None:
        self.steps = settings.visual_steps
        self._model, self._heads, self._settings, self._seed = model, heads, settings, seed
        self._device = device
        self._by_label: dict[int, list[Tracklet]] = defaultdict(list)
        for tracklet in tracklets:
            self._by_label[labels[tracklet.identity]].append(tracklet)
        backbone = [p for name, p in model.visual.named_parameters() if not is_adapter_parameter(name)]
        groups = [
            {"params": backbone, "rate": 1.0},
            {"params": [p for p in heads.parameters() if p.requires_grad], "rate": HEAD_RATE},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=settings.visual_lr, weight_decay=0.02, betas=(0.9, 0.98)
        )
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"visual": self._optimizer}
        self.scalers: Mapping[str, torch.amp.GradScaler] = {}

    def describe(self, index: int) -> str:
        """What step `index` draws, for error messages."""
        return f"{self._settings.visual_identities} random identities"

    def step(self, index: int) -> dict[str, float]:
        """One batch of identities, each with frames of several of its tracklets."""
        frames, labels = self._batch(np.random.default_rng(step_seed(self._seed, self.name, index)))
        self._model.train()
        self._heads.train()
        _set_lr(self._optimizer, cosine_lr(self._settings.visual_lr, index, self.steps))
        features = self._model.features(frames.unsqueeze(1), None, adapters=False)
        scores = self._heads(features)
        identity = smoothed_cross_entropy(scores.final, labels) + smoothed_cross_entropy(scores.proj, labels)
        contrast = _contrast(features.final, labels) + _contrast(features.proj, labels)
        loss = identity + contrast
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # as above
        self._optimizer.step()
        accuracy = (scores.final.argmax(1) == labels).float().mean().item()
        return {
            "loss": loss.item(),
            "identity": identity.item(),
            "contrast": contrast.item(),
            "accuracy": accuracy,
        }

    def _batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        count = min(self._settings.visual_identities, len(self._by_label))
        labels = rng.choice(sorted(self._by_label), count, replace=False)
        crops, rows = [], []
        for label in labels:
            tracklets = self._by_label[int(label)]
            order = rng.permutation(len(tracklets))
            for i in range(self._settings.visual_frames):
                tracklet = tracklets[order[i % len(order)]]
                crop = load_crops(tracklet, [int(rng.integers(0, len(tracklet)))])[0]
                crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
                rows.append(int(label))
        frames = shift_pictures(unit_range(hr_tensor(crops).to(self._device)), rng)
        return jitter_colours(frames, rng), torch.tensor(rows, device=self._device)


def _contrast(features: Tensor, labels: Tensor) -> Tensor:
    unit = nn.functional.normalize(features, dim=1)
    return supcon(unit / TEMPERATURE, unit, labels, labels)


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
