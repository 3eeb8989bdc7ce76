"""Which prototypes stay, against the slow rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_runtime.gallery.search.bound import bounded, k_centre

Rows = NDArray[np.floating[Any]]


def units(count: int, dim: int, seed: int = 8) -> NDArray[np.float32]:
    raw = np.random.default_rng(seed).normal(size=(count, dim))
    vectors: NDArray[np.float32] = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def slow_rule(vectors: Rows, rows: Sequence[int], size: int, fixed: Sequence[int]) -> list[int]:
    if len(rows) <= size:
        return list(rows)
    kept = [row for row in rows if row in fixed]
    while len(kept) < size:
        rest = [row for row in reversed(rows) if row not in kept]
        cosines = {row: [float(vectors[row] @ vectors[other]) for other in kept] for row in rest}
        kept.append(min(rest, key=lambda row: max(cosines[row], default=0.0)))
    return sorted(kept)


@pytest.mark.parametrize("size", [1, 5, 32, 60])
@pytest.mark.parametrize("fixed", [(), (0,), (3, 59, 17), range(40)])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_k_centre_follows_the_slow_rule(size: int, fixed: Sequence[int], kind: type) -> None:
    vectors: Rows = units(60, 3).astype(kind)
    wanted = slow_rule(vectors.astype(np.float64), range(60), size, fixed)
    assert sorted(k_centre(vectors, size, fixed)) == wanted
    if len(fixed) >= size < 60:
        assert wanted == sorted(fixed)


def test_few_rows_stay_as_they_are() -> None:
    assert k_centre(units(5, 3), 5) == [0, 1, 2, 3, 4]
    assert k_centre(units(5, 3), 6, [2]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dim", [3, 1280])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_of_equally_far_rows_the_newer_one_stays(dim: int, kind: type) -> None:
    same: Rows = np.repeat(units(1, dim).astype(kind), 40, axis=0)
    assert sorted(k_centre(same, 32)) == list(range(8, 40))
    assert sorted(k_centre(same, 32, [0, 5])) == [0, 5, *range(10, 40)]


@pytest.mark.parametrize("fixed", [(), (1, 30, 77), range(0, 80, 2)])
@pytest.mark.parametrize(("per_group", "total"), [(4, 16), (1, 100), (40, 10), (6, 6), (100, 100)])
def test_groups_are_bounded_first(fixed: Sequence[int], per_group: int, total: int) -> None:
    vectors = units(80, 5).astype(np.float16)
    keys = [None, ("ground", "a"), ("ground", "b"), ("aerial", None)]
    groups = [keys[i] for i in np.random.default_rng(2).integers(0, 4, 80)]
    wide = vectors.astype(np.float64)
    left: list[int] = []
    for key in keys:
        rows = [row for row in range(80) if groups[row] == key]
        left += rows if key is None else slow_rule(wide, rows, per_group, fixed)
    wanted = slow_rule(wide, sorted(left), total, fixed)
    found = bounded(vectors, groups, fixed, per_group=per_group, total=total)
    assert found == wanted
    assert set(fixed) <= set(found)
    assert len(found) <= max(total, len(fixed))


def test_nothing_to_bound() -> None:
    assert bounded(np.zeros((0, 4), np.float16), [], [], per_group=3, total=9) == []
