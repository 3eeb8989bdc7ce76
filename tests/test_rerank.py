"""k-reciprocal re-ranking against the paper's definition, written out with sets on a dense matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip.evaluation.rerank import RerankSettings, estimate_bytes, rerank
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.ranking import cosine_distance


def people(count: int, seed: int, *, noise: float = 0.7) -> NDArray[np.float32]:
    """Embeddings float32 (count, 16) of a third as many persons, of other lengths than 1."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(count // 3, 16))
    vectors = centres[rng.integers(0, len(centres), count)] + noise * rng.normal(size=(count, 16))
    return (3 * vectors).astype(np.float32)


class DenseReranking:
    """Sections 3.2 to 3.5 of the paper, one definition a method; slow and obvious."""

    def __init__(self, query: NDArray[np.float32], gallery: NDArray[np.float32]) -> None:
        vectors = np.concatenate([query, gallery]).astype(np.float64)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        squared = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)
        self.d = squared / squared.max(axis=1, keepdims=True)
        self.count, self.queries = len(vectors), len(query)
        self.order = [sorted(range(self.count), key=lambda g, p=p: self.d[p, g]) for p in range(self.count)]  # type: ignore[misc]

    def nearest(self, p: int, k: int) -> set[int]:
        """N(p, k): the k nearest, and p itself."""
        return set(self.order[p][: k + 1])

    def reciprocal(self, p: int, k: int) -> set[int]:
        """R(p, k): those of N(p, k) that have p among their own."""
        return {g for g in self.nearest(p, k) if p in self.nearest(g, k)}

    def expanded(self, p: int, k: int) -> set[int]:
        """R*(p, k)."""
        base = self.reciprocal(p, k)
        result = set(base)
        for q in base:
            half = self.reciprocal(q, round(k / 2))
            if len(base & half) >= 2 / 3 * len(half) - 1e-9:
                result |= half
        return result

    def encoding(self, p: int, k: int) -> NDArray[np.float64]:
        """V_p."""
        row = np.zeros(self.count)
        for g in self.expanded(p, k):
            row[g] = math.exp(-self.d[p, g])
        row /= row.sum()
        return row

    def distance(self, settings: RerankSettings) -> NDArray[np.float64]:
        """The weighted sum of both distances."""
        single = np.stack([self.encoding(p, settings.k1) for p in range(self.count)])
        averaged = np.stack([single[self.order[p][: settings.k2]].mean(axis=0) for p in range(self.count)])
        result = np.empty((self.queries, self.count - self.queries))
        for q in range(self.queries):
            for g in range(self.queries, self.count):
                minima = np.minimum(averaged[q], averaged[g]).sum()
                jaccard = 1 - minima / np.maximum(averaged[q], averaged[g]).sum()
                result[q, g - self.queries] = (1 - settings.original) * jaccard + settings.original * self.d[
                    q, g
                ]
        return result


@pytest.mark.parametrize(
    "settings",
    [
        RerankSettings(k1=8, k2=3),
        RerankSettings(k1=7, k2=1, original=0.0),
        RerankSettings(k1=5, k2=6, original=0.5),
        RerankSettings(),  # k1 = 50 of 60 tracklets
        RerankSettings(k1=200, k2=100),  # more neighbours than there are
    ],
)
def test_sparse_re_ranking_is_the_papers(settings: RerankSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3clip.evaluation.rerank.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("s3clip.evaluation.rerank.PAIRS_AT_ONCE", 11)
    query, gallery = people(20, 0), people(40, 1)
    found = rerank(query, gallery, settings)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, DenseReranking(query, gallery).distance(settings), atol=2e-6)


def test_only_the_original_distance_gives_the_original_order() -> None:
    query, gallery = people(30, 2), people(50, 3)
    found = rerank(query, gallery, RerankSettings(k1=6, k2=3, original=1.0))
    original = np.take_along_axis(cosine_distance(query, gallery), np.argsort(found, axis=1), axis=1)
    assert (np.diff(original, axis=1) > -1e-6).all()


def test_the_order_of_the_gallery_does_not_matter() -> None:
    query, gallery = people(12, 4), people(30, 5)
    shuffled = np.random.default_rng(0).permutation(30)
    settings = RerankSettings(k1=6, k2=3)
    np.testing.assert_allclose(
        rerank(query, gallery[shuffled], settings), rerank(query, gallery, settings)[:, shuffled], atol=1e-6
    )


def test_distances_are_shares_and_equal_tracklets_are_nearest() -> None:
    query = people(15, 6)
    found = rerank(query, np.concatenate([query, people(30, 7)]), RerankSettings(k1=6, k2=2))
    assert found.min() > -1e-5
    assert found.max() < 1 + 1e-5
    np.testing.assert_array_equal(found.argmin(axis=1), np.arange(15))


def test_too_much_memory_is_refused_before_it_is_taken() -> None:
    query, gallery = people(20, 0), people(40, 1)
    with pytest.raises(DataError, match=r"k1 50 and k2 15 would take about .* bound is 0\.0 GB"):
        rerank(query, gallery, RerankSettings(), max_bytes=10_000)
    assert estimate_bytes(10_000, 10_000, 1280, RerankSettings()) < 2e9
    assert estimate_bytes(100_000, 100_000, 1280, RerankSettings()) > 40e9


def test_bad_settings() -> None:
    for wrong in ({"k1": 0}, {"k2": 0}, {"k1": 3, "k2": 5}, {"original": 1.5}):
        with pytest.raises(ConfigError, match="re-ranking needs k1 >= 1"):
            RerankSettings(**wrong)
