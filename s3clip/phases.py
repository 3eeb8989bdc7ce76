"""The losses of stage 2 on one micro-batch, in two phases or jointly (method.md 7.2, 7.3).

Nothing here waits for the device: losses stay tensors, so a GPU never idles between two phases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from s3clip.clips import unit_range
from s3clip.config import ReidStageSettings
from s3clip.losses import (
    CrossEntropy,
    ReidLoss,
    ReidWeights,
    pixel_loss,
    reid_loss,
    smoothed_cross_entropy,
    tdp_loss,
    temporal_loss,
)
from s3clip.models.model import IdentityHeads, S3Clip
from s3clip.models.resize import Resize
from s3clip.models.vit import Features, is_adapter_parameter
from s3clip.precision import Precision
from s3clip.smoothing import OnlineSmoothing
from s3clip.transforms import erase_tracklets
from s3clip.triplets import MicroBatch
from s3clip_runtime.inference.spec import FRAME_SIZE, SR_SIZE

FROZEN_HEAD_PARAMETERS = frozenset({"bottleneck.bias", "bottleneck_proj.bias"})
"""The necks' biases stay 0 (method.md 2)."""

CLASSIFIERS = 3
"""Logits under a cross entropy: against the texts, of `final`, of `proj`."""

Scalers = Mapping[str, torch.amp.GradScaler]


def visual_parameters(model: S3Clip, heads: IdentityHeads, *, backbone: bool) -> dict[str, nn.Parameter]:
    """What stage 2 trains beside S: adapters, platform prompts and heads (A17), or the whole encoder."""
    chosen = {n: p for n, p in model.visual.named_parameters() if backbone or is_adapter_parameter(n)}
    return chosen | {f"heads.{n}": p for n, p in heads.named_parameters() if n not in FROZEN_HEAD_PARAMETERS}


