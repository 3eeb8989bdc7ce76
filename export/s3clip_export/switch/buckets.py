"""Buckets of heights: what super-resolution changes in each, and the height that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from s3clip.datasets import Protocol, Tracklet
from s3clip.evaluation.evaluate import rank_protocol
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.evidence import HeightBucket, Interval
from s3clip_runtime.inference.ranking import paired_bootstrap

MIN_PEOPLE = 20
"""A bucket with fewer is never switched off: the bootstrap of a handful of people is too sure of itself."""

BUCKET_TRACKLETS = 40
MOST_BUCKETS = 5


@dataclass(frozen=True, slots=True)
class BothWays:
    """Every tracklet's embedding with and without super-resolution; an HR one's are the same.

    Attributes:
        lr: bool (N,).
        heights_px: float64 (N,), median crop height of the clip.
        with_sr, without_sr: float32 (N, D).
        with_ms, without_ms: float64 (N,), what a tracklet took, its share of its batch; 0 of HR ones.
        batch: int64 (N,), in which it was embedded and timed.
    """

    lr: NDArray[np.bool_]
    heights_px: NDArray[np.float64]
    with_sr: NDArray[np.float32]
    without_sr: NDArray[np.float32]
    with_ms: NDArray[np.float64]
    without_ms: NDArray[np.float64]
    batch: NDArray[np.int64]

    def up_to(self, height_px: float) -> NDArray[np.float32]:
        """float32 (N, D) under the rule that LR tracklets up to this height are super-resolved."""
        return np.where((self.lr & (self.heights_px <= height_px))[:, None], self.with_sr, self.without_sr)


@dataclass(frozen=True, slots=True)
class _Answers:
    """Per query of all protocols that has an answer, in one order for every rule.

    Attributes:
        person: int64 (Q,).
        hit, ap: float64 (Q,), 1 where the first rank is right, and the average precision.
    """

    person: NDArray[np.int64]
    hit: NDArray[np.float64]
    ap: NDArray[np.float64]


def bucket_edges(lr_heights_px: NDArray[np.float64], wanted: Sequence[float] = ()) -> list[float]:
    """Rising edges, from 0 to the tallest LR tracklet; a bucket reaches from above one to the next.

    Args:
        lr_heights_px: float64 (N,), N >= 1.
        wanted: inner edges; none: quantiles, at whole pixels.

    Raises:
        ConfigError: `wanted` does not rise from above 0 to below the tallest.
    """
    tallest = float(lr_heights_px.max())
    inner = list(wanted)
    if not inner:
        count = min(max(len(lr_heights_px) // BUCKET_TRACKLETS, 1), MOST_BUCKETS)
        quantiles = np.quantile(lr_heights_px, np.arange(1, count) / count)
        inner = sorted({float(edge) for edge in np.round(quantiles)} - {tallest})
    edges = [0.0, *inner, tallest]
    if not all(low < high for low, high in pairwise(edges)):  # so that NaN is refused too
        raise ConfigError(
            f"--buckets must rise from above 0 to below the tallest LR tracklet of {tallest:g} px, found "
            f"{','.join(f'{edge:g}' for edge in inner)}; give heights between them"
        )
    return edges


def measure_buckets(
    protocols: Sequence[Protocol], tracklets: Sequence[Tracklet], both: BothWays, edges_px: Sequence[float]
) -> tuple[HeightBucket, ...]:
    """Each bucket with the rule's height at its top against its bottom.

    Raises:
        DataError: a bucket has no LR tracklet, or none that a query asks with or for.
    """
    ranked = [_rank(protocols, tracklets, both.up_to(edge)) for edge in edges_px]
    buckets = []
    for (low, high), (without, with_sr) in zip(pairwise(edges_px), pairwise(ranked), strict=True):
        inside = both.lr & (both.heights_px > low) & (both.heights_px <= high)
        touched = _touched(protocols, {t.name for t, held in zip(tracklets, inside, strict=True) if held})
        if not touched.any():
            raise DataError(
                f"no query asks with or for one of the {inside.sum()} LR tracklets above {low:g} and up to "
                f"{high:g} px; give other --buckets"
            )
        hits = [_group_means(side.person[touched], side.hit[touched]) for side in (with_sr, without)]
        precisions = [_group_means(side.person[touched], side.ap[touched]) for side in (with_sr, without)]
        buckets.append(
            HeightBucket(
                low_px=low,
                high_px=high,
                tracklets=int(inside.sum()),
                people=len(hits[0]),
                queries=int(touched.sum()),
                rank1_with=float(hits[0].mean()),
                rank1_without=float(hits[1].mean()),
                map_with=float(precisions[0].mean()),
                map_without=float(precisions[1].mean()),
                rank1_change=_change(*hits),
                map_change=_change(*precisions),
                ms_with=float(both.with_ms[inside].mean()),
                ms_without=float(both.without_ms[inside].mean()),
                ms_change=_cost(both, inside),
            )
        )
    return tuple(buckets)


def count_queries(protocols: Sequence[Protocol], tracklets: Sequence[Tracklet], both: BothWays) -> int:
    """Queries of all protocols that have an answer."""
    return len(_rank(protocols, tracklets, both.with_sr).person)


def choose_height(buckets: Sequence[HeightBucket], min_gain: float) -> float | None:
    """The tallest height that is super-resolved: 0 for none, None for all."""
    for bucket in reversed(buckets):
        if not is_useless(bucket, min_gain):
            return None if bucket is buckets[-1] else bucket.high_px
    return 0.0


def is_useless(bucket: HeightBucket, min_gain: float) -> bool:
    """Whether super-resolution is measured to bring less mAP than it has to, which includes that it harms."""
    return bucket.people >= MIN_PEOPLE and bucket.map_change.high < min_gain


def _rank(
    protocols: Sequence[Protocol], tracklets: Sequence[Tracklet], rows: NDArray[np.float32]
) -> _Answers:
    vectors = dict(zip((t.name for t in tracklets), rows, strict=True))
    person, hit, ap = [], [], []
    for protocol in protocols:
        result = rank_protocol(protocol, vectors)
        person.append(np.array([t.identity for t in protocol.query])[result.valid])
        hit.append((result.first_hit_rank[result.valid] == 1).astype(np.float64))
        ap.append(result.ap[result.valid])
    return _Answers(np.concatenate(person), np.concatenate(hit), np.concatenate(ap))


def _touched(protocols: Sequence[Protocol], names: set[str]) -> NDArray[np.bool_]:
    """bool (Q,) over the queries of `_rank`: they, or a right answer of theirs, are among the names."""
    found = []
    for protocol in protocols:
        answers: dict[int, list[Tracklet]] = {}
        for tracklet in protocol.gallery:
            answers.setdefault(tracklet.identity, []).append(tracklet)
        for query in protocol.query:
            right = [t for t in answers.get(query.identity, ()) if t.camera != query.camera]
            if right:  # else it is not valid, and not ranked
                found.append(query.name in names or any(t.name in names for t in right))
    return np.array(found)


def _group_means(group: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each person's queries, or batch's tracklets: what resembles each other is one draw of the
    bootstrap."""
    _, rows = np.unique(group, return_inverse=True)
    means: NDArray[np.float64] = np.bincount(rows, weights=values) / np.bincount(rows)
    return means


def _cost(both: BothWays, inside: NDArray[np.bool_]) -> Interval:
    """Milliseconds that super-resolution adds: tracklets of one batch were timed together, so batches are
    drawn, and weigh alike."""
    batch = both.batch[inside]
    return _change(_group_means(batch, both.with_ms[inside]), _group_means(batch, both.without_ms[inside]))


def _change(with_sr: NDArray[np.float64], without: NDArray[np.float64]) -> Interval:
    change = paired_bootstrap(with_sr, without)
    return Interval(value=change.mean, low=change.low, high=change.high)
