"""Stage 2: super-resolution and ReID, alternating in two phases or jointly (method.md 7.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from s3clip.batching import TripletSampler
from s3clip.clips import unit_range
from s3clip.config import ReidStageSettings
from s3clip.datasets import Tracklet
from s3clip.loop import step_seed
from s3clip.losses import ReidLoss, ReidWeights, pixel_loss, reid_loss, tdp_loss, temporal_loss
from s3clip.model import IdentityHeads, S3Clip
from s3clip.schedules import stage2_factor
from s3clip.transforms import erase_tracklets
from s3clip.triplets import MicroBatch, TripletDataset
from s3clip.vit import is_adapter_parameter

FROZEN_HEAD_PARAMETERS = frozenset({"bottleneck.bias", "bottleneck_proj.bias"})
"""The necks' biases stay 0 (method.md 2)."""


def visual_parameters(model: S3Clip, heads: IdentityHeads, *, backbone: bool) -> dict[str, nn.Parameter]:
    """What stage 2 trains beside S: adapters, platform prompts and heads (A17), or the whole encoder."""
    chosen = {n: p for n, p in model.visual.named_parameters() if backbone or is_adapter_parameter(n)}
    return chosen | {f"heads.{n}": p for n, p in heads.named_parameters() if n not in FROZEN_HEAD_PARAMETERS}


def _visual_groups(
    parameters: Mapping[str, nn.Parameter], settings: ReidStageSettings
) -> list[dict[str, object]]:
    """Two groups: biases get twice the rate and a smaller decay (method.md 5.2, A15)."""
    biases = [p for name, p in parameters.items() if "bias" in name]
    others = [p for name, p in parameters.items() if "bias" not in name]
    return [
        {"params": others, "weight_decay": settings.weight_decay, "rate": 1.0},
        {"params": biases, "weight_decay": settings.bias_weight_decay, "rate": settings.bias_lr_factor},
    ]