class Phases:
    """Adds the gradients of micro-batches.

    Args:
        model: its super-resolver S and its encoder I are trained in place.
        heads: trained with I.
        text: (N_id, out_dim) text features of the identities.
        smoothing: soft targets, or None for the fixed ones (A20).
        settings: variant, weights and options.
        precision: what runs in 16 bits.

    Attributes:
        sr: parameters of S that are trained; empty for baselines and a frozen S.
        visual: parameters that are trained with I, by name.
    """

    def __init__(
        self,
        model: S3Clip,
        heads: IdentityHeads,
        text: Tensor,
        smoothing: OnlineSmoothing | None,
        settings: ReidStageSettings,
        precision: Precision,
    ) -> None:
        self._model, self._heads, self._text, self._settings = model, heads, text, settings
        self._precision = precision
        self._shrink = Resize(FRAME_SIZE, SR_SIZE).to(text.device)
        self._entropies: tuple[CrossEntropy, ...] = (smoothed_cross_entropy,) * CLASSIFIERS
        if smoothing is not None:
            self._entropies = tuple(partial(smoothing, head) for head in range(CLASSIFIERS))
        self.sr = [] if settings.variant == "frozen_sr" else list(model.sr.parameters())
        self.visual = visual_parameters(model, heads, backbone=settings.train_backbone)

    def loss_names(self, *, tdp: bool) -> list[str]:
        """What `accumulate` returns, also in a process that has no micro-batch."""
        settings = self._settings
        sr = ["pixel", "temporal"] + (["tdp"] if tdp and settings.tdp_weight else [])
        return (sr if self.sr else []) + list(ReidLoss._fields)

    def accumulate(
        self, batch: MicroBatch, scale: float, rng: np.random.Generator, scalers: Scalers, *, tdp: bool = True
    ) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch, times `scale`, and return its losses, unscaled.

        Args:
            batch: on the model's device.
            scale: one over the micro-batches of the update.
            rng: for random erasing.
            scalers: loss scalers by optimizer: "sr", "visual".
            tdp: False leaves L_TDP out: its warm-up (A12).
        """
        if self._settings.variant == "joint":
            return self._joint(batch, scale, rng, scalers, tdp)
        losses = self._phase_one(batch, scale, scalers, tdp) if self.sr else {}
        return losses | self._phase_two(batch, scale, rng, scalers)

    def _phase_one(self, batch: MicroBatch, scale: float, scalers: Scalers, tdp: bool) -> dict[str, Tensor]:
        """Only S learns, on h2l, which has a target (A4); I is frozen and in eval mode (A14)."""
        self._model.train()
        self._model.visual.eval()
        self._train_only(self.sr)
        losses = self._sr_losses(batch, *self._super_resolved(batch.h2l), tdp)
        _backward(scalers["sr"], scale * torch.stack(list(losses.values())).sum())
        return _detached(losses)

    def _phase_two(
        self, batch: MicroBatch, scale: float, rng: np.random.Generator, scalers: Scalers
    ) -> dict[str, Tensor]:
        """Only I learns, on natural LR, h2l and HR; S is frozen and in eval mode."""
        self._model.train()
        self._model.sr.eval()
        self._heads.train()
        self._train_only(self.visual.values())
        with torch.no_grad():
            low = self._low(batch)[1]
        loss = self._reid_loss(torch.cat((low, unit_range(batch.hr))), batch, rng)
        _backward(scalers["visual"], scale * loss.total)
        return _detached(loss._asdict())

    def _joint(
        self, batch: MicroBatch, scale: float, rng: np.random.Generator, scalers: Scalers, tdp: bool
    ) -> dict[str, Tensor]:
        """S+I: one loss, both nets learn, natural LR reaches S through the ReID loss."""
        self._model.train()
        self._heads.train()
        self._train_only([*self.sr, *self.visual.values()])
        small, low = self._low(batch)
        reid = self._reid_loss(torch.cat((low, unit_range(batch.hr))), batch, rng)
        losses: dict[str, Tensor] = {}
        if self.sr:
            count = len(batch.lr)
            losses = self._sr_losses(batch, small[count:], low[count:], tdp)
        # One backward pass has one scale, so both nets share a scaler here.
        _backward(scalers["visual"], scale * torch.stack([*losses.values(), reid.total]).sum())
        return _detached(losses | reid._asdict())

    def _sr_losses(self, batch: MicroBatch, small: Tensor, sr: Tensor, tdp: bool) -> dict[str, Tensor]:
        """L_pixel, L_temporal and L_TDP, weighted (A6, A12); `small` is S's output, `sr` its 256x128 copy."""
        settings, hr = self._settings, unit_range(batch.hr)
        ours, true = (small, self._shrink(hr)) if settings.pixel_space == "sr" else (sr, hr)
        losses = {
            "pixel": settings.pixel_weight * pixel_loss(ours, true, batch.paired),
            "temporal": settings.temporal_weight * temporal_loss(ours, true, batch.paired),
        }
        if tdp and settings.tdp_weight:
            with torch.no_grad():
                target = self._perceived(hr, batch.platform_hr)
            seen = self._perceived(sr, batch.platform_h2l)
            losses["tdp"] = settings.tdp_weight * tdp_loss(seen, target, batch.paired)
        return losses

    def _perceived(self, frames: Tensor, platform: Tensor) -> Tensor:
        """What L_TDP compares (A12): (B, ...)."""
        feature = self._settings.tdp_feature
        with self._precision.encoder():
            if feature == "final" or feature == "proj":
                features = self._model.features(frames, platform)
                return features.final if feature == "final" else features.proj
            tokens = self._model.token_features(frames, platform).final
            tokens = tokens.reshape(*frames.shape[:2], *tokens.shape[1:])
            return tokens[:, :, 0] if feature == "frame" else tokens

    def _reid_loss(self, frames: Tensor, batch: MicroBatch, rng: np.random.Generator) -> ReidLoss:
        """L_ReID of natural LR, h2l and HR clips, in this order; erasing comes right before I (A22)."""
        platforms = [batch.platform_lr, batch.platform_h2l, batch.platform_hr]
        if self._model.direct:
            del platforms[1]
        platform, labels = torch.cat(platforms), batch.labels.repeat(len(platforms))
        frames = erase_tracklets(frames, self._settings.erasing, self._model.mean, rng)
        with self._precision.encoder():
            features = self._model.features(frames, platform)
        features = Features(*(feature.float() for feature in features))
        return reid_loss(features, self._heads(features), self._text, labels, ReidWeights(), self._entropies)

    def _low(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Natural LR and h2l as `_super_resolved`; without a super-resolver natural LR as it comes."""
        if self._model.direct:
            frames = unit_range(batch.lr)
            return frames, frames
        return self._super_resolved(torch.cat((batch.lr, batch.h2l)))

    def _super_resolved(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, T, 3, 64, 32) to float32 (B, T, 3, 128, 64) and (B, T, 3, 256, 128)."""
        with self._precision.super_resolver():
            small = self._model.super_resolve(unit_range(crops).flatten(0, 1))
        small = small.float().reshape(*crops.shape[:2], *small.shape[1:])
        return small, self._model.up(small)

    def _train_only(self, parameters: Iterable[nn.Parameter]) -> None:
        self._model.requires_grad_(False)
        self._heads.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)


def _backward(scaler: torch.amp.GradScaler, loss: Tensor) -> None:
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing


def _detached(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in losses.items()}
