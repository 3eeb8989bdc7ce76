"""Which layers compute in 8 bits: a greedy walk from none to all, and the furthest point that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from s3clip_calib.fidelity import Fidelity
from s3clip_calib.sensitivity import Sensitivity

SHARES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 1.0)
"""Of the multiply-adds: the walk's points. They are dense at the end, where layers stand that lose much and
gain little, such as the last projection, and where the gate may want one step back."""

REFINEMENTS = 5
"""Halvings of the gap between the last allowed point and the first that is not."""


@dataclass(frozen=True, slots=True)
class Point:
    """Some layers in 8 bits.

    Attributes:
        layers: their names, in the order of the walk.
        share: of all layers' multiply-adds, 0 to 1.
        fidelity: measured with all of them together.
        faults: what misses its bound.
    """

    layers: tuple[str, ...]
    share: float
    fidelity: Fidelity
    faults: tuple[str, ...]


def order_of(rows: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The least loss for each multiply-add first; a layer that gains by rounding counts as no loss."""
    return sorted(rows, key=lambda row: max(row.fidelity.loss, 0.0) / row.operations)


def walk(
    rows: Sequence[Sensitivity],
    measure: Callable[[Collection[str]], Fidelity],
    bounds: Mapping[str, float],
) -> list[Point]:
    """The front of accuracy against cost: prefixes of `order_of`, from none to all.

    Losses add up roughly, so prefixes of the order come near the best sets; each is really measured.

    Args:
        rows: all layers.
        measure: the fidelity with these layers in 8 bits.
        bounds: figure of `Fidelity` to the value that it must reach.

    Returns:
        Points with rising shares; the first has no layer.
    """
    ordered = order_of(rows)
    whole = sum(row.operations for row in ordered)
    shares = [0.0]
    for row in ordered:
        shares.append(shares[-1] + row.operations / whole)
    points: dict[int, Point] = {}

    def visit(count: int) -> Point:
        if count not in points:
            names = tuple(row.layer for row in ordered[:count])
            found = measure(names)
            points[count] = Point(names, shares[count], found, faults_of(found, bounds))
        return points[count]

    for wanted in SHARES[:-1]:
        visit(min(range(len(shares)), key=lambda count: abs(shares[count] - wanted)))
    visit(len(ordered))
    for _ in range(REFINEMENTS):
        good = max((count for count in points if not points[count].faults), default=0)
        worse = [count for count in points if count > good]
        if not worse or min(worse) - good < 2:
            break
        visit((good + min(worse)) // 2)
    return [points[count] for count in sorted(points)]


def faults_of(found: Fidelity, bounds: Mapping[str, float]) -> tuple[str, ...]:
    """What misses its bound, with both values."""
    return tuple(
        f"{name} is {getattr(found, name):.6g}, must be at least {least:g}"
        for name, least in bounds.items()
        if not getattr(found, name) >= least  # a NaN fails too
    )


def allowed(points: Sequence[Point]) -> list[Point]:
    """Points within their bounds, most layers first; the one without a layer is always last."""
    return [point for point in reversed(points) if not point.faults or not point.layers]
