"""Ranking metrics of re-identification, with numpy only (method.md 8.1, 8.2).

Ties are broken by gallery order (stable sort), so equal inputs give equal metrics everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3clip_runtime.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class RankingResult:
    """Metrics of one evaluation. All are shares in [0, 1]; ranks count from 1.

    Attributes:
        cmc: float64 (G,), cmc[k - 1] is the share of valid queries with a match at rank <= k.
        map: mean of `ap` over the valid queries.
        map_xfd: the VReID-XFD challenge's mean of `ap_xfd`, over queries with any match.
        valid: bool (Q,), whether a match of another camera exists; the others do not count.
        first_hit_rank: int64 (Q,), rank of the first match; 0 if not valid.
        ap: float64 (Q,), average precision; NaN if not valid.
        ap_xfd: float64 (Q,), trapezoid average precision without the camera rule; NaN without a match.
    """

    cmc: NDArray[np.float64]
    map: float
    map_xfd: float
    valid: NDArray[np.bool_]
    first_hit_rank: NDArray[np.int64]
    ap: NDArray[np.float64]
    ap_xfd: NDArray[np.float64]


class PairedDifference(NamedTuple):
    """Mean of a - b with the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float


def cosine_distance(query: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.float32]:
    """Negative cosine of all pairs, in [-1, 1]; the inputs need no normalisation.

    Args:
        query: float32 (Q, D). gallery: float32 (G, D).

    Returns:
        float32 (Q, G).

    Raises:
        DataError: the widths differ, or an embedding is zero or not finite.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise DataError(
            f"query and gallery embeddings must be (Q, D) and (G, D), got {query.shape} and {gallery.shape}; "
            "embed both with one model"
        )
    return -(_unit_rows(query, "query") @ _unit_rows(gallery, "gallery").T)


def evaluate_ranking(
    distance: NDArray[np.floating],
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cams: ArrayLike,
    gallery_cams: ArrayLike,
) -> RankingResult:
    """Rank the gallery for each query and measure it.

    The standard metrics leave out gallery entries of the query's identity and camera, and queries that
    have no other match (8.1). The challenge's trapezoid metric knows no camera rule (8.2).

    Args:
        distance: float (Q, G), smaller is nearer.
        query_ids: (Q,) and gallery_ids: (G,), numbers or names of the persons.
        query_cams: (Q,) and gallery_cams: (G,), numbers or names of the cameras.

    Raises:
        DataError: lengths or kinds differ, a distance is NaN, or no query has a match of another camera.
    """
    _check_distance(distance)
    queries, entries = distance.shape
    ids, other_ids = _labels(query_ids, gallery_ids, queries, entries, "ids")
    cams, other_cams = _labels(query_cams, gallery_cams, queries, entries, "cams")
    first_hit_rank = np.zeros(queries, dtype=np.int64)
    ap = np.full(queries, np.nan)
    ap_xfd = np.full(queries, np.nan)
    for i in range(queries):
        order = np.argsort(distance[i], kind="stable")
        hit = other_ids[order] == ids[i]
        if hit.any():
            ap_xfd[i] = _trapezoid_precision(np.flatnonzero(hit))
        own_camera = hit & (other_cams[order] == cams[i])
        rank = np.flatnonzero(hit[~own_camera])
        if len(rank):
            first_hit_rank[i] = rank[0] + 1
            ap[i] = _average_precision(rank)
    valid = first_hit_rank > 0
    if not valid.any():
        raise DataError(
            f"none of {queries} queries has a gallery entry of its identity and another camera; "
            "check the ids and the cameras of both sides"
        )
    hits_at = np.bincount(first_hit_rank[valid] - 1, minlength=entries)
    cmc = np.cumsum(hits_at) / np.count_nonzero(valid)
    return RankingResult(
        cmc, float(np.nanmean(ap)), float(np.nanmean(ap_xfd)), valid, first_hit_rank, ap, ap_xfd
    )


def bootstrap_interval(
    values: NDArray[np.float64], *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries.

    Queries are drawn independently; those of one person resemble each other, so the interval is rather
    too narrow than too wide where a person has many queries.

    Args:
        values: float (n,), one value a query, such as `ap[valid]` or `first_hit_rank[valid] == 1`.
        level: share of the bootstrap means inside the interval, between 0 and 1.
        samples: number of resamplings, at least 1.
        seed: not negative; the same seed gives the same interval.

    Raises:
        DataError: `values` is empty or has a NaN.
        ConfigError: `level`, `samples` or `seed` is out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise DataError(
            f"a bootstrap needs a non-empty row of numbers without NaN, got shape {values.shape}; "
            "keep the valid queries only"
        )
    if not 0 < level < 1 or samples < 1 or seed < 0:
        raise ConfigError(
            f"a bootstrap needs 0 < level < 1, samples >= 1 and seed >= 0, got {level}, {samples} and {seed}"
        )
    rng = np.random.default_rng(seed)
    count = len(values)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: NDArray[np.float64], b: NDArray[np.float64], *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> PairedDifference:
    """Mean of a - b over the same queries, with its bootstrap interval; 0 outside it is a real difference.

    Args:
        a: float (n,) and b: float (n,), values of the same queries under two models.
        level, samples, seed: as of `bootstrap_interval`.

    Raises:
        DataError: the shapes differ, or as of `bootstrap_interval`.
        ConfigError: as of `bootstrap_interval`.
    """
    if np.shape(a) != np.shape(b):
        raise DataError(
            f"a paired comparison needs the same queries on both sides, got shapes {np.shape(a)} and "
            f"{np.shape(b)}; evaluate both models on one protocol"
        )
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    low, high = bootstrap_interval(difference, level=level, samples=samples, seed=seed)
    return PairedDifference(float(difference.mean()), low, high)


def _average_precision(rank: NDArray[np.int64]) -> float:
    """Mean of hit number / rank; `rank` holds the 0-based ranks of all matches."""
    return float(np.mean(np.arange(1, len(rank) + 1) / (rank + 1)))


def _trapezoid_precision(rank: NDArray[np.int64]) -> float:
    """The old Oxford form: precision averaged between just before and at each match (method.md 8.2)."""
    number = np.arange(len(rank))
    before = np.where(rank == 0, 1.0, number / np.maximum(rank, 1))
    return float(np.mean(((number + 1) / (rank + 1) + before) / 2))


def _unit_rows(embeddings: NDArray[np.float32], side: str) -> NDArray[np.float32]:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        raise DataError(
            f"{side} embeddings must be finite and not zero; {len(bad)} of {len(embeddings)} are not, the "
            f"first is row {bad[0]}; check the model's precision"
        )
    unit: NDArray[np.float32] = (embeddings / length).astype(np.float32)
    return unit


def _check_distance(distance: NDArray[np.floating]) -> None:
    if distance.ndim != 2 or 0 in distance.shape:
        raise DataError(f"distances must be (Q, G) with both above 0, got {distance.shape}; check both sides")
    if np.isnan(distance).any():
        raise DataError("distances must not be NaN, as a NaN would be ranked last; check the embeddings")


def _labels(
    query: ArrayLike, gallery: ArrayLike, queries: int, entries: int, what: str
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Both sides' labels as arrays of the lengths that the distances demand."""
    mine, theirs = np.asarray(query), np.asarray(gallery)
    if mine.shape != (queries,) or theirs.shape != (entries,):
        raise DataError(
            f"query and gallery {what} must have shapes ({queries},) and ({entries},) to fit the distances, "
            f"got {mine.shape} and {theirs.shape}"
        )
    if mine.dtype.kind != theirs.dtype.kind:
        raise DataError(
            f"query and gallery {what} must be of one kind, got {mine.dtype} and {theirs.dtype}; "
            "use numbers or names on both sides"
        )
    return mine, theirs
