"""Learning rates of both stages and the random choice of training frames, as pure functions.

Epochs count from 1, and a rate holds for the whole epoch (method.md 5.1, 5.2; decision A16).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from s3clip_runtime.errors import ConfigError, DataError


def stage1_lr(
    epoch: int,
    *,
    base: float = 3.5e-4,
    warmup: int = 5,
    warmup_start: float = 1e-5,
    floor: float = 1e-6,
    epochs: int = 120,
) -> float:
    """Prompt learning: a linear warm-up for epochs below `warmup`, then a cosine from `base` to `floor`.

    The cosine runs over all epochs; it is not shifted by the warm-up (method.md 5.1).

    Raises:
        ConfigError: `epoch` is not in 1..`epochs`.
    """
    if not 1 <= epoch <= epochs:
        raise ConfigError(f"epoch {epoch} is outside the schedule; epochs count from 1 to {epochs}")
    if epoch < warmup:
        return warmup_start + epoch * (base - warmup_start) / warmup
    return floor + (base - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def stage2_factor(
    epoch: int,
    *,
    warmup: int = 10,
    warmup_factor: float = 0.1,
    milestones: Sequence[int] = (60, 90),
    gamma: float = 0.1,
) -> float:
    """Multiplier of every stage-2 learning rate, the encoder's and the super-resolver's.

    Rises linearly below epoch `warmup`: the first epoch has 0.19, not 0.1, by default (A16).
    `gamma` is applied from each milestone on, that epoch included.

    Raises:
        ConfigError: `epoch` is below 1.
    """
    if epoch < 1:
        raise ConfigError(f"epoch {epoch} is outside the schedule; epochs count from 1")
    decay = gamma ** sum(epoch >= milestone for milestone in milestones)
    if epoch >= warmup:
        return decay
    progress = epoch / warmup
    return decay * (warmup_factor * (1 - progress) + progress)


def train_frame_indices(count: int, length: int, rng: np.random.Generator) -> list[int]:
    """One random frame of each of `length` equal blocks, in temporal order (method.md 5.3, A23).

    Blocks have floor(count / length) frames; the last one also takes the tail. Tracklets shorter than
    `length` repeat their last frame. For evaluation see `clips.spread_indices`.

    Raises:
        DataError: the tracklet has no frames.
    """
    if count < 1:
        raise DataError(
            f"a tracklet needs at least one frame, got {count}; drop it when reading the data set"
        )
    if count < length:
        return [min(i, count - 1) for i in range(length)]
    block = count // length
    ends = [*range(block, length * block, block), count]
    return [int(rng.integers(i * block, end)) for i, end in enumerate(ends)]
