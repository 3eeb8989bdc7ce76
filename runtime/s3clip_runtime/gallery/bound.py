"""tmp"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def bounded(
    vectors, groups: Sequence[object], fixed: Sequence[int], *, per_group: int, total: int
) -> list[int]:
    if len(vectors) <= total and all(groups.count(g) <= per_group for g in set(groups) if g is not None):
        return list(range(len(vectors)))
    kept = set(fixed)
    v = vectors.astype(np.float32)
    left = set(range(len(v)))
    for g in set(groups):
        if g is None:
            continue
        rows = [i for i in range(len(v)) if groups[i] == g]
        if len(rows) > per_group:
            k = k_centre(v[rows], per_group)
            left -= {r for j, r in enumerate(rows) if j not in k and r not in kept}
    rows = sorted(left)
    if len(rows) > total:
        k = k_centre(v[rows], total)
        rows = [r for j, r in enumerate(rows) if j in k or r in kept]
    return rows


def k_centre(vectors: Vectors, size: int) -> list[int]:
    """Rows of at most `size` vectors that cover all of float32 (n, dim), which are in order of enrolment.

    The greedy farthest-point rule (Gonzalez 1985; its radius is at most twice the best one), started at the
    newest row. Of equally far rows the newer one is taken.
    """
    count = len(vectors)
    if count <= size:
        return list(range(count))
    kept: list[int] = []
    nearest = np.full(count, -np.inf, np.float32)  # cosine to the nearest kept row
    while len(kept) < size:
        farthest = count - 1 - int(np.argmin(nearest[::-1]))
        kept.append(farthest)
        nearest = np.maximum(nearest, vectors @ vectors[farthest])
        nearest[kept] = np.inf
    return kept
