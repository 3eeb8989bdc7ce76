"""The range of an activation that 8 bits are spread over, chosen from its observed distribution.

All types here are symmetric: a range is its largest absolute value, and larger ones saturate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from s3clip_calib.observe import Observed, edges
from s3clip_runtime.errors import ConfigError

Bits = Literal["int8", "fp8"]
Method = Literal["max", "percentile", "mse", "entropy"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

TOP: Final[Mapping[Bits, float]] = {"int8": 127.0, "fp8": 448.0}
"""The largest number of each type, which the range's end becomes. E4M3 has no infinity and ends at 448."""

PERCENTILE: Final = 99.99
"""Of all absolute values. One in ten thousand of the full-size model's saturates."""

CANDIDATES: Final = 2.0 ** -(np.arange(64) / 8)
"""Shares of the largest value that "mse" and "entropy" try as a range: down to 1/235 in steps of 9 %."""

ENTROPY_BINS: Final = 2048
"""Equal bins of the whole range that "entropy" compares: 16 for each of int8's levels."""

_MANTISSA, _LEAST_EXPONENT = 3, -6  # of E4M3


def range_of(observed: Observed, method: Method, bits: Bits) -> float:
    """The largest absolute value that shall be representable, > 0.

    Args:
        observed: of one activation.
        method: "max": all values; "percentile": all but one in ten thousand; "mse": the range with the least
            squared rounding error; "entropy": that with the least Kullback-Leibler divergence between the
            distributions before and after rounding, of int8 alone.
        bits: the type.

    Raises:
        ConfigError: "entropy" is asked for fp8, whose levels are no bins of equal width.
    """
    largest = observed.largest
    if largest == 0:
        return 1.0  # any: a tensor of zeros stays one
    match method:
        case "max":
            return largest
        case "percentile":
            return min(largest, _percentile(observed))
        case "mse":
            errors = [_squared_error(observed, largest * share, bits) for share in CANDIDATES]
            return float(largest * CANDIDATES[int(np.argmin(errors))])
        case "entropy":
            if bits != "int8":
                raise ConfigError(f"method entropy is for int8, found {bits}; use max, percentile or mse")
            return _entropy(observed)


def _percentile(observed: Observed) -> float:
    """Upper edge of the bin that holds it."""
    below = np.cumsum(observed.counts)
    return float(edges()[int(np.searchsorted(below, below[-1] * PERCENTILE / 100)) + 1])


def _squared_error(observed: Observed, limit: float, bits: Bits) -> float:
    """Sum of squared rounding errors when `limit` is the range."""
    used = np.flatnonzero(observed.counts)
    borders = edges()
    sizes, counts = (borders[used] + borders[used + 1]) / 2, observed.counts[used]
    step = _step(sizes, limit, bits)
    # A rounding error is uniform within a step; what is below half a step becomes 0.
    inside = np.where(sizes < step / 2, sizes**2, step**2 / 12)
    return float(np.sum(counts * np.where(sizes > limit, (sizes - limit) ** 2, inside)))


def _step(sizes: NDArray[np.float64], limit: float, bits: Bits) -> NDArray[np.float64]:
    """Distance between the levels around each size."""
    scale = limit / TOP[bits]
    if bits == "int8":
        return np.full_like(sizes, scale)
    exponent = np.maximum(np.floor(np.log2(np.maximum(sizes / scale, 2.0**-30))), _LEAST_EXPONENT)
    step: NDArray[np.float64] = scale * 2.0 ** (exponent - _MANTISSA)
    return step


def _entropy(observed: Observed) -> float:
    """Least divergence over the candidates, on bins of equal width."""
    largest = observed.largest
    borders = edges()
    cumulative = np.concatenate([[0.0], np.cumsum(observed.counts, dtype=np.float64)])
    even = np.linspace(0, largest, ENTROPY_BINS + 1)
    mass = np.diff(np.interp(even, borders, cumulative))
    mass[-1] += cumulative[-1] - mass.sum()  # the last bin of the largest value ends behind it
    centres = (even[:-1] + even[1:]) / 2
    divergences = [_divergence(mass, centres, largest * share) for share in CANDIDATES]
    return float(largest * CANDIDATES[int(np.argmin(divergences))])


def _divergence(mass: NDArray[np.float64], centres: NDArray[np.float64], limit: float) -> float:
    """Of the rounded distribution from the saturated one, in nats."""
    inside = centres <= limit
    kept = mass[inside].copy()
    levels = np.rint(centres[inside] * (TOP["int8"] / limit)).astype(np.int64)
    filled = kept > 0
    if not filled.any() or levels[-1] < TOP["int8"] / 2:
        return float("inf")
    sums = np.bincount(levels, weights=kept)
    members = np.bincount(levels, weights=filled.astype(np.float64))
    rounded = np.where(filled, sums[levels] / np.maximum(members[levels], 1), 0.0)
    kept[-1] += mass[~inside].sum()
    p, q = kept / kept.sum(), rounded / rounded.sum()
    used = (p > 0) & (q > 0)
    if (p[~used] > 0).any():
        return float("inf")
    return float(np.sum(p[used] * np.log(p[used] / q[used])))
