"""Which tracklets meet in a micro-batch: P identities with K triplets each (decisions A4, A5, A10).

A triplet is three clips of one identity: an HR tracklet, the same degraded to LR (h2l), and a natural
LR tracklet. Training reads the pictures; this module only chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3clip.datasets import Tracklet
from s3clip_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Triplet:
    """Three clips of one identity.

    Attributes:
        hr: shown twice, as HR and as its own h2l. None if the identity has no HR tracklet: then the
            triplet has no target for L_SR and must be masked out of it.
        low: tracklets that are only shown at LR size: one beside an `hr`, three without. Normally natural
            LR; an identity without LR has another of its HR tracklets here, to be degraded (A10).
    """

    hr: Tracklet | None
    low: tuple[Tracklet, ...]

    @property
    def identity(self) -> int:
        """The data set's number of the person."""
        return self.low[0].identity


class TripletSampler:
    """Draws the batches of an epoch."""

    def __init__(
        self, tracklets: Sequence[Tracklet], identities_per_batch: int, triplets_per_identity: int, seed: int
    ) -> None:
        """Sort the tracklets by identity and resolution.

        Args:
            tracklets: the training split, in any order.
            identities_per_batch: P, at least 2: batch-hard mining needs negatives.
            triplets_per_identity: K, at least 1.
            seed: not negative.

        Raises:
            ConfigError: P, K or the seed is out of range, or there are fewer than P identities.
        """
        self._by_identity: dict[int, list[Tracklet]] = {}
        for tracklet in sorted(tracklets, key=lambda tracklet: (tracklet.identity, tracklet.name)):
            self._by_identity.setdefault(tracklet.identity, []).append(tracklet)
        _check_settings(identities_per_batch, triplets_per_identity, seed, len(self._by_identity))
        self._identities_per_batch = identities_per_batch
        self._triplets_per_identity = triplets_per_identity
        self._seed = seed

    def epoch(self, n: int) -> list[list[Triplet]]:
        """The batches of epoch `n` >= 0, each P * K triplets with those of one group side by side.

        The result depends on the tracklets, the seed and `n` only. An identity gives
        ceil(max(|HR|, |LR|) / K) groups of K triplets, in which each of its tracklets occurs. Groups that
        do not fill a batch, or that only one identity has left, are dropped; which ones they are changes
        with `n`. The identities of a batch are distinct whenever the whole epoch can be cut so.
        """
        rng = np.random.default_rng([self._seed, n])
        groups = [self._groups(tracklets, rng) for tracklets in self._by_identity.values()]
        counts = np.array([len(own) for own in groups])
        batches = _choose_identities(counts, self._identities_per_batch, rng)
        rng.shuffle(batches)
        return [[triplet for identity in batch for triplet in groups[identity].pop()] for batch in batches]

    def _groups(self, tracklets: list[Tracklet], rng: np.random.Generator) -> list[list[Triplet]]:
        """All triplets of one identity for an epoch, shuffled, in groups of K."""
        size = self._triplets_per_identity
        hr = [tracklet for tracklet in tracklets if tracklet.hr]
        lr = [tracklet for tracklet in tracklets if not tracklet.hr]
        count = -(-max(len(hr), len(lr)) // size) * size
        if hr and lr:
            pairs = zip(_fill(hr, count, rng), _fill(lr, count, rng), strict=True)
            triplets = [Triplet(sharp, (low,)) for sharp, low in pairs]
        elif hr:
            triplets = [Triplet(sharp, _others(hr, sharp, 1, rng)) for sharp in _fill(hr, count, rng)]
        else:
            triplets = [Triplet(None, (low, *_others(lr, low, 2, rng))) for low in _fill(lr, count, rng)]
        return [triplets[start : start + size] for start in range(0, count, size)]


def _check_settings(
    identities_per_batch: int, triplets_per_identity: int, seed: int, identities: int
) -> None:
    if identities_per_batch < 2:
        raise ConfigError(
            f"identities_per_batch is {identities_per_batch}; mining needs negatives, so use at least 2"
        )
    if triplets_per_identity < 1:
        raise ConfigError(f"triplets_per_identity is {triplets_per_identity}; use at least 1")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; use 0 or a larger number")
    if identities < identities_per_batch:
        raise ConfigError(
            f"identities_per_batch is {identities_per_batch}, but the training split has {identities} "
            "identities; lower it or add data"
        )


def _fill(items: list[Tracklet], count: int, rng: np.random.Generator) -> list[Tracklet]:
    """`count` items in random order: each once, the rest drawn with replacement. `count` >= len(items)."""
    extra = rng.integers(len(items), size=count - len(items))
    order = rng.permutation(np.concatenate([np.arange(len(items)), extra]))
    return [items[i] for i in order]


def _others(
    items: list[Tracklet], chosen: Tracklet, count: int, rng: np.random.Generator
) -> tuple[Tracklet, ...]:
    """`count` items that are not `chosen` and, if there are enough, not each other."""
    pool = [item for item in items if item is not chosen] or [chosen]
    return tuple(pool[i] for i in rng.choice(len(pool), size=count, replace=len(pool) < count))


def _choose_identities(
    counts: NDArray[np.int64], per_batch: int, rng: np.random.Generator
) -> list[list[int]]:
    """Cut groups into batches; `counts` (identities,) says how many groups each identity has.

    An identity with as many groups as batches are left goes first: only so can all batches stay distinct.
    The others are drawn with the chance of their remaining groups (weighted sampling without
    replacement by the keys u^(1/w) of Efraimidis and Spirakis, 2006).
    """
    remaining = counts.copy()
    batches: list[list[int]] = []
    while remaining.sum() >= per_batch and np.count_nonzero(remaining) > 1:
        alive = np.flatnonzero(remaining)
        left = remaining[alive]
        urgent = left >= remaining.sum() // per_batch
        key = rng.random(len(alive)) ** (1 / left) + np.where(urgent, left, 0)
        batch = [int(i) for i in alive[np.argsort(-key)[:per_batch]]]
        remaining[batch] -= 1
        while len(batch) < per_batch:  # too few identities are left: repeat those with most groups
            fullest = int(np.argmax(remaining))
            remaining[fullest] -= 1
            batch.append(fullest)
        batches.append(batch)
    return batches
