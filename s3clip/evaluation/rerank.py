"""k-reciprocal re-ranking (Zhong et al. 2017, arXiv 1701.08398) on sparse matrices.

Two tracklets are k-reciprocal when each is among the k nearest of the other. A tracklet is encoded by its
k-reciprocal set, and encodings are compared by their Jaccard distance. Where the paper leaves a choice, this
is what published numbers use: neighbours are sought among queries and gallery together, a tracklet is its own
nearest neighbour beside k1 others, distances are squared Euclidean ones of unit vectors divided by the row's
largest, and an encoding sums to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.ranking import BLOCK_BYTES, distance_blocks

MAX_BYTES = 8 << 30
"""Estimated memory beyond which `rerank` refuses."""

ROWS_AT_ONCE = 1024
"""Rows of the sparse products: their intermediate sets are some 10 times as large as the result."""

PAIRS_AT_ONCE = 1 << 14
"""Pairs of embeddings whose distance is taken at once: 170 MB at 1280 numbers."""


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """Parameters of the paper with the values of method.md 8.1.

    Attributes:
        k1: neighbours of the reciprocal sets.
        k2: neighbours whose encodings are averaged, the tracklet itself among them; 1 averages nothing.
        original: share of the original distance in the result (the paper's lambda), 0 to 1.

    Raises:
        ConfigError: a value is out of range.
    """

    k1: int = 50
    k2: int = 15
    original: float = 0.3

    def __post_init__(self) -> None:
        if not (self.k1 >= 1 and 1 <= self.k2 <= self.k1 + 1 and 0 <= self.original <= 1):
            raise ConfigError(
                f"re-ranking needs k1 >= 1, 1 <= k2 <= k1 + 1 and a share of 0 to 1, got k1 {self.k1}, "
                f"k2 {self.k2} and share {self.original}"
            )


def rerank(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    settings: RerankSettings,
    *,
    max_bytes: int = MAX_BYTES,
) -> NDArray[np.float32]:
    """Re-ranked distances, smaller is nearer.

    Args:
        query: float32 (Q, D). gallery: float32 (G, D). They need no normalisation.
        max_bytes: largest estimated memory.

    Returns:
        float32 (Q, G) in [0, 1] up to rounding.

    Raises:
        DataError: the estimate is beyond `max_bytes`, or as of `cosine_distance`.
    """
    _refuse_beyond(max_bytes, estimate_bytes(len(query), len(gallery), query.shape[-1], settings), settings)
    everyone = np.concatenate([query, gallery])
    neighbours, longest = _neighbours(everyone, settings.k1 + 1)
    sets = _expanded_sets(neighbours, settings.k1)
    encoding = _encode(sets, everyone, longest)
    averaged = neighbours[:, : settings.k2]
    entries = np.diff(encoding.indptr)[averaged].sum()  # the sum of the sets is their union's largest size
    _refuse_beyond(max_bytes, 16 * int(entries) + 4 * len(query) * len(gallery), settings)
    encoding = _links(averaged, len(everyone)) @ encoding / averaged.shape[1]
    distance = _jaccard_distance(encoding, len(query))
    for first, block in distance_blocks(query, gallery):
        rows = slice(first, first + len(block))
        block += 1  # in place, for a block is 256 MB: half the squared distance of unit vectors
        block *= 2 * settings.original / longest[rows, None]
        distance[rows] *= 1 - settings.original
        distance[rows] += block
    return distance


def estimate_bytes(queries: int, entries: int, width: int, settings: RerankSettings) -> int:
    """Memory that `rerank` is expected to take: result, embeddings, neighbours and encodings.

    Reciprocal sets are at most as large as k1 + 1 before their expansion; twice that is taken as typical.
    An entry of the averaged encodings takes 8 bytes, and the gallery's are held once more by columns.
    15,000 tracklets took 0.9 GB where the estimate says 1.3 GB.
    """
    everyone = queries + entries
    encoded = min(everyone, 2 * (settings.k1 + 1) * settings.k2)
    return (
        2 * BLOCK_BYTES
        + 4 * queries * entries
        + everyone * (12 * width + 8 * (settings.k1 + 1) + 16 * encoded)
    )


def _refuse_beyond(max_bytes: int, needed: int, settings: RerankSettings) -> None:
    if needed > max_bytes:
        raise DataError(
            f"re-ranking with k1 {settings.k1} and k2 {settings.k2} would take about {needed / 1e9:.1f} GB, "
            f"the bound is {max_bytes / 1e9:.1f} GB; evaluate without re-ranking or on fewer tracklets"
        )


def _neighbours(vectors: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest of each row, int32 (N, count) in stable order, and its largest squared distance (N,)."""
    count = min(count, len(vectors))
    nearest = np.empty((len(vectors), count), dtype=np.int32)
    longest = np.empty(len(vectors), dtype=np.float32)
    for first, block in distance_blocks(vectors, vectors):
        for number, row in enumerate(block, first):
            candidates = np.flatnonzero(row <= np.partition(row, count - 1)[count - 1])
            nearest[number] = candidates[np.argsort(row[candidates], kind="stable")][:count]
        longest[first : first + len(block)] = 2 + 2 * block.max(axis=1)
    return nearest, longest


def _links(neighbours: NDArray[np.int32], width: int) -> sparse.csr_array:
    """A 1 in each row's columns `neighbours`: int (N, k) to a sparse float32 (N, width)."""
    rows, count = neighbours.shape
    ones = np.ones(rows * count, dtype=np.float32)
    links = sparse.csr_array(
        (ones, neighbours.ravel(), np.arange(0, rows * count + 1, count)), shape=(rows, width)
    )
    links.sort_indices()
    return links


def _expanded_sets(neighbours: NDArray[np.int32], k1: int) -> sparse.csr_array:
    """R* of the paper: R(p, k1) with R(q, k1 / 2) of those q in it that share 2/3 of theirs with it."""
    sets = _reciprocal(neighbours, k1)
    halves = _reciprocal(neighbours, round(k1 / 2))
    size = np.diff(halves.indptr)
    parts = []
    for rows in _row_slices(sets.shape[0]):
        part = sets[rows]
        shared = (part @ halves.T).multiply(part).tocsr()  # how many of R(q, k1 / 2) are in R(p, k1)
        shared.data = (3 * shared.data >= 2 * size[shared.indices]).astype(np.float32)
        shared.eliminate_zeros()
        parts.append((part + shared @ halves).tocsr())
    return sparse.vstack(parts, format="csr")


def _reciprocal(neighbours: NDArray[np.int32], k: int) -> sparse.csr_array:
    links = _links(neighbours[:, : k + 1], len(neighbours))
    return links.multiply(links.T).tocsr()


def _encode(
    sets: sparse.csr_array, vectors: NDArray[np.float32], longest: NDArray[np.float32]
) -> sparse.csr_array:
    """exp(-d) at the members of each set, divided by the row's sum. d is squared and per-row normalised."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(vectors)), np.diff(sets.indptr))
    weights = np.empty(len(rows), dtype=np.float32)
    for first in range(0, len(rows), PAIRS_AT_ONCE):
        pairs = slice(first, first + PAIRS_AT_ONCE)
        cosine = np.einsum("ij,ij->i", unit[rows[pairs]], unit[sets.indices[pairs]])
        weights[pairs] = np.exp(-(2 - 2 * cosine) / longest[rows[pairs]])
    sums = np.bincount(rows, weights=weights, minlength=len(vectors))
    weights /= sums[rows].astype(np.float32)
    return sparse.csr_array((weights, sets.indices, sets.indptr), shape=sets.shape)


def _jaccard_distance(encoding: sparse.csr_array, queries: int) -> NDArray[np.float32]:
    """1 - sum of minima / sum of maxima between each query and each gallery entry: float32 (Q, G).

    Both encodings sum to 1, so the maxima sum to 2 minus the minima.
    """
    columns = encoding[queries:].tocsc()
    entries = columns.shape[0]
    distance = np.empty((queries, entries), dtype=np.float32)
    for query in range(queries):
        part = slice(encoding.indptr[query], encoding.indptr[query + 1])
        met = columns[:, encoding.indices[part]]
        minima = np.minimum(met.data, np.repeat(encoding.data[part], np.diff(met.indptr)))
        shared = np.bincount(met.indices, weights=minima, minlength=entries)
        distance[query] = 1 - shared / (2 - shared)
    return distance


def _row_slices(rows: int) -> Iterator[slice]:
    for first in range(0, rows, ROWS_AT_ONCE):
        yield slice(first, first + ROWS_AT_ONCE)
