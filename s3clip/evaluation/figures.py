"""The figures of an evaluation: shares in percent with bootstrap intervals, also by the query's height."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from s3clip.datasets import Tracklet
from s3clip_runtime.inference.ranking import RankingResult, bootstrap_interval

RANKS = (1, 5, 10)

HEIGHT_EDGES = (0.0, 16.0, 32.0, 64.0, 128.0, math.inf)
"""Edges of the height buckets in native pixels, the lower one inside: 128 is where HR begins (A8)."""

CMC_RANKS = 50
"""Ranks of the CMC curve that are kept."""


class Metric(TypedDict):
    """A figure in percent and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class HeightResult(TypedDict):
    """Figures of the queries of one height bucket, in native pixels; None where there is no query."""

    low: float
    high: float | None
    queries: int
    rank1: Metric | None
    map: Metric | None


class ProtocolResult(TypedDict):
    """What one protocol measured. `cmc` is in percent, from rank 1 on."""

    queries: int
    gallery: int
    rank1: Metric
    rank5: Metric
    rank10: Metric
    map: Metric
    map_xfd: float
    heights: list[HeightResult]
    cmc: list[float]


class Means(TypedDict):
    """A figure over all protocols: their mean, and the mean weighted by their queries (A28)."""

    mean: float
    weighted: float


class Overall(TypedDict):
    """Both means of what the paper's tables report."""

    rank1: Means
    map: Means
    map_xfd: Means


def heights_of(tracklets: Sequence[Tracklet]) -> NDArray[np.float64]:
    """Median native frame height of each tracklet in pixels, float64 (N,)."""
    return np.array([np.median([height for height, _ in t.sizes]) for t in tracklets], dtype=np.float64)


def height_buckets(heights: NDArray[np.float64]) -> list[tuple[float, float, NDArray[np.bool_]]]:
    """Low edge, high edge and membership bool (N,) of every bucket."""
    return [(low, high, (low <= heights) & (heights < high)) for low, high in pairwise(HEIGHT_EDGES)]


def protocol_result(queries: Sequence[Tracklet], gallery: int, ranking: RankingResult) -> ProtocolResult:
    """Figures over the valid queries of a ranking; `gallery` is its number of entries."""
    valid = ranking.valid
    first, ap = ranking.first_hit_rank[valid], ranking.ap[valid]
    rank1, rank5, rank10 = (_metric(first <= rank) for rank in RANKS)
    heights = height_buckets(heights_of(queries)[valid])
    return ProtocolResult(
        queries=int(valid.sum()),
        gallery=gallery,
        rank1=rank1,
        rank5=rank5,
        rank10=rank10,
        map=_metric(ap),
        map_xfd=100 * float(ranking.map_xfd),
        heights=[_height_result(low, high, first[inside], ap[inside]) for low, high, inside in heights],
        cmc=[100 * float(share) for share in ranking.cmc[:CMC_RANKS]],
    )


def _height_result(
    low: float, high: float, first: NDArray[np.int64], ap: NDArray[np.float64]
) -> HeightResult:
    return HeightResult(
        low=low,
        high=None if math.isinf(high) else high,  # JSON has no infinity
        queries=len(ap),
        rank1=_metric(first == 1) if len(ap) else None,
        map=_metric(ap) if len(ap) else None,
    )


def _metric(values: NDArray[np.float64] | NDArray[np.bool_]) -> Metric:
    shares = values.astype(np.float64)
    low, high = bootstrap_interval(shares)
    return Metric(value=100 * float(shares.mean()), low=100 * low, high=100 * high)


def overall(results: Mapping[str, ProtocolResult]) -> Overall:
    """Both means over the protocols; at least one."""
    rows = list(results.values())
    weights = [row["queries"] for row in rows]
    return Overall(
        rank1=_means([row["rank1"]["value"] for row in rows], weights),
        map=_means([row["map"]["value"] for row in rows], weights),
        map_xfd=_means([row["map_xfd"] for row in rows], weights),
    )


def _means(values: list[float], weights: list[int]) -> Means:
    return Means(mean=float(np.mean(values)), weighted=float(np.average(values, weights=weights)))


def bucket_name(low: float, high: float | None) -> str:
    """Such as "16-32 px", or "128 px and more"."""
    return f"{low:.0f} px and more" if high is None or math.isinf(high) else f"{low:.0f}-{high:.0f} px"


def results_table(
    results: Mapping[str, ProtocolResult], extra: Mapping[str, ProtocolResult] | None = None
) -> str:
    """A plain table: one row a protocol, intervals in brackets, both overall means (A28).

    Args:
        results: the protocols that the overall means are of.
        extra: further rows that are not in them.
    """
    rows = {**results, **(extra or {})}
    wide = max(20, *(len(name) + 2 for name in rows))
    lines = [
        f"{'protocol':<{wide}}{'queries':>8}"
        f"{'Rank-1':>22}{'Rank-5':>22}{'Rank-10':>22}{'mAP':>22}{'mAP-xfd':>9}"
    ]
    for name, row in rows.items():
        cells = "".join(
            f"{_cell(metric):>22}" for metric in (row["rank1"], row["rank5"], row["rank10"], row["map"])
        )
        lines.append(f"{name:<{wide}}{row['queries']:>8}{cells}{row['map_xfd']:>9.1f}")
    means = overall(results)["map"]
    lines.append(
        f"overall mAP: {means['mean']:.1f} (mean of protocols), {means['weighted']:.1f} (weighted by queries)"
    )
    return "\n".join(lines)


def _cell(metric: Metric) -> str:
    return f"{metric['value']:.1f} [{metric['low']:.1f}, {metric['high']:.1f}]"
