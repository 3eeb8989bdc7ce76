"""Which tracklets the ranges come from: few, far apart from each other, of every camera, and never those
that the result is measured on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.tracklets import Tracklet

MIN_POOL: Final = 2
"""One tracklet has no spread."""

_SPLIT_TRIES: Final = 32
_ROUNDING: Final = 1e-6
"""Spread, relative to the values, below which float32 numbers count as constant."""


def split(tracklets: Sequence[Tracklet], seed: int) -> tuple[list[Tracklet], list[Tracklet]]:
    """The calibration pool and the tracklets that are held out, about one half each.

    All tracklets of one identity are on one side; one without identity stands for itself. Both sides have
    tracklets of every camera where a way is found: one after the other, people go to the side that has fewer
    tracklets of their cameras. Of `_SPLIT_TRIES` orders the one is taken that leaves fewest cameras on one
    side only, and of those the one nearest to halves. The same tracklets and seed give the same split, in
    whatever order they come.

    Returns:
        Two lists, neither empty, sorted by name.

    Raises:
        DataError: there are not two people, or tracklets without identity, to be told apart.
    """
    people = _people(tracklets)
    if len(people) < 2:
        raise DataError(
            "calibration data must show two people or more, because whole identities are held out to "
            f"measure on; found {_what(tracklets)}; add tracklets of others"
        )
    cameras = {tracklet.camera for tracklet in tracklets}

    def cost(sides: list[list[Tracklet]]) -> tuple[int, int]:
        seen = [{tracklet.camera for tracklet in side} for side in sides]
        return sum(len(cameras - some) for some in seen), abs(len(sides[0]) - len(sides[1]))

    rng = np.random.default_rng(seed)
    tries = (_dealt([people[i] for i in rng.permutation(len(people))]) for _ in range(_SPLIT_TRIES))
    pool, held_out = (sorted(side, key=lambda tracklet: tracklet.name) for side in min(tries, key=cost))
    return pool, held_out


def choose(
    embeddings: NDArray[np.float32],
    statistics: NDArray[np.float32],
    groups: Sequence[str],
    count: int,
    seed: int,
) -> list[int]:
    """Rows that cover all of N tracklets: greedy k-centre, farthest point first, balanced over groups.

    The first row is drawn by the seed. Each next one is, among the rows of the groups that have been served
    least and have any left, the one that is farthest from all chosen rows; equally far, the first. So the
    choice of 8 is the beginning of the choice of 32.

    Distance is Euclidean over embeddings and statistics side by side. Each statistic is standardised, so
    that units do not matter; then each of the two parts is centred and scaled to a total variance of 1. Two
    random rows are thus as far apart by one part as by the other, however many columns a part has and however
    near to each other a network puts all people. Equal weight, because neither part can stand for the other:
    early layers follow light and blur, late ones follow what is shown. A column or part that is the same
    for all adds nothing.

    Args:
        embeddings: (N, D), rows of length 1.
        statistics: (N, F), of `statistics.describe`.
        groups: N names to balance over, such as cameras.
        count: rows to choose, 1 to N.
        seed: of the first one.

    Returns:
        `count` different rows in the order of choice.

    Raises:
        DataError: there are fewer than `count` rows, or a number is not finite.
    """
    _check_count(len(groups), count)
    if not (np.isfinite(embeddings).all() and np.isfinite(statistics).all()):
        raise DataError("tracklets are chosen by finite numbers, found NaN or infinity; check the crops")
    points = np.hstack([_scaled(embeddings), _scaled(_standardised(statistics))])
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    left = np.bincount(group)
    served = np.zeros_like(left)
    free = np.ones(len(points), bool)
    nearest = np.full(len(points), np.inf, np.float32)  # squared distance to the nearest chosen row
    chosen = [int(np.random.default_rng(seed).integers(len(points)))]
    while True:
        newest = chosen[-1]
        free[newest] = False
        left[group[newest]] -= 1
        served[group[newest]] += 1
        if len(chosen) >= count:
            return chosen
        away = points - points[newest]
        nearest = np.minimum(nearest, np.einsum("nd,nd->n", away, away))
        least = served[left > 0].min()
        chosen.append(int(np.argmax(np.where(free & (served[group] == least), nearest, -1))))


def check_pool(tracklets: Sequence[Tracklet], count: int) -> None:
    """See that ranges from `count` of these tracklets can hold for others.

    Raises:
        DataError: there are fewer than `MIN_POOL` or `count` tracklets, or all are of one camera.
    """
    if len(tracklets) < MIN_POOL:
        raise DataError(
            f"a calibration pool must have {MIN_POOL} tracklets or more, found {len(tracklets)}; "
            "add recordings of several people and cameras"
        )
    _check_count(len(tracklets), count)
    cameras = {tracklet.camera for tracklet in tracklets}
    if len(cameras) == 1:
        raise DataError(
            f"calibration tracklets must be of two cameras or more, found only {cameras.pop()}: ranges from "
            "one camera's light and distance do not hold for another; add tracklets of others, in folders "
            "named CAMERA_NAME"
        )


def _check_count(found: int, count: int) -> None:
    if found < count:
        raise DataError(
            f"{count} calibration tracklets were asked for, found {found} to choose from; add recordings or "
            f"ask for at most {found}"
        )


def _people(tracklets: Iterable[Tracklet]) -> list[list[Tracklet]]:
    """Tracklets by identity, each one without identity by itself; ordered by names."""
    people: defaultdict[tuple[str, str], list[Tracklet]] = defaultdict(list)
    for tracklet in sorted(tracklets, key=lambda tracklet: tracklet.name):
        known = tracklet.identity is not None
        people["identity" if known else "", tracklet.identity or tracklet.name].append(tracklet)
    return list(people.values())


def _what(tracklets: Sequence[Tracklet]) -> str:
    if not tracklets:
        return "no tracklet"
    identity = tracklets[0].identity
    if identity is None:
        return "one tracklet"
    return f"only identity {identity!r} (the folder below the platform's)"


def _dealt(people: Iterable[Sequence[Tracklet]]) -> list[list[Tracklet]]:
    """Two sides: each person goes to that with fewer tracklets of the person's cameras, then of all."""
    sides: list[list[Tracklet]] = [[], []]
    counts: list[Counter[str]] = [Counter(), Counter()]
    for person in people:
        cameras = {tracklet.camera for tracklet in person}
        costs = [
            (sum(count[camera] for camera in cameras), len(side))
            for side, count in zip(sides, counts, strict=True)
        ]
        taker = costs.index(min(costs))
        sides[taker].extend(person)
        counts[taker].update(tracklet.camera for tracklet in person)
    return sides


def _standardised(columns: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each column with mean 0 and deviation 1, or 0 where it is constant."""
    centred = columns - columns.mean(axis=0, dtype=np.float64)
    deviation = np.sqrt(np.square(centred).mean(axis=0))
    constant = deviation <= _ROUNDING * np.abs(columns).max(axis=0)
    return np.asarray(np.where(constant, 0, centred / np.where(constant, 1, deviation)))


def _scaled(part: NDArray[np.floating]) -> NDArray[np.float32]:
    """A part of the space, centred, with a total variance of 1, or 0 where it is constant."""
    centred = part - part.mean(axis=0, dtype=np.float64)
    deviation = float(np.sqrt(np.square(centred).sum() / len(part)))
    if deviation <= _ROUNDING * np.abs(part).max(initial=0):
        return np.zeros(part.shape, np.float32)
    return np.asarray(centred / deviation, np.float32)
