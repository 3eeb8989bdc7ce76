"""Which prototypes of an identity stay when there are too many: those that cover its looks best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]


def k_centre(vectors: Rows, size: int, fixed: Sequence[int] = ()) -> list[int]:
    """Rows of at most `size` vectors that cover all of float (n, dim), which are in order of enrolment.

    The greedy farthest-point rule (Gonzalez 1985; its radius is at most twice the best one), started at the
    newest row. Of equally far rows the newer one is taken.

    Args:
        fixed: rows that stay in any case and count; where they are `size` or more, they alone stay.
    """
    count = len(vectors)
    if count <= size:
        return list(range(count))
    wide = vectors.astype(np.float32, copy=False)
    kept: list[int] = []
    nearest = np.full(count, -np.inf, np.float32)  # cosine to the nearest kept row
    chosen = list(dict.fromkeys(fixed))
    while chosen or len(kept) < size:
        row = chosen.pop(0) if chosen else count - 1 - int(np.argmin(nearest[::-1]))
        kept.append(row)
        # Not a matrix product, which may give equal rows cosines that differ in the last digit.
        nearest = np.maximum(nearest, (wide * wide[row]).sum(axis=1))
        nearest[kept] = np.inf
    return kept


def bounded(
    vectors: Rows, groups: Sequence[object], fixed: Sequence[int], *, per_group: int, total: int
) -> list[int]:
    """Rows of one identity that stay, ascending: first each group is bounded, then what is left of all.

    Args:
        vectors: float (n, dim) in order of enrolment.
        groups: key of each row, such as (platform, camera). Rows with None are bounded with all others only.
        fixed: rows that stay in any case and count.
        per_group: most rows of one group.
        total: most rows.
    """
    left: list[int] = []
    for group in dict.fromkeys(groups):
        rows = [row for row, key in enumerate(groups) if key == group]
        left += rows if group is None else _covering(vectors, rows, fixed, per_group)
    return sorted(_covering(vectors, sorted(left), fixed, total))


def _covering(vectors: Rows, rows: Sequence[int], fixed: Sequence[int], size: int) -> list[int]:
    held = set(fixed)
    places = [place for place, row in enumerate(rows) if row in held]
    return [rows[place] for place in k_centre(vectors[list(rows)], size, places)]
