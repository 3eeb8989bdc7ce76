"""Looks at people whose cosines are known: a person is an axis, and a look leans towards some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.open_set.decision import OpenSet, PairCalibration, all_heights
from s3clip_runtime.gallery.records import Clock, Seen, Sighting, Space
from s3clip_runtime.inference.evidence import Interval

SPACE = Space("ab" * 32, 128)
THRESHOLD, GROWTH = 0.6, 0.75
LIKELY = 0.5
"""Score at which the calibration of `made_open_set` gives the probability one half."""

PICTURES = (b"packed crops", True)


def leaning(cosines: Mapping[int, float], rest: int = 127) -> NDArray[np.float32]:
    """A unit vector with these cosines to the axes; what is missing to length 1 points along `rest`."""
    vector = np.zeros(SPACE.dim)
    for axis, cosine in cosines.items():
        vector[axis] = cosine
    vector[rest] += np.sqrt(max(1 - float(vector @ vector), 0.0))
    return vector.astype(np.float32)


def look(
    vector: NDArray[np.float32],
    track: str = "1",
    *,
    camera: str = "gate",
    platform: str = "ground",
    run: str = "run",
    part: int = 0,
    times_s: tuple[float, float] | None = None,
    clock: Clock = "camera",
    quality: float = 0.9,
    final: bool = True,
) -> Seen:
    """One look. Without times each track has its own: nobody is in two of them at once."""
    first_s, last_s = times_s or (1000.0 * int(track) + 10 * part, 1000.0 * int(track) + 10 * part + 9)
    return Seen(
        vector, camera, platform, 150.0, quality, run, f"{camera}-{track}-{part}", f"{camera}-{track}",
        clock, first_s, last_s, final, lambda: PICTURES,
    )  # fmt: skip


def made_open_set(pairs: Sequence[tuple[str, str, float]] = (("ground", "ground", THRESHOLD),)) -> OpenSet:
    """A calibration of these (platform of the query, of the prototype, threshold)."""
    nil = Interval(value=0.01, low=0.0, high=0.02)
    made = [
        PairCalibration(
            query=query, gallery=gallery, bucket=all_heights(), identities=50, mated=1000, mated_people=50,
            non_mated=1000, non_mated_people=50, threshold=threshold, growth_threshold=max(threshold, GROWTH),
            growth_measured=True, fpir=nil, fnir=nil, slope=20.0, intercept=-20 * LIKELY,
        )
        for query, gallery, threshold in pairs
    ]  # fmt: skip
    return OpenSet(
        fpir=0.01, data="made", created=datetime(2026, 1, 1, tzinfo=UTC), tracklets=100, people=100,
        identities=50, trials=10, seed=1, pairs=tuple(made), refused=(),
    )  # fmt: skip


def opened(address: str | Path | None, actor: str = "test") -> Gallery:
    return Gallery.open(address, SPACE, actor=actor)


def enrol(gallery: Gallery, name: str, axis: int, platform: str = "ground") -> None:
    gallery.enrol(name, leaning({axis: 1.0})[None], platform=platform, source="test")


def sightings(gallery: Gallery, name: str) -> list[Sighting]:
    """All sightings of a person, read from the rows."""
    rows = gallery.database.rows(
        "SELECT identity, camera, platform, tracklet, run, track, clock, first_s, last_s, told_s, score "
        "FROM sighting WHERE identity = (SELECT id FROM identity WHERE name = ?) ORDER BY id",
        name,
    )
    return [Sighting(*row) for row in rows]


def count(gallery: Gallery, table: str) -> int:
    return int(gallery.database.rows(f"SELECT count(*) FROM {table}")[0][0])
