"""Stage 2: super-resolution and ReID, alternating in two phases or jointly (method.md 7.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from s3clip.config import ReidStageSettings
from s3clip.loop import step_seed
from s3clip.parallel import World
from s3clip.phases import Phases
from s3clip.precision import SMALLEST_SCALE, Precision
from s3clip.schedules import stage2_factor
from s3clip.smoothing import OnlineSmoothing
from s3clip.triplets import MicroBatch, TripletDataset
from s3clip.watch import SuperResolutionWatch
from s3clip_runtime.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class _Update:
    """One step of both optimizers: its epoch, from 1, and the numbers of its micro-batches."""

    epoch: int
    first: int
    count: int
    ends_epoch: bool


class ReidStage:
    """One step is `accumulation` micro-batches of P identities x K triplets and one update of each net.

    With several processes each takes every size-th micro-batch of an update.
    """

    name = "reid"

    def __init__(
        self,
        phases: Phases,
        dataset: TripletDataset,
        settings: ReidStageSettings,
        precision: Precision,
        *,
        smoothing: OnlineSmoothing | None,
        watch: SuperResolutionWatch | None,
        world: World,
        seed: int,
        workers: int,
    ) -> None:
        if world.size > settings.accumulation:
            raise ConfigError(
                f"{world.size} processes share the {settings.accumulation} micro-batches of an update "
                f"(reid.accumulation); start fewer, or raise it and the rates"
            )
        self._phases, self._dataset, self._settings, self._precision = phases, dataset, settings, precision
        self._smoothing, self._watch, self._world = smoothing, watch, world
        self._seed, self._workers = seed, workers
        self._updates = _cut(dataset.lengths, settings.accumulation)
        self.steps = len(self._updates)
        self.optimizers, self.scalers = _optimizers(phases, settings, precision)
        self._stream: Iterator[MicroBatch] | None = None

    def describe(self, index: int) -> str:
        """The identities that step `index` draws, for error messages."""
        update = self._updates[index]
        numbers = range(update.first, update.first + update.count)
        found = {triplet.identity for number in numbers for triplet in self._dataset.triplets(number)}
        return f"identities {', '.join(map(str, sorted(found)))}"

    def step(self, index: int) -> dict[str, float]:
        """One update of both networks."""
        update = self._updates[index]
        self._set_rates(update.epoch)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        losses = self._losses(index, update)
        metrics = {key: value / update.count for key, value in losses.items()} | self._apply()
        if update.ends_epoch:
            metrics |= self._end_epoch(update.epoch)
        return {**metrics, "epoch": float(update.epoch)}

    def _losses(self, index: int, update: _Update) -> dict[str, float]:
        """Gradients of the update's micro-batches; the losses' sums over all processes."""
        tdp = update.epoch > self._settings.tdp_warmup * self._settings.epochs
        names = self._phases.loss_names(tdp=tdp)
        total = torch.zeros(len(names), device=self._precision.device)
        for number in range(update.first + self._world.rank, update.first + update.count, self._world.size):
            batch = self._next_batch(index).to(self._precision.device)
            torch.manual_seed(step_seed(self._seed, "drop_path", number))
            rng = np.random.default_rng(step_seed(self._seed, "erasing", number))
            found = self._phases.accumulate(batch, 1.0 / update.count, rng, self.scalers, tdp=tdp)
            total += torch.stack([found[name].float() for name in names])
        self._world.sum([total])
        return dict(zip(names, total.tolist(), strict=True))

    def _apply(self) -> dict[str, float]:
        """Sum the gradients over the processes and step; the norms of the gradients."""
        metrics: dict[str, float] = {}
        for name, optimizer in self.optimizers.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._world.sum_gradients(parameters)
            scaler = self.scalers[name]
            scaler.unscale_(optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            scaler.step(optimizer)
            metrics |= _gradient_metrics(name, scaler, norm)
        for scaler in {id(scaler): scaler for scaler in self.scalers.values()}.values():
            scaler.update()
        return metrics

    def _end_epoch(self, epoch: int) -> dict[str, float]:
        if self._smoothing is not None:
            self._smoothing.end_epoch(self._world)
        if self._watch is None or not self._world.main:
            return {}
        return self._watch.look(epoch)

    def _set_rates(self, epoch: int) -> None:
        settings = self._settings
        factor = stage2_factor(
            epoch,
            warmup=settings.warmup_epochs,
            warmup_factor=settings.warmup_factor,
            milestones=settings.milestones,
            gamma=settings.gamma,
        )
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    def _next_batch(self, index: int) -> MicroBatch:
        """The next of this process' micro-batches; the loader starts with those of update `index`."""
        if self._stream is None:
            order = [
                number
                for update in self._updates[index:]
                for number in range(
                    update.first + self._world.rank, update.first + update.count, self._world.size
                )
            ]
            loader: DataLoader[MicroBatch] = DataLoader(
                self._dataset,
                batch_size=None,
                sampler=order,
                num_workers=self._workers,
                pin_memory=self._precision.device.startswith("cuda"),
            )
            self._stream = iter(loader)
        try:
            return next(self._stream)
        except DataError as error:
            # A worker process adds its traceback in front; the sentence for the user is the last line.
            raise DataError(str(error).splitlines()[-1].partition("DataError: ")[2] or str(error)) from error


def _cut(lengths: list[int], accumulation: int) -> list[_Update]:
    """Cut each epoch's micro-batches into updates; the last one of an epoch may be smaller."""
    updates = []
    first = 0
    for number, length in enumerate(lengths):
        for start in range(0, length, accumulation):
            count = min(accumulation, length - start)
            updates.append(_Update(number + 1, first + start, count, start + count == length))
        first += length
    return updates


def _gradient_metrics(name: str, scaler: torch.amp.GradScaler, norm: Tensor) -> dict[str, float]:
    """The norm, which must be finite; but under a scaler an overflow only leaves out one step."""
    if not scaler.is_enabled():
        return {f"{name}_grad_norm": norm.item()}
    scale = {f"{name}_scale": scaler.get_scale()}
    if not torch.isfinite(norm) and scaler.get_scale() > SMALLEST_SCALE:
        return {**scale, f"{name}_skipped": 1.0}
    return {**scale, f"{name}_grad_norm": norm.item()}


def _optimizers(
    phases: Phases, settings: ReidStageSettings, precision: Precision
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, torch.amp.GradScaler]]:
    """Adam for each net with a scaler of its own; biases of I: twice the rate, less decay (5.2, A15)."""
    biases = [p for name, p in phases.visual.items() if "bias" in name]
    others = [p for name, p in phases.visual.items() if "bias" not in name]
    base, decay = settings.visual_lr, settings.weight_decay
    groups = [
        {"params": others, "weight_decay": decay, "base_lr": base},
        {
            "params": biases,
            "weight_decay": settings.bias_weight_decay,
            "base_lr": base * settings.bias_lr_factor,
        },
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {"visual": torch.optim.Adam(groups)}
    scalers = {"visual": precision.scaler()}
    if phases.sr:
        group = {"params": phases.sr, "weight_decay": decay, "base_lr": settings.sr_lr}
        optimizers["sr"] = torch.optim.Adam([group])
        scalers["sr"] = scalers["visual"] if settings.variant == "joint" else precision.scaler()
    return optimizers, scalers
