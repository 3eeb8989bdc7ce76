"""Ranking metrics against golden numbers of the official code and a slow, obvious version."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.ranking import (
    RankingResult,
    bootstrap_interval,
    cosine_distance,
    distance_blocks,
    evaluate_embeddings,
    evaluate_ranking,
    paired_bootstrap,
    sign_flip_p_value,
)

TOLERANCE = 1e-6
Arrays = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module", params=["cams", "cross"])
def case(request: pytest.FixtureRequest) -> Iterator[Arrays]:
    name = f"{request.param}/"
    with np.load(Path(__file__).parent / "golden" / "evaluation.npz") as file:
        yield {key.removeprefix(name): file[key] for key in file.files if key.startswith(name)}


def test_cosine_distance_is_golden(case: Arrays) -> None:
    distance = cosine_distance(case["qf"].astype(np.float32), case["gf"].astype(np.float32))
    assert distance.dtype == np.float32
    np.testing.assert_allclose(distance, case["dist"], atol=TOLERANCE)


def test_metrics_are_golden(case: Arrays) -> None:
    result = evaluate_ranking(
        case["dist"], case["q_pids"], case["g_pids"], case["q_camids"], case["g_camids"]
    )
    np.testing.assert_allclose(result.cmc, case["cmc"], atol=TOLERANCE)
    np.testing.assert_allclose(result.cmc[:20], case["cmc_market20"], atol=TOLERANCE)
    assert result.map == pytest.approx(float(case["mAP"]), abs=TOLERANCE)
    assert result.map == pytest.approx(float(case["mAP_market"]), abs=TOLERANCE)
    assert result.map_xfd == pytest.approx(float(case["mAP_trapezoid_nocam"]), abs=TOLERANCE)


def test_foreign_cameras_give_the_golden_numbers_without_camera_rule(case: Arrays) -> None:
    nowhere = np.full(len(case["q_pids"]), -1)
    result = evaluate_ranking(case["dist"], case["q_pids"], case["g_pids"], nowhere, case["g_camids"])
    np.testing.assert_allclose(result.cmc, case["cmc_nocam"], atol=TOLERANCE)


def slow_query(row: list[float], ids: list[int], cams: list[int], own: tuple[int, int]) -> tuple[int, float]:
    """First hit rank and AP of one query, by the definition."""
    rank = hits = first = 0
    precisions = []
    for _, g in sorted((distance, g) for g, distance in enumerate(row)):
        if (ids[g], cams[g]) == own:
            continue
        rank += 1
        if ids[g] == own[0]:
            hits += 1
            first = first or rank
            precisions.append(hits / rank)
    return first, float(np.mean(precisions)) if precisions else float("nan")


def test_queries_one_by_one_with_ties_and_invalid_ones() -> None:
    rng = np.random.default_rng(4)
    distance = rng.integers(0, 6, size=(40, 30)) / 4  # few values: many ties
    query_ids, gallery_ids = rng.integers(0, 12, size=40), rng.integers(0, 10, size=30)
    query_cams, gallery_cams = rng.integers(0, 3, size=40), rng.integers(0, 3, size=30)
    result = evaluate_ranking(distance, query_ids, gallery_ids, query_cams, gallery_cams)
    for q in range(40):
        own = (int(query_ids[q]), int(query_cams[q]))
        first, ap = slow_query(distance[q].tolist(), gallery_ids.tolist(), gallery_cams.tolist(), own)
        assert result.first_hit_rank[q] == first
        assert result.valid[q] == (first > 0)
        np.testing.assert_allclose(result.ap[q], ap, equal_nan=True)
    assert not result.valid.all()
    assert result.map == pytest.approx(float(result.ap[result.valid].mean()))
    assert result.cmc[-1] == 1


def sorted_version(
    distance: NDArray[np.float64], labels: tuple[NDArray[np.int64], ...]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """First hit ranks, AP and trapezoid AP by a stable sort of every row: slow and obvious."""
    ids, other_ids, cams, other_cams = labels
    first, ap, ap_xfd = np.zeros(len(ids), np.int64), np.full(len(ids), np.nan), np.full(len(ids), np.nan)
    for i in range(len(ids)):
        order = np.argsort(distance[i], kind="stable")
        hit = other_ids[order] == ids[i]
        rank = np.flatnonzero(hit)
        if len(rank):
            before = [n / r if r else 1.0 for n, r in enumerate(rank)]
            ap_xfd[i] = np.mean([((n + 1) / (r + 1) + before[n]) / 2 for n, r in enumerate(rank)])
        rank = np.flatnonzero(hit[~(hit & (other_cams[order] == cams[i]))])
        if len(rank):
            first[i], ap[i] = rank[0] + 1, np.mean([(n + 1) / (r + 1) for n, r in enumerate(rank)])
    return first, ap, ap_xfd


def equals_sorted_version(
    result: RankingResult, distance: NDArray[np.float64], labels: tuple[NDArray[np.int64], ...]
) -> bool:
    """Ranks to the last one, precisions to the rounding of their means."""
    first, ap, ap_xfd = sorted_version(distance, labels)
    np.testing.assert_array_equal(result.first_hit_rank, first)
    np.testing.assert_allclose(result.ap, ap, rtol=1e-13, equal_nan=True)
    np.testing.assert_allclose(result.ap_xfd, ap_xfd, rtol=1e-13, equal_nan=True)
    cmc = [np.mean(first[first > 0] <= k + 1) for k in range(distance.shape[1])]
    np.testing.assert_allclose(result.cmc, cmc, rtol=1e-13)
    assert result.map == pytest.approx(float(np.nanmean(ap)), rel=1e-13)
    assert result.map_xfd == pytest.approx(float(np.nanmean(ap_xfd)), rel=1e-13)
    return True


def random_labels(rng: np.random.Generator, queries: int, entries: int) -> tuple[NDArray[np.int64], ...]:
    """Query ids, gallery ids, query cameras and gallery cameras; some persons are on one side only."""
    return (
        rng.integers(0, 12, queries),
        rng.integers(2, 14, entries),
        rng.integers(0, 3, queries),
        rng.integers(0, 3, entries),
    )


@pytest.mark.parametrize("sort_above", [0, 5, 512])  # both ways to a rank, and some queries each way
@pytest.mark.parametrize("values", [1, 2, 6, 10_000])  # from nothing but ties to nearly none
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_are_those_of_a_stable_sort(
    sort_above: int, values: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3clip_runtime.inference.matches.SORT_ABOVE", sort_above)
    rng = np.random.default_rng(values)
    distance: NDArray[np.float64] = (rng.integers(0, values, (150, 90)) / -4).astype(dtype)
    distance[::7] *= 0  # zeros of both signs are equal
    labels = random_labels(rng, 150, 90)
    assert equals_sorted_version(evaluate_ranking(distance, *labels, threads=3), distance, labels)
    assert equals_sorted_version(
        evaluate_ranking(np.asfortranarray(distance), *labels, threads=1), distance, labels
    )


@pytest.mark.parametrize("block_bytes", [1, 4 * 90 * 7, 1 << 28])  # one query a block, seven, all
def test_embeddings_give_the_result_of_the_whole_matrix_to_the_last_tie(block_bytes: int) -> None:
    # Four numbers of -1 or 1: unit length 2 and all products are exact, and there are many ties.
    rng = np.random.default_rng(1)
    query, gallery = (rng.choice([-1, 1], (count, 4)).astype(np.float32) for count in (150, 90))
    labels = random_labels(rng, 150, 90)
    distance = -(query @ gallery.T) / 4
    result = evaluate_embeddings(3 * query, gallery, *labels, block_bytes=block_bytes)
    assert equals_sorted_version(result, distance, labels)
    blocks = [
        (first, block.copy()) for first, block in distance_blocks(query, gallery, block_bytes=block_bytes)
    ]
    assert [first for first, _ in blocks] == list(range(0, 150, max(1, min(block_bytes // 360, 150))))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), distance)


def test_embeddings_are_checked_like_distances(case: Arrays) -> None:
    query, gallery = case["qf"].astype(np.float32), case["gf"].astype(np.float32)
    labels = (case["q_pids"], case["g_pids"], case["q_camids"], case["g_camids"])
    result = evaluate_embeddings(query, gallery, *labels)
    assert result.map == pytest.approx(float(case["mAP"]), abs=TOLERANCE)
    assert result.map_xfd == pytest.approx(float(case["mAP_trapezoid_nocam"]), abs=TOLERANCE)
    with pytest.raises(DataError, match="one model"):
        evaluate_embeddings(query, gallery[:, :-1], *labels)
    with pytest.raises(DataError, match="query embeddings must be finite"):
        evaluate_embeddings(query * np.float32(np.inf), gallery, *labels)
    with pytest.raises(DataError, match="both above 0"):
        evaluate_embeddings(query[:0], gallery, *labels)
    with pytest.raises(DataError, match="cams must have shapes"):
        evaluate_embeddings(query, gallery, *labels[:2], labels[3], labels[2])


def test_trapezoid_of_one_match_is_half_of_its_ordinary_precision_but_for_rank_one() -> None:
    result = evaluate_ranking(np.array([[0.0, 1.0], [1.0, 0.0]]), [7, 7], [7, 8], [0, 0], [1, 1])
    np.testing.assert_allclose(result.ap, [1.0, 0.5])
    np.testing.assert_allclose(result.ap_xfd, [1.0, 0.25])


def test_names_serve_as_cameras() -> None:
    distance = np.array([[0.0, 0.5, 1.0]])
    result = evaluate_ranking(distance, [3], [3, 4, 3], ["aerial/cam0"], ["aerial/cam0", "b", "ground/cam0"])
    assert result.first_hit_rank.tolist() == [2]  # the nearest is the query's own camera and drops out


def test_bad_rankings() -> None:
    distance = np.zeros((2, 3))
    ids, cams = [1, 2, 3], [0, 0, 0]
    with pytest.raises(DataError, match=r"ids must have shapes \(2,\) and \(3,\)"):
        evaluate_ranking(distance, ids, ids, [1, 1], cams)
    with pytest.raises(DataError, match=r"cams must have shapes"):
        evaluate_ranking(distance, [1, 2], ids, cams, cams)
    with pytest.raises(DataError, match="one kind"):
        evaluate_ranking(distance, [1, 2], ids, ["a", "b"], cams)
    with pytest.raises(DataError, match="none of 2 queries"):
        evaluate_ranking(distance, [1, 9], ids, [0, 0], cams)
    with pytest.raises(DataError, match="NaN"):
        evaluate_ranking(distance * np.nan, [1, 2], ids, [1, 1], cams)
    with pytest.raises(DataError, match="both above 0"):
        evaluate_ranking(np.zeros((0, 3)), [], ids, [], cams)


def test_bad_embeddings() -> None:
    good = np.ones((2, 4), dtype=np.float32)
    with pytest.raises(DataError, match="one model"):
        cosine_distance(good, np.ones((3, 5), dtype=np.float32))
    with pytest.raises(DataError, match=r"gallery embeddings.* row 1"):
        cosine_distance(good, good * np.array([[1], [0]], dtype=np.float32))
    with pytest.raises(DataError, match=r"query embeddings.* row 0"):
        cosine_distance(good * np.float32(np.nan), good)


def test_bootstrap_agrees_with_the_normal_theory() -> None:
    values = np.random.default_rng(0).normal(2, 1, size=400)
    low, high = bootstrap_interval(values, samples=4000)
    expected = stats.norm.interval(0.95, loc=values.mean(), scale=values.std() / 20)
    np.testing.assert_allclose([low, high], expected, atol=0.01)
    assert bootstrap_interval(values, samples=4000) == (low, high)
    assert bootstrap_interval(values, samples=4000, seed=1) != (low, high)
    narrow = bootstrap_interval(values, level=0.5, samples=4000)
    assert low < narrow[0] < narrow[1] < high


def test_paired_bootstrap_sees_a_difference_that_separate_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(200)
    b = a - 0.02 + rng.normal(0, 0.01, size=200)
    difference = paired_bootstrap(a, b)
    assert difference.mean == pytest.approx(float((a - b).mean()))
    assert 0 < difference.low < difference.mean < difference.high
    assert bootstrap_interval(a)[0] < bootstrap_interval(b)[1]  # the separate intervals overlap
    assert paired_bootstrap(a, a) == (0, 0, 0)


def test_sign_flips_agree_with_all_sign_patterns() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.3, 0.8):
        difference = rng.normal(shift, 1, 12).round(1)  # rounded: ties between patterns, and a zero or two
        patterns = np.array(list(itertools.product((-1, 1), repeat=12)))
        extreme = np.abs(patterns @ difference) >= abs(difference.sum()) - 1e-9
        found = sign_flip_p_value(difference, np.zeros(12), samples=40_000)
        spread = np.sqrt(extreme.mean() * (1 - extreme.mean()) / 40_000)
        assert found == pytest.approx(extreme.mean(), abs=4 * spread + 1e-4)
        assert sign_flip_p_value(np.zeros(12), difference, samples=40_000) == found  # two-sided


def test_sign_flips_at_the_ends() -> None:
    same = np.random.default_rng(0).random(30)
    assert sign_flip_p_value(same, same) == 1
    assert sign_flip_p_value(same + 1, same, samples=999) == 1 / 1000  # 2^-29: no random pattern is as far
    assert sign_flip_p_value(np.ones(1), np.zeros(1)) == 1  # one query proves nothing
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 60))
    assert sign_flip_p_value(a, b, seed=5) == sign_flip_p_value(a, b, seed=5)
    assert sign_flip_p_value(a, b, seed=5) != sign_flip_p_value(a, b, seed=6)
    with pytest.raises(DataError, match="same queries"):
        sign_flip_p_value(a, b[:-1])
    with pytest.raises(DataError, match="without NaN"):
        sign_flip_p_value(a, b * np.nan)
    with pytest.raises(ConfigError, match="samples >= 1"):
        sign_flip_p_value(a, b, samples=0)


def test_sign_flips_are_uniform_when_both_models_are_equally_good() -> None:
    rng = np.random.default_rng(2)
    p_values = [sign_flip_p_value(*rng.random((2, 25)), samples=200, seed=i) for i in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_bootstrap_memory_does_not_change_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("s3clip_runtime.inference.ranking.DRAWS_AT_ONCE", 1)
    assert bootstrap_interval(values) == whole


def test_bad_bootstraps() -> None:
    with pytest.raises(DataError, match="without NaN"):
        bootstrap_interval(np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="non-empty"):
        bootstrap_interval(np.zeros(0))
    with pytest.raises(ConfigError, match="0 < level < 1"):
        bootstrap_interval(np.ones(3), level=95)
    with pytest.raises(DataError, match="same queries"):
        paired_bootstrap(np.ones(3), np.ones(4))