class ReidStage:
    """One step is `accumulation` micro-batches of P identities x K triplets and one update of each net."""

    name = "reid"

    def __init__(
        self,
        model: S3Clip,
        heads: IdentityHeads,
        text: Tensor,
        tracklets: Sequence[Tracklet],
        labels: dict[int, int],
        settings: ReidStageSettings,
        *,
        seed: int,
        device: str,
        workers: int,
    ) -> None:
        self._model, self._heads, self._text = model, heads, text
        self._settings, self._seed, self._device, self._workers = settings, seed, device, workers
        sampler = TripletSampler(tracklets, settings.identities, settings.triplets, seed)
        epochs = [sampler.epoch(number) for number in range(settings.epochs)]
        self._updates = [
            (number + 1, min(settings.accumulation, len(batches) - start))
            for number, batches in enumerate(epochs)
            for start in range(0, len(batches), settings.accumulation)
        ]
        self.steps = len(self._updates)
        self._dataset = TripletDataset(
            [batch for batches in epochs for batch in batches],
            labels,
            clip_length=settings.clip_length,
            flip=settings.flip,
            seed=seed,
        )
        self._sr = list(model.sr.parameters())
        self._visual = visual_parameters(model, heads, backbone=settings.train_backbone)
        optimizers = {
            "visual": torch.optim.Adam(_visual_groups(self._visual, settings), lr=settings.visual_lr)
        }
        if self._sr:
            optimizers["sr"] = torch.optim.Adam(
                self._sr, lr=settings.sr_lr, weight_decay=settings.weight_decay
            )
        self.optimizers: Mapping[str, torch.optim.Optimizer] = optimizers
        self._stream: Iterator[MicroBatch] | None = None

    def step(self, index: int) -> dict[str, float]:
        """One update of both networks."""
        epoch, count = self._updates[index]
        self._set_rates(epoch)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        rng = np.random.default_rng(step_seed(self._seed, "erasing", index))
        parts: list[dict[str, float]] = []
        for batch in self._micro_batches(index, count):
            parts.append(self.accumulate(batch.to(self._device), 1.0 / count, rng))
        for optimizer in self.optimizers.values():
            optimizer.step()
        means = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        return {**means, "epoch": float(epoch)}

    def accumulate(self, batch: MicroBatch, scale: float, rng: np.random.Generator) -> dict[str, float]:
        """Add the gradients of one micro-batch, times `scale`, and return its losses."""
        if self._settings.variant == "joint":
            return self._joint(batch, scale, rng)
        sr_losses = self._phase_one(batch, scale) if self._sr else {}
        return sr_losses | self._phase_two(batch, scale, rng)

    def _phase_one(self, batch: MicroBatch, scale: float) -> dict[str, float]:
        """Only S learns, on h2l, which has a target (A4); I is frozen and in eval mode (A14)."""
        self._model.train()
        self._model.visual.eval()
        self._train_only(self._sr)
        hr = unit_range(batch.hr)
        losses = self._sr_losses(hr, self._super_resolved(batch.h2l), batch)
        total = sum(losses.values(), torch.zeros((), device=hr.device))
        (scale * total).backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        return {key: value.item() for key, value in losses.items()}

    def _phase_two(self, batch: MicroBatch, scale: float, rng: np.random.Generator) -> dict[str, float]:
        """Only I learns, on natural LR, h2l and HR; S is frozen and in eval mode."""
        self._model.train()
        self._model.sr.eval()
        self._heads.train()
        self._train_only(self._visual.values())
        with torch.no_grad():
            low = self._super_resolved(torch.cat((batch.lr, batch.h2l)))
        loss = self._reid_loss(torch.cat((low, unit_range(batch.hr))), batch, rng)
        (scale * loss.total).backward()  # type: ignore[no-untyped-call]  # as above
        return {key: value.item() for key, value in loss._asdict().items()}

    def _joint(self, batch: MicroBatch, scale: float, rng: np.random.Generator) -> dict[str, float]:
        """S+I: one loss, both nets learn, natural LR reaches S through the ReID loss."""
        self._model.train()
        self._heads.train()
        self._train_only([*self._sr, *self._visual.values()])
        hr = unit_range(batch.hr)
        low = self._super_resolved(torch.cat((batch.lr, batch.h2l)))
        reid = self._reid_loss(torch.cat((low, hr)), batch, rng)
        losses = self._sr_losses(hr, low[len(batch.lr) :], batch) if self._sr else {}
        total = sum(losses.values(), reid.total)
        (scale * total).backward()  # type: ignore[no-untyped-call]  # as above
        return {key: value.item() for key, value in (losses | reid._asdict()).items()}

    def _sr_losses(self, hr: Tensor, sr: Tensor, batch: MicroBatch) -> dict[str, Tensor]:
        """L_pixel, L_TDP and L_temporal, weighted, at 256x128 (A6, A12)."""
        with torch.no_grad():
            target = self._model.features(hr, batch.platform_hr).final
        seen = self._model.features(sr, batch.platform_h2l).final
        return {
            "pixel": self._settings.pixel_weight * pixel_loss(sr, hr, batch.paired),
            "tdp": self._settings.tdp_weight * tdp_loss(seen, target, batch.paired),
            "temporal": self._settings.temporal_weight * temporal_loss(sr, hr, batch.paired),
        }

    def _reid_loss(self, frames: Tensor, batch: MicroBatch, rng: np.random.Generator) -> ReidLoss:
        """L_ReID of natural LR, h2l and HR clips, in this order; erasing comes right before I (A22)."""
        labels = batch.labels.repeat(3)
        platform = torch.cat((batch.platform_lr, batch.platform_h2l, batch.platform_hr))
        frames = erase_tracklets(frames, self._settings.erasing, self._model.mean, rng)
        features = self._model.features(frames, platform)
        return reid_loss(features, self._heads(features), self._text, labels, ReidWeights())

    def _super_resolved(self, crops: Tensor) -> Tensor:
        """uint8 (B, T, 3, 64, 32) to float (B, T, 3, 256, 128)."""
        frames = self._model.enhance(unit_range(crops).flatten(0, 1))
        return frames.reshape(*crops.shape[:2], *frames.shape[1:])

    def _train_only(self, parameters: Iterable[nn.Parameter]) -> None:
        self._model.requires_grad_(False)
        self._heads.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)

    def _set_rates(self, epoch: int) -> None:
        settings = self._settings
        factor = stage2_factor(
            epoch,
            warmup=settings.warmup_epochs,
            warmup_factor=settings.warmup_factor,
            milestones=settings.milestones,
            gamma=settings.gamma,
        )
        for group in self.optimizers["visual"].param_groups:
            group["lr"] = settings.visual_lr * factor * group["rate"]
        if self._sr:
            for group in self.optimizers["sr"].param_groups:
                group["lr"] = settings.sr_lr * factor

    def _micro_batches(self, index: int, count: int) -> Iterator[MicroBatch]:
        if self._stream is None:
            first = sum(size for _, size in self._updates[:index])
            order = range(first, len(self._dataset))
            loader: DataLoader[MicroBatch] = DataLoader(
                self._dataset, batch_size=None, sampler=order, num_workers=self._workers
            )
            self._stream = iter(loader)
        return islice(self._stream, count)
