"""The loop that every training stage shares: seeded steps, metrics, checkpoints, resume."""

from __future__ import annotations

import math
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from s3clip.checkpoint import RunFolder
from s3clip.parallel import World
from s3clip_runtime.errors import S3ClipError

LOG_EVERY_S = 60.0
"""Between two lines of progress where no terminal shows a bar, as in a scheduler's log."""


class Stage(Protocol):
    """One stage of training. A step must depend on its index, the modules and the optimizers only."""

    name: str
    steps: int

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By the names that checkpoints use."""
        ...

    @property
    def scalers(self) -> Mapping[str, torch.amp.GradScaler]:
        """Loss scalers by the names of their optimizers; empty without any."""
        ...

    def describe(self, index: int) -> str:
        """What step `index` learns from, for error messages."""
        ...

    def step(self, index: int) -> dict[str, float]:
        """Do step `index` (from 0) and return what to log."""
        ...


class Interrupted(S3ClipError):
    """The run was asked to stop; its checkpoint is written."""


class DivergedError(S3ClipError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


def run_stage(
    stage: Stage,
    run: RunFolder,
    modules: Mapping[str, nn.Module],
    world: World,
    *,
    start: int,
    seed: int,
    checkpoint_every_s: float,
    stop: threading.Event,
) -> None:
    """Do the steps from `start` on and leave a checkpoint at the end; the first process writes.

    Every step seeds the generators from (seed, stage, step): so a resumed run draws the same numbers.

    Raises:
        Interrupted: `stop` was set in a process; a checkpoint was written first.
        DivergedError: a metric is NaN or infinite; nothing is written.
        SinkError: the disk is full; the last checkpoint is kept.
    """
    saved_at = time.monotonic()
    progress = tqdm(
        range(start, stage.steps),
        desc=stage.name,
        unit="step",
        initial=start,
        total=stage.steps,
        disable=not world.main,
        mininterval=0.1 if sys.stderr.isatty() else LOG_EVERY_S,
    )
    for index in progress:
        torch.manual_seed(step_seed(seed, stage.name, index))
        metrics = stage.step(index)
        bad = {key: value for key, value in metrics.items() if not math.isfinite(value)}
        if bad:
            raise DivergedError(
                f"stage {stage.name}, step {index}: {bad} is not finite ({stage.describe(index)}); "
                f"{run.path} keeps its last good checkpoint; lower the learning rate or check these pictures"
            )
        shown = {key: f"{value:.3g}" for key, value in list(metrics.items())[:4]}
        progress.set_postfix(shown, refresh=False)
        stopping = world.any(stop.is_set())
        if world.main:
            run.log({"stage": stage.name, "step": index, **metrics})
            if stopping or time.monotonic() - saved_at > checkpoint_every_s:
                run.save(stage.name, index + 1, modules, stage.optimizers, stage.scalers)
                saved_at = time.monotonic()
        if stopping:
            raise Interrupted(
                f"stopped after step {index + 1} of stage {stage.name}; the same command resumes"
            )
    if world.main:
        run.save(stage.name, stage.steps, modules, stage.optimizers, stage.scalers)


def step_seed(seed: int, name: str, index: int) -> int:
    """A 64-bit seed that depends on all three and on nothing else."""
    words = np.random.SeedSequence([seed, zlib.crc32(name.encode()), index]).generate_state(1, np.uint64)
    return int(words[0]) & (2**63 - 1)
