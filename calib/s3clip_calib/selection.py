"""Which tracklets give the ranges, and which others settings are chosen and proven by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_calib.candidates import TARGETS
from s3clip_calib.choose import check_pool, choose, split
from s3clip_calib.samples import Plain, Sample, embeddings
from s3clip_calib.statistics import describe
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.inference.spec import PLATFORMS
from s3clip_runtime.inference.tracklets import Tracklet, read_clip

LEAST_COUNT: Final = 8
"""Calibration tracklets; fewer gave ranges that later clips passed."""

LEAST_HELD: Final = 4
"""Tracklets to choose methods by, and as many to prove the choice on."""

POOL_FACTOR: Final = 2
"""So many times the wanted tracklets are embedded to choose from: 1 to 2 s each at full size."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be made, and from how much.

    Attributes:
        targets: of `candidates.TARGETS`; None: all that the bundle and this machine allow.
        count: calibration tracklets.
        held: tracklets that methods are chosen by, and as many that the choice is proven on, at most.
        seed: of every choice.
    """

    targets: tuple[Target, ...] | None = None
    count: int = 32
    held: int = 16
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: too few tracklets, or a target that is none of calibration's.
        """
        if self.count < LEAST_COUNT:
            raise ConfigError(
                f"--tracklets {self.count}: must be at least {LEAST_COUNT}; ranges need examples"
            )
        if self.held < LEAST_HELD:
            raise ConfigError(
                f"--held {self.held}: must be at least {LEAST_HELD}; a ranking needs neighbours"
            )
        for target in self.targets or ():
            if target not in TARGETS:
                raise ConfigError(
                    f"target {target} is not made by calibration; use {', '.join(map(str, TARGETS))}"
                )


@dataclass(frozen=True, slots=True)
class Chosen:
    """Clips by their use; no person is in two of them."""

    calibration: Sequence[Sample]
    tune: Sequence[Sample]
    held: Sequence[Sample]


def choose_clips(plain: Plain, tracklets: Sequence[Tracklet], wanted: Wanted) -> Chosen:
    """Calibration tracklets by k-centre, and people apart from them to choose and to prove by."""
    pool, others = split(tracklets, wanted.seed)
    check_pool(pool, wanted.count)
    tune, held = split(others, wanted.seed)
    for name, part in (("choose methods by", tune), ("prove them on", held)):
        if len(part) < LEAST_HELD:
            raise DataError(
                f"{len(tracklets)} tracklets leave {len(part)} to {name}, must be at least {LEAST_HELD}; "
                "add tracklets of other people"
            )
    statistics = np.stack([describe(read_clip(tracklet)) for tracklet in pool])
    few = picked(
        np.zeros((len(pool), 1), np.float32), statistics, pool, POOL_FACTOR * wanted.count, wanted.seed
    )
    seen = plain.samples([pool[i] for i in few], "embed pool")
    order = picked(embeddings(seen), statistics[few], [s.tracklet for s in seen], wanted.count, wanted.seed)
    return Chosen(
        [seen[i] for i in order],
        plain.samples(some_people(tune, wanted.held, wanted.seed), "embed tune"),
        plain.samples(some_people(held, wanted.held, wanted.seed), "embed held out"),
    )


def picked(
    vectors: NDArray[np.float32],
    statistics: NDArray[np.float32],
    tracklets: Sequence[Tracklet],
    count: int,
    seed: int,
) -> list[int]:
    """Places of `count` tracklets, or of all if they are fewer, balanced over platforms and cameras."""
    groups = [f"{PLATFORMS[tracklet.platform]} {tracklet.camera}" for tracklet in tracklets]
    return choose(vectors, statistics, groups, min(count, len(tracklets)), seed)


def some_people(tracklets: Sequence[Tracklet], most: int, seed: int) -> list[Tracklet]:
    """At most so many, of whole identities where that leaves enough: so there is something to find."""
    people: dict[str, list[Tracklet]] = {}
    for tracklet in tracklets:
        people.setdefault(tracklet.identity or tracklet.name, []).append(tracklet)
    groups = list(people.values())
    taken: list[Tracklet] = []
    for place in np.random.default_rng(seed).permutation(len(groups)):
        if len(taken) + len(groups[place]) <= most:
            taken += groups[place]
    return taken if len(taken) >= LEAST_HELD else list(tracklets[:most])
