"""Ranking metrics against golden numbers of the official code and a slow, obvious version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.ranking import (
    bootstrap_interval,
    cosine_distance,
    evaluate_ranking,
    paired_bootstrap,
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


def test_bad_bootstraps() -> None:
    with pytest.raises(DataError, match="without NaN"):
        bootstrap_interval(np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="non-empty"):
        bootstrap_interval(np.zeros(0))
    with pytest.raises(ConfigError, match="0 < level < 1"):
        bootstrap_interval(np.ones(3), level=95)
    with pytest.raises(DataError, match="same queries"):
        paired_bootstrap(np.ones(3), np.ones(4))
