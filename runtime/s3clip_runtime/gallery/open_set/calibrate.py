"""Thresholds from labelled tracklets: each pair of platforms and each bucket is measured, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.gallery.open_set.decision import (
    Bucket,
    OpenSet,
    PairCalibration,
    Refusal,
    all_heights,
    height_buckets,
)
from s3clip_runtime.gallery.open_set.estimates import (
    fnir_at,
    fpir_at,
    growth_threshold_at,
    logistic,
    people_needed,
    threshold_at,
)
from s3clip_runtime.gallery.open_set.trials import Found, Looks, draw_enrolled, search_pair
from s3clip_runtime.inference.spec import PLATFORMS, platform_id

TRIALS: Final = 20
"""Random splits into enrolled people and strangers. More of them tell little more: people are the sample."""

LEAST_ENROLLED: Final = 20
"""Enrolled people who must search, for an FNIR and a probability that mean something."""


def calibrate(
    embeddings: NDArray[np.float32],
    people: Sequence[str],
    platforms: Sequence[str],
    cameras: Sequence[str],
    heights_px: Sequence[float],
    *,
    data: str,
    fpir: float,
    seed: int,
    identities: int | None = None,
) -> OpenSet:
    """Simulate open-set identification and set every threshold that the data can tell.

    Args:
        embeddings: float32 (n, dim), rows of length 1, one a tracklet.
        people, platforms (`spec.PLATFORMS`), cameras, heights_px (`Clip.height_px`): n, of the tracklets.
        data: the data's name, for the record.
        fpir: share of searches by strangers that may match, in (0, 1).
        seed: of all chance, at least 0; equal arguments give equal thresholds.
        identities: people to enrol in each trial; None: half of them.

    Raises:
        ConfigError: fpir, seed, identities or a platform is out of range.
        DataError: lengths or vectors are wrong, or not one pair of platforms can be calibrated; it names
            what the best one lacks.
    """
    _check_target(fpir, seed)
    for platform in set(platforms):
        platform_id(platform)
    looks = Looks.of(embeddings, people, platforms, cameras, heights_px)
    count = looks.people // 2 if identities is None else identities
    if not 1 <= count < looks.people:
        raise ConfigError(
            f"people to enrol must be at least 1 and fewer than the {looks.people} of {data}, so that "
            f"some are strangers, found {count}; give more people or other --identities"
        )
    buckets = {
        bucket: np.array([bucket.holds(height) for height in looks.height_px])
        for bucket in (*height_buckets(), all_heights())
    }
    results: list[PairCalibration | Refusal] = []
    for found, query, gallery in searched(looks, count, seed):
        for bucket, inside in buckets.items():
            here = found.within(inside[found.look])
            if len(here.look):
                results.append(_measure(here, query, gallery, bucket, fpir, seed))
    pairs = tuple(result for result in results if isinstance(result, PairCalibration))
    refused = tuple(result for result in results if isinstance(result, Refusal))
    if not pairs:
        raise DataError(_nothing(data, refused))
    return OpenSet(
        fpir=fpir,
        data=data,
        created=datetime.now(UTC),
        tracklets=len(looks.vectors),
        people=looks.people,
        identities=count,
        trials=TRIALS,
        seed=seed,
        pairs=pairs,
        refused=refused,
    )


def searched(looks: Looks, identities: int, seed: int) -> list[tuple[Found, str, str]]:
    """All searches of each pair of platforms that has some, with the names of query and gallery platform."""
    enrolled = draw_enrolled(looks.people, identities, TRIALS, seed)
    return [
        (found, query, gallery)
        for query in PLATFORMS
        for gallery in PLATFORMS
        if (found := search_pair(looks, query, gallery, enrolled)) is not None
    ]


def _measure(
    found: Found, query: str, gallery: str, bucket: Bucket, fpir: float, seed: int
) -> PairCalibration | Refusal:
    enrolled, strangers = found.within(found.mated), found.within(~found.mated)
    facts: dict[str, Any] = {
        "query": query,
        "gallery": gallery,
        "bucket": bucket,
        "identities": found.identities,
        "mated": len(enrolled.look),
        "mated_people": len(np.unique(enrolled.person)),
        "non_mated": len(strangers.look),
        "non_mated_people": len(np.unique(strangers.person)),
    }
    reason = _lack(facts["non_mated_people"], facts["mated_people"], fpir)
    if reason is not None:
        return Refusal(**facts, reason=reason)
    threshold = threshold_at(strangers, fpir)
    if threshold > 1:
        return Refusal(
            **facts,
            reason="too many strangers score 1: the model cannot tell them apart, or people have two names",
        )
    odds = logistic(found)
    if odds is None:
        return Refusal(
            **facts,
            reason="higher scores must be right more often, and are not; the model cannot tell these people",
        )
    growth, measured = growth_threshold_at(strangers, fpir)
    return PairCalibration(
        **facts,
        threshold=threshold,
        growth_threshold=max(growth, threshold),
        growth_measured=measured,
        fpir=fpir_at(strangers, threshold, seed),
        fnir=fnir_at(enrolled, threshold, seed),
        slope=odds[0],
        intercept=odds[1],
    )


def _lack(strangers: int, enrolled: int, fpir: float) -> str | None:
    needed = people_needed(fpir)
    if strangers < needed:
        finest = f", or take --fpir {_finest(strangers):g} or above" if strangers > 3 else ""
        return (
            f"FPIR {fpir:g} needs tracklets of {needed} people (3 / FPIR), found {strangers}; "
            f"give {needed - strangers} more{finest}"
        )
    if enrolled < LEAST_ENROLLED:
        return (
            f"{LEAST_ENROLLED} people must have one tracklet to search and another to be found by, found "
            f"{enrolled}; give {LEAST_ENROLLED - enrolled} more"
        )
    return None


def _finest(strangers: int) -> float:
    """The smallest target of three decimals that so many people can tell."""
    thousandths = 1
    while people_needed(thousandths / 1000) > strangers:
        thousandths += 1
    return thousandths / 1000


def _nothing(data: str, refused: Sequence[Refusal]) -> str:
    if not refused:
        return f"{data}: nobody finds anybody; give data of two or more people with tracklets"
    best = max(refused, key=lambda refusal: (refusal.non_mated_people, refusal.mated_people))
    return f"{data}: no threshold can be calibrated: {best.query} to {best.gallery}: {best.reason}"


def _check_target(fpir: float, seed: int) -> None:
    if not 0 < fpir < 1:
        raise ConfigError(f"fpir must be above 0 and below 1, found {fpir:g}; 0.01 is usual")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, found {seed}; choose another")
