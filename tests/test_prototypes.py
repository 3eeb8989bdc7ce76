"""The search in memory against brute force in float64 on the stored float16 numbers."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import Match
from s3clip_runtime.gallery.search.halves import loses_small_numbers, widened
from s3clip_runtime.gallery.search.prototypes import BLOCK, Prototypes, exact_scores
from s3clip_runtime.gallery.storage.database import Halves

Singles = NDArray[np.float32]
Truth = dict[str, tuple[Halves, list[str | None]]]

ORDER = (None, "ground", "aerial")


def units(rng: np.random.Generator, count: int, dim: int) -> Singles:
    raw = rng.normal(size=(count, dim))
    vectors: Singles = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def halves(rng: np.random.Generator, count: int, dim: int) -> Halves:
    return units(rng, count, dim).astype(np.float16)


def platforms(rng: np.random.Generator, count: int) -> list[str | None]:
    return [ORDER[i] for i in rng.integers(0, 3, count)]


def filled(truth: Truth, dim: int) -> Prototypes:
    prototypes = Prototypes(dim)
    for name, (vectors, seen) in truth.items():
        prototypes.put(name, vectors, seen)
    return prototypes


def brute_force(truth: Truth, query: Singles, k: int) -> list[Match]:
    best = []
    for name, (vectors, seen) in truth.items():
        wide = query.astype(np.float64)
        scores = [float((vector.astype(np.float64) * wide).sum()) for vector in vectors]
        platform = next(p for p in ORDER if (max(scores), p) in list(zip(scores, seen, strict=True)))
        best.append(Match(name, max(scores), platform))
    return sorted(best, key=lambda match: (-match.score, match.identity))[:k]


def assert_exact(prototypes: Prototypes, truth: Truth, queries: Singles, ks: Sequence[int]) -> None:
    for k in ks:
        found = prototypes.search(queries, k)
        assert found == [brute_force(truth, query, k) for query in queries]


@pytest.mark.parametrize(
    ("people", "most", "dim", "count"),
    [(1, 1, 1, 3), (2, 3, 7, 1), (150, 6, 32, 17), (40, 90, 33, 33), (700, 5, 64, 34), (1, 2100, 16, 2)],
)
def test_search_equals_brute_force(people: int, most: int, dim: int, count: int) -> None:
    rng = np.random.default_rng(people)
    truth: Truth = {}
    for i in rng.permutation(people):
        n = int(rng.integers(1, most + 1))
        truth[f"p{i}"] = (halves(rng, n, dim), platforms(rng, n))
    prototypes = filled(truth, dim)
    assert len(prototypes) == sum(len(vectors) for vectors, _ in truth.values())
    assert sorted(prototypes.identities) == sorted(truth)
    assert_exact(prototypes, truth, units(rng, count, dim), (1, 5, people, people + 7))


def test_near_people_at_full_width() -> None:
    """Scores that differ less than a float32 product errs."""
    rng = np.random.default_rng(4)
    centre = units(rng, 1, 1280)
    truth: Truth = {}
    for i in rng.permutation(300):
        noise = 2e-4 * rng.normal(size=(4, 1280)).astype(np.float32)
        truth[f"p{i}"] = ((centre + noise).astype(np.float16), platforms(rng, 4))
    assert_exact(filled(truth, 1280), truth, np.concatenate([centre, units(rng, 4, 1280)]), (1, 10))


def test_scores_nearer_than_a_float32_product_errs() -> None:
    """All differ in the last bit of some numbers, and the cut is where most scores are."""
    rng = np.random.default_rng(6)
    base, queries = halves(rng, 1, 1280)[0], units(rng, 3, 1280)
    truth: Truth = {}
    for i in rng.permutation(600):
        vector = base.copy()
        columns = rng.choice(1280, 40, replace=False)
        vector[columns] = np.nextafter(vector[columns], np.float16(1))
        truth[f"p{i}"] = (vector[None], [None])
    assert_exact(filled(truth, 1280), truth, queries, range(200, 400, 5))


@pytest.mark.parametrize("dim", [32, 1280])
def test_ties_across_the_cut_are_cut_by_name(dim: int) -> None:
    """A matrix product gives the rows of one and the same vector scores that differ in the last digit."""
    rng = np.random.default_rng(0)
    twin = halves(rng, 1, dim)
    truth: Truth = {f"twin {i:03}": (twin, [None]) for i in rng.permutation(201)}
    truth |= {f"other {i}": (halves(rng, 2, dim), [None, "aerial"]) for i in range(30)}
    prototypes = filled(truth, dim)
    for queries in (twin.astype(np.float32), *(units(rng, count, dim) for count in (1, 7, 20))):
        assert_exact(prototypes, truth, queries, (3, 40))


def test_an_identity_that_fills_the_best_pieces_hides_nobody() -> None:
    rng = np.random.default_rng(5)
    query = units(rng, 1, 48)
    near = (query + 0.01 * rng.normal(size=(1500, 48))).astype(np.float16)
    truth: Truth = {f"other {i}": (halves(rng, 3, 48), platforms(rng, 3)) for i in range(100)}
    truth["near"] = (near, platforms(rng, 1500))
    truth |= {f"later {i}": (halves(rng, 3, 48), platforms(rng, 3)) for i in range(100)}
    assert_exact(filled(truth, 48), truth, query, (1, 2, 10, 250))


def test_of_equally_good_prototypes_the_first_platform_is_told() -> None:
    vector = np.array([[1, 0]], np.float16)
    prototypes = Prototypes(2)
    query = np.array([[0.5, 0.25]], np.float32)
    for seen in (["aerial", "ground"], ["aerial", None, "ground"], ["aerial", "aerial"]):
        prototypes.put("a", np.repeat(vector, len(seen), axis=0), seen)
        wanted = next(p for p in ORDER if p in seen)
        assert prototypes.search(query, 1) == [[Match("a", 0.5, wanted)]]
    prototypes.put("a", np.array([[0, 1], [1, 0]], np.float16), [None, "aerial"])
    assert prototypes.search(query, 1) == [[Match("a", 0.5, "aerial")]]


def test_search_stays_exact_while_people_come_change_and_go() -> None:
    """Rows of one identity get scattered over blocks, and rows of those who went are used again."""
    rng = np.random.default_rng(11)
    truth: Truth = {}
    prototypes = Prototypes(24)
    for _ in range(200):
        name = f"p{rng.integers(40)}"
        if rng.random() < 0.4:
            truth.pop(name, None)
            prototypes.remove(name)
        else:
            n = int(rng.integers(1, 120))
            truth[name] = (halves(rng, n, 24), platforms(rng, n))
            prototypes.put(name, *truth[name])
        assert len(prototypes) == sum(len(vectors) for vectors, _ in truth.values())
        assert sorted(prototypes.identities) == sorted(truth)
        assert_exact(prototypes, truth, units(rng, 1, 24), (1, 7))
    assert prototypes.nbytes < 2 * (120 * 40 + BLOCK) * 24 * 2


def test_batches_and_places_do_not_change_scores() -> None:
    rng = np.random.default_rng(3)
    truth: Truth = {f"p{i}": (halves(rng, 3, 1280), platforms(rng, 3)) for i in range(100)}
    queries = units(rng, 40, 1280)
    found = filled(truth, 1280).search(queries, 100)
    turned = filled(dict(reversed(truth.items())), 1280)
    assert [turned.search(query[None], 100)[0] for query in queries] == found


def test_nobody_and_nothing() -> None:
    rng = np.random.default_rng(0)
    prototypes = Prototypes(8)
    assert prototypes.search(units(rng, 2, 8), 3) == [[], []]
    assert (len(prototypes), prototypes.identities) == (0, [])
    prototypes.remove("nobody")
    prototypes.put("a", halves(rng, 2, 8), [None, None])
    assert prototypes.search(np.zeros((0, 8), np.float32), 3) == []
    prototypes.remove("a")
    assert prototypes.search(units(rng, 2, 8), 3) == [[], []]
    assert len(prototypes) == 0


@pytest.mark.parametrize(
    ("vectors", "seen", "words"),
    [
        (np.ones((1, 7), np.float16), [None], "must be .n, 8.*found .1, 7."),
        (np.ones((0, 8), np.float16), [], "n at least 1"),
        (np.ones((2, 8), np.float16), [None], "must be 2 of None, ground, aerial"),
        (np.ones((1, 8), np.float16), ["sea"], "found .'sea'."),
        (np.full((1, 8), np.nan, np.float16), [None], "finite"),
    ],
)
def test_a_refused_put_changes_nothing(vectors: Halves, seen: list[str | None], words: str) -> None:
    prototypes = Prototypes(8)
    prototypes.put("a", np.eye(8, dtype=np.float16)[:2], ["ground", None])
    before = prototypes.search(np.ones((1, 8), np.float32), 1)
    with pytest.raises(GalleryError, match=words):
        prototypes.put("a", vectors, seen)
    assert prototypes.search(np.ones((1, 8), np.float32), 1) == before


def test_a_query_that_is_not_finite_is_refused() -> None:
    prototypes = Prototypes(2)
    prototypes.put("a", np.eye(2, dtype=np.float16), [None, None])
    with pytest.raises(GalleryError, match="finite"):
        prototypes.search(np.array([[1, np.nan]], np.float32), 1)


def test_removed_and_replaced_vectors_are_overwritten() -> None:
    rng = np.random.default_rng(2)
    prototypes = Prototypes(16)
    first, second, other = (halves(rng, 5, 16) for _ in range(3))
    prototypes.put("a", first, [None] * 5)
    prototypes.put("b", other, [None] * 5)
    prototypes.put("a", second[:2], [None] * 2)
    held = b"".join(block.tobytes() for block in prototypes._blocks)
    assert not any(vector.tobytes() in held for vector in first)
    assert all(vector.tobytes() in held for vector in [*second[:2], *other])
    prototypes.remove("b")
    held = b"".join(block.tobytes() for block in prototypes._blocks)
    assert not any(vector.tobytes() in held for vector in other)


def every_half() -> Halves:
    """All finite float16 numbers."""
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return numbers[np.isfinite(numbers)]


def test_widening_is_exact_for_every_finite_half() -> None:
    numbers = every_half()
    block = numbers[: len(numbers) // 8 * 8].reshape(-1, 8)
    wide = widened(block, np.empty(block.shape, np.int32))
    assert wide.tobytes() == block.astype(np.float32).tobytes()


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e38])
@pytest.mark.parametrize("span", ["small", "zero", "large", "all"])
def test_extreme_numbers(size: float, span: str) -> None:
    rng = np.random.default_rng(7)
    magnitude = np.abs(every_half().astype(np.float32))
    chosen = {
        "small": magnitude < 2.0**-14,
        "zero": magnitude == 0,
        "large": magnitude > 30_000,
        "all": magnitude >= 0,
    }
    numbers = every_half()[chosen[span]]
    truth: Truth = {f"p{i}": (rng.choice(numbers, (3, 40)), platforms(rng, 3)) for i in rng.permutation(90)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queries = (size * units(rng, 5, 40)).astype(np.float32)
        assert_exact(filled(truth, 40), truth, queries, (1, 10))
    assert_exact(filled(truth, 40), truth, np.zeros((1, 40), np.float32), (3,))


def test_a_thread_that_loses_small_numbers_still_searches_exactly() -> None:
    """As some libraries set the processor: every small half counts as zero in the matrix product."""
    rng = np.random.default_rng(9)
    numbers = every_half()
    small = numbers[np.abs(numbers.astype(np.float32)) < 2.0**-14]
    truth: Truth = {}
    for i in rng.permutation(400):
        vectors = rng.choice(small, (2, 64))
        vectors[:, 0] = rng.uniform(2.0**-14, 2.0**-13, 2)  # these alone would give another order
        truth[f"p{i}"] = (vectors, platforms(rng, 2))
    queries = units(rng, 4, 64)
    wanted = [brute_force(truth, query, 5) for query in queries]
    prototypes = filled(truth, 64)
    assert not loses_small_numbers()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps small numbers")
    try:
        assert loses_small_numbers()
        found = prototypes.search(queries, 5)
    finally:
        torch.set_flush_denormal(False)
    assert found == wanted


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 127, 128, 129, 512, 1280])
def test_exact_scores_do_not_depend_on_the_place(dim: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = halves(rng, 200, dim)
    query = units(rng, 1, dim)[0]
    scores = exact_scores(vectors, query)
    assert scores.dtype == np.float64
    for i in range(0, 200, 3):
        assert exact_scores(vectors[i : i + 1], query)[0] == scores[i]
    assert (exact_scores(np.asfortranarray(vectors), query) == scores).all()
    assert (exact_scores(vectors[::-1], query)[::-1] == scores).all()
    whole = vectors.astype(np.longdouble) @ query.astype(np.longdouble)
    np.testing.assert_allclose(scores, whole.astype(np.float64), atol=1e-14)
    assert exact_scores(vectors[:0], query).shape == (0,)


@pytest.mark.parametrize("each", [1, 10])
def test_memory_is_that_of_the_vectors(each: int) -> None:
    """At most 1.1 times the vectors in float16, with all labels; a search needs little more for a moment."""
    rng = np.random.default_rng(1)
    count, dim = 8_000, 1280
    vectors = halves(rng, 64, dim)
    size = count * dim * 2
    tracemalloc.start()
    try:
        prototypes = Prototypes(dim)
        for low in range(0, count, each):
            prototypes.put(f"person {low}", vectors[:each], ["ground"] * each)
        held = tracemalloc.get_traced_memory()[0]
        queries = units(rng, 32, dim)
        prototypes.search(queries[:1], 10)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        prototypes.search(queries, 10)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert prototypes.nbytes <= 1.1 * size
    assert held <= 1.1 * size
    assert abs(held - prototypes.nbytes) < 0.02 * size
    assert after - before < 0.01 * size  # caches of the interpreter take some 0.1 % at times
    assert peak - before < 0.05 * size + 2 * BLOCK * dim * 4 + count * 16
