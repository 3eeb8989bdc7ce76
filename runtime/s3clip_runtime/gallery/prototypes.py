"""The search in memory: exact cosine of every query with every prototype, the best one of each identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

_TIE = 1e-5
"""Matrix products of unit vectors in float32 err by less. Scores this near are compared in float64."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Match:
    """One identity and the cosine, in [-1, 1] up to rounding, of its prototype nearest to the query."""

    identity: str
    score: float


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows sorted by identity: names ascend, the rows of names[i] are rows[starts[i]:starts[i + 1]]."""

    names: list[str]
    rows: NDArray[np.intp]
    starts: NDArray[np.intp]


class Prototypes:
    """Unit vectors by identity. Not for several threads at once.

    They lie in one matrix with spare rows, so that one enrolment does not copy the whole gallery.

    Args:
        dim: numbers of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._matrix = np.zeros((0, dim), np.float32)
        self._rows: dict[str, list[int]] = {}
        self._free: list[int] = []  # ascending from the end, so that rows in use stay together
        self._used = 0
        self._groups: _Groups | None = None

    @property
    def identities(self) -> list[str]:
        """All names, in no order."""
        return list(self._rows)

    def put(self, identity: str, vectors: Vectors) -> None:
        """Replace all prototypes of an identity, which may be new, by float32 (n, dim) with n >= 1."""
        self.remove(identity)
        if len(self._free) < len(vectors):
            self._grow(len(vectors))
        rows = [self._free.pop() for _ in vectors]
        self._matrix[rows] = vectors
        self._used = max(self._used, *[row + 1 for row in rows])
        self._rows[identity] = rows

    def remove(self, identity: str) -> None:
        """Overwrite the prototypes of an identity; one that is not there is no error."""
        rows = self._rows.pop(identity, [])
        self._matrix[rows] = 0
        self._free.extend(sorted(rows, reverse=True))
        self._groups = None

    def search(self, queries: Vectors, k: int) -> list[list[Match]]:
        """The k best identities of each query, float32 (n, dim), best first; equal scores by name."""
        if not self._rows:
            return [[] for _ in queries]
        if self._groups is None:
            self._groups = self._grouped()
        groups = self._groups
        scores = queries @ self._matrix[: self._used].T
        best = np.maximum.reduceat(scores[:, groups.rows], groups.starts, axis=1)
        return [self._ranked(groups, query, row, k) for query, row in zip(queries, best, strict=True)]

    def _ranked(self, groups: _Groups, query: Vectors, best: Vectors, k: int) -> list[Match]:
        # `best` (identities,) depends in its last digits on the batch and on the place of the rows. All that
        # could be among the k best are scored again in float64, so that equal vectors get equal scores.
        k = min(k, len(best))
        near = np.flatnonzero(best >= np.partition(best, -k)[-k] - _TIE)
        names = [groups.names[i] for i in near]
        scores = self._exact_scores(names, query)
        matches = [Match(name, score) for name, score in zip(names, scores, strict=True)]
        return sorted(matches, key=lambda match: (-match.score, match.identity))[:k]

    def _exact_scores(self, identities: Sequence[str], query: Vectors) -> list[float]:
        # Multiply and sum, not a matrix product: the order of additions must not depend on the row's place.
        rows = [self._rows[identity] for identity in identities]
        products = self._matrix[list(chain.from_iterable(rows))] * query.astype(np.float64)
        starts = np.cumsum([0, *map(len, rows[:-1])])
        best: list[float] = np.maximum.reduceat(products.sum(axis=1), starts).tolist()
        return best

    def _grouped(self) -> _Groups:
        names = sorted(self._rows)
        counts = [len(self._rows[name]) for name in names]
        rows = np.fromiter(chain.from_iterable(self._rows[name] for name in names), np.intp, sum(counts))
        return _Groups(names, rows, np.cumsum([0, *counts[:-1]], dtype=np.intp))

    def _grow(self, needed: int) -> None:
        size = len(self._matrix)
        larger = np.zeros((max(64, 2 * size, size + needed), self._matrix.shape[1]), np.float32)
        larger[:size] = self._matrix
        self._free = [*range(len(larger) - 1, size - 1, -1), *self._free]
        self._matrix = larger


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


def exact_scores(vectors: NDArray[np.float16], query: Vectors) -> NDArray[np.float64]:
    """Float64 (n,): sums over the columns of float16 (n, dim) times float32 (dim,), in float64."""
    products = vectors.astype(np.float64) * query.astype(np.float64)
    scores: NDArray[np.float64] = products.sum(axis=1)
    return scores
