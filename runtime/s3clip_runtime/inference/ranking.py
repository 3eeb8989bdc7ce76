"""Ranking metrics of re-identification, with numpy only (method.md 8.1, 8.2).

Ties are broken by gallery order (stable sort), so equal inputs give equal metrics everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.matches import MatchMeasures

BLOCK_BYTES = 1 << 28
"""Distances held at once: 671 queries against 100,000 entries, high enough for the product's full speed."""

DRAWS_AT_ONCE = 1 << 18
"""Random draws that the resampling tests hold at once: 2 MB, which stays in a processor's cache."""


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
    _check_widths(query, gallery)
    return -_unit_rows(query, "query") @ _unit_rows(gallery, "gallery").T


def distance_blocks(
    query: NDArray[np.float32], gallery: NDArray[np.float32], *, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """`cosine_distance` for some queries after the other, in bounded memory.

    One matrix product a block, so a distance may differ from `cosine_distance` in its last bit, where the
    product's rounding depends on the block's height.

    Args:
        query: float32 (Q, D). gallery: float32 (G, D).
        block_bytes: size of a block; at least one query is in it.

    Yields:
        Index of the first query and float32 (B, G), overwritten by the next block.

    Raises:
        DataError: as of `cosine_distance`, at the first block.
    """
    _check_widths(query, gallery)
    entries = _unit_rows(gallery, "gallery").T
    queries = _unit_rows(query, "query")
    height = min(max(block_bytes // max(4 * len(gallery), 1), 1), len(query))
    buffer = np.empty((height, len(gallery)), dtype=np.float32)
    for first in range(0, len(query), max(height, 1)):
        rows = queries[first : first + height]
        yield first, np.matmul(-rows, entries, out=buffer[: len(rows)])


def evaluate_ranking(
    distance: NDArray[np.floating],
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cams: ArrayLike,
    gallery_cams: ArrayLike,
    *,
    threads: int | None = None,
) -> RankingResult:
    """Rank the gallery for each query and measure it.

    The standard metrics leave out gallery entries of the query's identity and camera, and queries that
    have no other match (8.1). The challenge's trapezoid metric knows no camera rule (8.2).

    Args:
        distance: float (Q, G), smaller is nearer.
        query_ids: (Q,) and gallery_ids: (G,), numbers or names of the persons.
        query_cams: (Q,) and gallery_cams: (G,), numbers or names of the cameras.
        threads: that count; None: one a core.

    Raises:
        DataError: lengths or kinds differ, a distance is NaN, or no query has a match of another camera.
    """
    _check_distance(distance)
    queries, entries = distance.shape
    measures = MatchMeasures(
        query_ids, gallery_ids, query_cams, gallery_cams, queries=queries, entries=entries
    )
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        measures.add(0, distance, pool)
    return _result(measures, entries)


def evaluate_embeddings(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cams: ArrayLike,
    gallery_cams: ArrayLike,
    *,
    threads: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> RankingResult:
    """`evaluate_ranking` of the cosine distance without ever holding the Q x G matrix.

    Memory beside the inputs: both sides once more as unit vectors, and one block.

    Args:
        query: float32 (Q, D). gallery: float32 (G, D). They need no normalisation.
        query_ids, gallery_ids, query_cams, gallery_cams, threads: as of `evaluate_ranking`.
        block_bytes: as of `distance_blocks`.

    Raises:
        DataError: as of `cosine_distance` and `evaluate_ranking`.
    """
    _check_widths(query, gallery)
    _check_shape((len(query), len(gallery)))
    measures = MatchMeasures(
        query_ids, gallery_ids, query_cams, gallery_cams, queries=len(query), entries=len(gallery)
    )
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for first, block in distance_blocks(query, gallery, block_bytes=block_bytes):
            measures.add(first, block, pool)
    return _result(measures, len(gallery))


def _result(measures: MatchMeasures, entries: int) -> RankingResult:
    first, ap, ap_xfd = measures.first_hit_rank, measures.ap, measures.ap_xfd
    valid = first > 0
    if not valid.any():
        raise DataError(
            f"none of {len(valid)} queries has a gallery entry of its identity and another camera; "
            "check the ids and the cameras of both sides"
        )
    cmc = np.cumsum(np.bincount(first[valid] - 1, minlength=entries)) / np.count_nonzero(valid)
    return RankingResult(cmc, float(np.nanmean(ap)), float(np.nanmean(ap_xfd)), valid, first, ap, ap_xfd)


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
    values = _row(values)
    if not 0 < level < 1 or samples < 1 or seed < 0:
        raise ConfigError(
            f"a bootstrap needs 0 < level < 1, samples >= 1 and seed >= 0, got {level}, {samples} and {seed}"
        )
    rng = np.random.default_rng(seed)
    count = len(values)
    means = np.empty(samples)
    height = max(DRAWS_AT_ONCE // count, 1)
    for first in range(0, samples, height):
        part = means[first : first + height]
        part[:] = values[rng.integers(count, size=(len(part), count))].mean(axis=1)
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
    difference = _differences(a, b)
    low, high = bootstrap_interval(difference, level=level, samples=samples, seed=seed)
    return PairedDifference(float(difference.mean()), low, high)


def sign_flip_p_value(
    a: NDArray[np.float64], b: NDArray[np.float64], *, samples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided permutation test of equal means over the same queries; at least 1 / (samples + 1).

    If both models were equally good, the sign of each difference would be a coin's. The p-value is the share
    of sign patterns whose mean is at least as far from 0 as the measured one, which is counted with them.

    Args:
        a: float (n,) and b: float (n,), values of the same queries under two models.
        samples: random sign patterns, at least 1.
        seed: not negative; the same seed gives the same p-value.

    Raises:
        DataError: the shapes differ, or there is no query or a NaN.
        ConfigError: `samples` or `seed` is out of range.
    """
    difference = _differences(a, b)
    if samples < 1 or seed < 0:
        raise ConfigError(f"a permutation test needs samples >= 1 and seed >= 0, got {samples} and {seed}")
    rng = np.random.default_rng(seed)
    moved = difference[difference != 0]  # a sign does not change a zero, and Rank-1 has mostly zeros
    if not len(moved):
        return 1.0
    total = moved.sum()
    # Patterns with the measured sum must not be missed for the rounding of another order of adding.
    bound = abs(total) - 1e-12 * np.abs(moved).sum()
    height = max(DRAWS_AT_ONCE // max(len(moved), 1), 1)
    extreme = 0
    for first in range(0, samples, height):
        rows = min(height, samples - first)
        flips = np.frombuffer(rng.bytes(rows * -(-len(moved) // 8)), dtype=np.uint8).reshape(rows, -1)
        flipped = np.unpackbits(flips, axis=1, count=len(moved)) @ moved
        extreme += int(np.count_nonzero(np.abs(total - 2 * flipped) >= bound))
    return (extreme + 1) / (samples + 1)


def _differences(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.shape(a) != np.shape(b):
        raise DataError(
            f"a paired comparison needs the same queries on both sides, got shapes {np.shape(a)} and "
            f"{np.shape(b)}; evaluate both models on one protocol"
        )
    return _row(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))


def _row(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise DataError(
            f"a bootstrap needs a non-empty row of numbers without NaN, got shape {values.shape}; "
            "keep the valid queries only"
        )
    return values


def _unit_rows(embeddings: NDArray[np.float32], side: str) -> NDArray[np.float32]:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        raise DataError(
            f"{side} embeddings must be finite and not zero; {len(bad)} of {len(embeddings)} are not, the "
            f"first is row {bad[0]}; check the model's precision"
        )
    unit: NDArray[np.float32] = (embeddings / length).astype(np.float32, copy=False)
    return unit


def _check_widths(query: NDArray[np.float32], gallery: NDArray[np.float32]) -> None:
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise DataError(
            f"query and gallery embeddings must be (Q, D) and (G, D), got {query.shape} and {gallery.shape}; "
            "embed both with one model"
        )


def _check_distance(distance: NDArray[np.floating]) -> None:
    _check_shape(distance.shape)
    if np.isnan(np.min(distance)):  # a minimum with a NaN is NaN, and needs no second matrix
        raise DataError("distances must not be NaN, as a NaN would be ranked last; check the embeddings")


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"distances must be (Q, G) with both above 0, got {shape}; check both sides")
