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
from s3clip.models.model import S3Clip
from s3clip.models.text import PromptLearner, TextEncoder
from s3clip.parallel import World
from s3clip.precision import Precision
from s3clip.schedules import stage1_lr
from s3clip_runtime.inference.clips import spread_indices


@torch.no_grad()
def cache_features(
    model: S3Clip, tracklets: Sequence[Tracklet], precision: Precision, world: World
) -> Tensor:
    """`proj` features (N, out_dim) of clean, bicubic frames without adapters or platform prompts (A24).

    Each process computes its share; all get all.
    """
    model.eval()
    device = precision.device
    rows = torch.zeros(len(tracklets), model.visual.config.out_dim, device=device)
    own = range(world.rank, len(tracklets), world.size)
    for row in tqdm(own, desc="cache features", unit="tracklet", leave=False, disable=not world.main):
        crops = load_crops(tracklets[row], spread_indices(len(tracklets[row])))
        frames = unit_range(hr_tensor(crops).to(device))
        with precision.encoder():
            rows[row] = model.features(frames.unsqueeze(0), None, adapters=False).proj[0]
    world.sum([rows])
    return rows


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
        self.scalers: Mapping[str, torch.amp.GradScaler] = {}

    def describe(self, index: int) -> str:
        """The classes that step `index` draws, for error messages."""
        return f"classes {', '.join(map(str, self._labels[self._chosen(index)].tolist()))}"

    def step(self, index: int) -> dict[str, float]:
        """One batch of the epoch's permutation."""
        epoch = index // self._per_epoch
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
        chosen = self._chosen(index)
        image, labels = self._features[chosen], self._labels[chosen]
        text = text_features(self._prompts, self._text, labels)
        loss = supcon(image, text, labels, labels) + supcon(text, image, labels, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        self._optimizer.step()
        return {"loss": loss.item(), "lr": lr, "epoch": float(epoch + 1)}

    def _chosen(self, index: int) -> Tensor:
        """Rows of step `index`: a piece of its epoch's permutation."""
        epoch, position = divmod(index, self._per_epoch)
        generator = torch.Generator().manual_seed(self._seed + epoch)
        order = torch.randperm(len(self._labels), generator=generator)
        return order[position * self._batch : (position + 1) * self._batch].to(self._labels.device)
