"""Stage 1: one learned prompt per identity against frozen, cached image features (method.md 5.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from s3clip.clips import hr_tensor, load_crops, unit_range
from s3clip.config import PromptStageSettings
from s3clip.datasets import Tracklet
from s3clip.losses import supcon
from s3clip.model import S3Clip
from s3clip.schedules import stage1_lr
from s3clip.text import PromptLearner, TextEncoder
from s3clip_runtime.inference.clips import spread_indices


@torch.no_grad()
def cache_features(model: S3Clip, tracklets: Sequence[Tracklet], *, device: str) -> Tensor:
    """`proj` features (N, out_dim) of clean, bicubic frames without adapters or platform prompts (A24)."""
    model.eval()
    rows = []
    for tracklet in tqdm(tracklets, desc="cache features", unit="tracklet", leave=False):
        crops = load_crops(tracklet, spread_indices(len(tracklet)))
        frames = unit_range(hr_tensor(crops).to(device))
        rows.append(model.features(frames.unsqueeze(0), None, adapters=False).proj[0])
    return torch.stack(rows)


def text_features(prompts: PromptLearner, text: TextEncoder, labels: Tensor) -> Tensor:
    """Text features (N, out_dim) of the identities' prompts, not normalised."""
    output: Tensor = text(prompts(labels), prompts.eos_index)
    return output


class PromptStage:
    """Contrastive learning of the prompts; text encoder and image features stay frozen."""

    name = "prompts"

    def __init__(
        self,
        prompts: PromptLearner,
        text: TextEncoder,
        features: Tensor,
        labels: Tensor,
        settings: PromptStageSettings,
        *,
        seed: int,
    ) -> None:
        self._prompts, self._text, self._features, self._labels = prompts, text, features, labels
        self._settings, self._seed = settings, seed
        self._batch = min(settings.batch, len(labels))
        self._per_epoch = len(labels) // self._batch  # the remainder is dropped (method.md 5.1)
        self.steps = settings.epochs * self._per_epoch
        text.requires_grad_(False)
        self._optimizer = torch.optim.Adam(prompts.parameters(), lr=0.0, weight_decay=settings.weight_decay)
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"prompts": self._optimizer}

    def step(self, index: int) -> dict[str, float]:
        """One batch of the epoch's permutation."""
        epoch, position = divmod(index, self._per_epoch)
        lr = stage1_lr(
            epoch + 1,
            base=self._settings.lr,
            epochs=self._settings.epochs,
            warmup=self._settings.warmup_epochs,
            warmup_start=self._settings.warmup_lr,
            floor=self._settings.min_lr,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        generator = torch.Generator().manual_seed(self._seed + epoch)
        order = torch.randperm(len(self._labels), generator=generator)
        chosen = order[position * self._batch : (position + 1) * self._batch].to(self._labels.device)
        image, labels = self._features[chosen], self._labels[chosen]
        text = text_features(self._prompts, self._text, labels)
        loss = supcon(image, text, labels, labels) + supcon(text, image, labels, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        self._optimizer.step()
        return {"loss": loss.item(), "lr": lr, "epoch": float(epoch + 1)}
