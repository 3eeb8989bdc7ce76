"""The search in memory: exact cosine of every query with every prototype, the best one of each identity.

Rows are float16 in blocks of a fixed size, so that a gallery that grows is neither copied nor half empty. A
search widens one block after the other to float32 for a matrix product, whose error has a proven bound. Every
row within that bound of the k-th best score is scored again in float64: the answer is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import Match
from s3clip_runtime.gallery.search.halves import loses_small_numbers, widened
from s3clip_runtime.gallery.storage.database import Halves
from s3clip_runtime.inference.spec import PLATFORMS

BLOCK = 2048
"""Rows of a block: so many that the threads of a product seldom wait for each other (with half of them a
search took nearly twice as long on a busy machine), so few that one that is widened is little memory."""

_PIECE = 64
"""Rows that are looked through together, and scored exactly together."""

_BATCH = 32
"""Queries of one pass: their scores with all rows are 5 % of the vectors of 1280 numbers."""

_NOBODY = -1
"""Owner of a row that is not in use."""

_PLATFORMS = (None, *PLATFORMS)

_LOWEST = float(np.finfo(np.float32).min)

Singles = NDArray[np.float32]


class Prototypes:
    """Unit vectors by identity. Not for several threads at once.

    Args:
        dim: numbers of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._blocks: list[Halves] = []
        self._owners = np.zeros(0, np.int32)  # of each row of all blocks: a slot, or _NOBODY
        self._platforms = np.zeros(0, np.int8)  # of each row: its place in _PLATFORMS
        self._slots: dict[str, int] = {}
        self._names: list[str] = []  # by slot
        self._free_slots: list[int] = []
        self._used = 0  # rows from here on were never in use
        self._count = 0
        self._longest = 0.0  # length of the longest vector that was ever put here

    def __len__(self) -> int:
        """Number of prototypes."""
        return self._count

    @property
    def identities(self) -> list[str]:
        """All names, in no order."""
        return list(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes held for the vectors and their labels."""
        blocks = len(self._blocks) * BLOCK * self._dim * 2
        labels = self._owners.nbytes + self._platforms.nbytes
        tables = (self._slots, self._names, self._free_slots, *self._slots, *self._slots.values())
        return blocks + labels + sum(map(sys.getsizeof, tables))

    def put(self, identity: str, vectors: Halves, platforms: Sequence[str | None]) -> None:
        """Replace all prototypes of an identity, which may be new.

        Args:
            vectors: finite float16 (n, dim), n >= 1.
            platforms: of each vector, one of `spec.PLATFORMS`, or None.

        Raises:
            GalleryError: another shape, or a number that is not finite. Nothing has changed then.
        """
        codes = self._checked(identity, vectors, platforms)
        self._erase(identity)
        if identity not in self._slots:
            self._slots[identity] = self._new_slot(identity)
        rows = self._free_rows(len(vectors))
        for row, vector in zip(rows.tolist(), vectors, strict=True):
            self._blocks[row // BLOCK][row % BLOCK] = vector
        self._owners[rows] = self._slots[identity]
        self._platforms[rows] = codes
        self._used = max(self._used, int(rows[-1]) + 1)
        self._count += len(rows)
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        self._longest = max(self._longest, float(lengths.max()))

    def remove(self, identity: str) -> None:
        """Overwrite the prototypes of an identity with zeros; one that is not there is no error."""
        self._erase(identity)
        slot = self._slots.pop(identity, None)
        if slot is not None:
            self._names[slot] = ""
            self._free_slots.append(slot)

    def search(self, queries: Singles, k: int) -> list[list[Match]]:
        """The k best identities of each query, best first; equal scores by name.

        Args:
            queries: finite float32 (n, dim).
            k: >= 1.

        Returns:
            For each query at most k matches. Of equally good prototypes of one identity the match tells the
            platform that comes first: None, then the order of `spec.PLATFORMS`.

        Raises:
            GalleryError: a query has a number that is not finite.
        """
        if not np.isfinite(queries).all():
            raise GalleryError(
                "queries must be finite numbers, found others; give the rows of Embedder.embed"
            )
        if not self._slots:
            return [[] for _ in queries]
        passes = (queries[low : low + _BATCH] for low in range(0, len(queries), _BATCH))
        return [matches for batch in passes for matches in self._searched(batch, k)]

    def _searched(self, queries: Singles, k: int) -> list[list[Match]]:
        # Cosines order rows as before if the query is scaled; so no finite query can overflow float32.
        _, exponents = np.frexp(np.abs(queries).max(axis=1, keepdims=True))
        scaled = np.ldexp(queries, -exponents)
        scores = self._products(scaled).reshape(-1, _PIECE, len(queries))
        best = np.ascontiguousarray(scores.max(axis=1).T)
        margins = self._margins(scaled)
        found = []
        for i, query in enumerate(queries):
            rows = self._candidates(scores[:, :, i], best[i], k, margins[i])
            found.append(self._ranked(query, rows, k))
        return found

    def _products(self, queries: Singles) -> Singles:
        """Scores float32 (rows, n) of all rows, up to a whole number of pieces; -inf for rows not in use."""
        rows = -(-self._used // _PIECE) * _PIECE
        turned = np.ascontiguousarray(queries.T)
        wide = np.empty((min(rows, BLOCK), self._dim), np.int32)
        scores = np.empty((rows, len(queries)), np.float32)
        for low in range(0, rows, BLOCK):
            block = self._blocks[low // BLOCK][: rows - low]
            single, out = widened(block, wide[: len(block)]), scores[low : low + BLOCK]
            if len(queries) == 1:
                # Row by row: the threads of a larger product would wait for each other, on a busy machine for
                # milliseconds, and the work is too little for that.
                np.matmul(single[:, None], turned, out=out[:, None])
            else:
                np.matmul(single, turned, out=out)
        scores[self._owners[:rows] == _NOBODY] = -np.inf
        return scores

    def _margins(self, queries: Singles) -> NDArray[np.float64]:
        """Twice what a score of `_products` can differ from the one of `exact_scores`, (n,).

        A float32 sum of n products errs, in any order, by at most n u / (1 - n u) times the sum of their
        magnitudes, which is at most the product of both lengths; u = 2**-24. Eight more units pay for the
        float64 sum and for comparing in float32. The last term pays for products and scaled queries below
        the range of float32.
        """
        wide = queries.astype(np.float64)
        rounding = (self._dim + 8) * 2.0**-24
        errors = rounding / (1 - rounding) * np.linalg.norm(wide, axis=1) * self._longest
        if loses_small_numbers():
            errors += 2.0**-14 * np.abs(wide).sum(axis=1)
        margins: NDArray[np.float64] = 2 * (errors + self._dim * 2.0**-109)
        return margins

    def _candidates(self, scores: Singles, best: Singles, k: int, margin: float) -> NDArray[np.intp]:
        """Rows of which one may be the best prototype of one of the k best identities.

        Args:
            scores: of one query with all rows, (pieces, _PIECE).
            best: the highest one of each piece.
        """
        k = min(k, len(self._slots))
        pieces = k
        while True:  # ends: with all pieces there are all identities
            low = float(np.partition(best, -pieces)[-pieces]) if pieces < len(best) else _LOWEST
            rows = _rows_from(max(low, _LOWEST), scores, best)
            values = scores[rows // _PIECE, rows % _PIECE]
            order = np.argsort(-values)
            firsts = np.sort(np.unique(self._owners[rows[order]], return_index=True)[1])
            if len(firsts) >= k:
                return _rows_from(max(float(values[order[firsts[k - 1]]]) - margin, _LOWEST), scores, best)
            pieces *= 2

    def _ranked(self, query: Singles, rows: NDArray[np.intp], k: int) -> list[Match]:
        scores = np.concatenate(
            [self._exact(query, rows[low : low + BLOCK]) for low in range(0, len(rows), BLOCK)]
        )
        keys = zip((-scores).tolist(), self._platforms[rows].tolist(), strict=True)
        found: dict[int, tuple[float, int]] = {}
        for slot, key in zip(self._owners[rows].tolist(), keys, strict=True):
            found[slot] = min(found.get(slot, key), key)
        order = sorted((score, self._names[slot], platform) for slot, (score, platform) in found.items())
        return [Match(name, -score, _PLATFORMS[platform]) for score, name, platform in order[:k]]

    def _exact(self, query: Singles, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return exact_scores(np.stack([self._blocks[r // BLOCK][r % BLOCK] for r in rows.tolist()]), query)

    def _checked(self, identity: str, vectors: Halves, platforms: Sequence[str | None]) -> list[int]:
        if vectors.ndim != 2 or vectors.shape[1] != self._dim or not len(vectors):
            raise GalleryError(
                f"prototypes of {identity!r} must be (n, {self._dim}) with n at least 1, found "
                f"{vectors.shape}; give the rows of Embedder.embed"
            )
        if len(platforms) != len(vectors) or not set(platforms) <= set(_PLATFORMS):
            raise GalleryError(
                f"platforms of {identity!r} must be {len(vectors)} of None, {', '.join(PLATFORMS)}, found "
                f"{list(platforms)}; give one for each vector"
            )
        if not np.isfinite(vectors).all():
            raise GalleryError(
                f"prototypes of {identity!r} must be finite numbers, found others; "
                "give the rows of Embedder.embed"
            )
        return [_PLATFORMS.index(platform) for platform in platforms]

    def _erase(self, identity: str) -> None:
        if identity not in self._slots:
            return
        rows = np.flatnonzero(self._owners[: self._used] == self._slots[identity])
        for row in rows.tolist():
            self._blocks[row // BLOCK][row % BLOCK] = 0
        self._owners[rows] = _NOBODY
        self._platforms[rows] = 0
        self._count -= len(rows)

    def _new_slot(self, identity: str) -> int:
        if self._free_slots:
            slot = self._free_slots.pop()
            self._names[slot] = identity
            return slot
        self._names.append(identity)
        return len(self._names) - 1

    def _free_rows(self, count: int) -> NDArray[np.intp]:
        """Rows not in use, ascending: gaps first. Nothing is sought if there are none, as at loading."""
        gaps = np.zeros(0, np.intp)
        if self._count < self._used:
            gaps = np.flatnonzero(self._owners[: self._used] == _NOBODY)[:count]
        last = self._used + count - len(gaps)
        while len(self._owners) < last:
            self._blocks.append(np.zeros((BLOCK, self._dim), np.float16))
            self._owners = np.concatenate([self._owners, np.full(BLOCK, _NOBODY, np.int32)])
            self._platforms = np.concatenate([self._platforms, np.zeros(BLOCK, np.int8)])
        return np.concatenate([gaps, np.arange(self._used, last, dtype=np.intp)])


def exact_scores(vectors: Halves, query: Singles) -> NDArray[np.float64]:
    """The score of each vector: what all stores tell, equal for equal vectors to the last bit.

    Multiply and sum, not a matrix product: the order of additions must not depend on the row's place. The
    products of float16 with float32 are exact in float64.

    Args:
        vectors: float16 (n, dim).
        query: float32 (dim,).

    Returns:
        float64 (n,).
    """
    wide = query.astype(np.float64)
    scores = np.empty(len(vectors), np.float64)
    for low in range(0, len(vectors), _PIECE):
        products = np.multiply(vectors[low : low + _PIECE], wide, order="C")
        scores[low : low + _PIECE] = products.sum(axis=1)
    return scores


def _rows_from(low: float, scores: Singles, best: Singles) -> NDArray[np.intp]:
    pieces = np.flatnonzero(best >= np.float32(low))
    which, places = np.nonzero(scores[pieces] >= np.float32(low))
    return pieces[which] * _PIECE + places
