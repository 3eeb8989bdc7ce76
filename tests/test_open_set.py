"""Open-set thresholds against slow and obvious versions, and against strangers whom no calibration saw."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import binom

from s3clip_runtime.errors import ConfigError, DataError, GalleryError
from s3clip_runtime.gallery.open_set.calibrate import LEAST_ENROLLED, TRIALS, calibrate
from s3clip_runtime.gallery.open_set.decision import ALL_HEIGHTS, EDGES_PX, OpenSet, PairCalibration, decide
from s3clip_runtime.gallery.open_set.estimates import (
    ROUNDING,
    fnir_at,
    fpir_at,
    growth_threshold_at,
    logistic,
    people_needed,
    person_weights,
    threshold_at,
)
from s3clip_runtime.gallery.open_set.trials import Found, Looks, draw_enrolled, search_pair
from s3clip_runtime.gallery.records import Match

F32 = NDArray[np.float32]
DIM = 24


@dataclass(frozen=True)
class World:
    """People are Gaussian clouds, pushed onto the sphere; every tracklet has a camera of its own."""

    vectors: F32
    people: list[str]
    platforms: list[str]
    cameras: list[str]
    heights_px: list[float]


def looks_of(rng: np.random.Generator, people: int, looks: int) -> F32:
    """Float32 (people * looks, DIM), the looks of one person together."""
    raw = rng.normal(size=(people, 1, DIM)) + 0.8 * rng.normal(size=(people, looks, DIM))
    raw = raw.reshape(-1, DIM)
    vectors: F32 = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def world(seed: int, people: int, looks: int = 4, heights: tuple[float, ...] = (200.0,)) -> World:
    count = people * looks
    return World(
        looks_of(np.random.default_rng(seed), people, looks),
        [f"person {i // looks}" for i in range(count)],
        ["ground"] * count,
        [f"camera {i % looks}" for i in range(count)],
        [heights[i % len(heights)] for i in range(count)],
    )


def calibrated(made: World, fpir: float, seed: int = 0, identities: int | None = None) -> OpenSet:
    return calibrate(
        made.vectors,
        made.people,
        made.platforms,
        made.cameras,
        made.heights_px,
        data="made",
        fpir=fpir,
        seed=seed,
        identities=identities,
    )


def pooled(open_set: OpenSet, query: str = "ground", gallery: str = "ground") -> PairCalibration:
    (found,) = [
        pair
        for pair in open_set.pairs
        if (pair.query, pair.gallery, pair.bucket.name) == (query, gallery, ALL_HEIGHTS)
    ]
    return found


def top_scores(
    rng: np.random.Generator, enrolled: int, strangers: int, looks: int = 4
) -> NDArray[np.float64]:
    """Best scores of people whom nobody enrolled, in a gallery of others, all of them new."""
    looks = 4
    vectors = looks_of(rng, enrolled + strangers, looks)
    stored = vectors[: enrolled * looks].astype(np.float16).astype(np.float64)
    best: NDArray[np.float64] = (vectors[enrolled * looks :] @ stored.T).max(axis=1)
    return best


def true_fpir(threshold: float, seed: int, enrolled: int) -> float:
    rng = np.random.default_rng([seed, 1])
    return float(np.mean([np.mean(top_scores(rng, enrolled, 600) >= threshold) for _ in range(4)]))


@pytest.mark.slow
@pytest.mark.parametrize(("people", "fpir"), [(60, 0.05), (150, 0.02)])
def test_fpir_of_unseen_people_lies_within_its_interval(people: int, fpir: float) -> None:
    repeats = 40
    covered, truths = 0, []
    for seed in range(repeats):
        pair = pooled(calibrated(world(seed, people), fpir, seed))
        truths.append(true_fpir(pair.threshold, seed, people // 2))
        covered += pair.fpir.low <= truths[-1] <= pair.fpir.high
        assert pair.fpir.value <= fpir
    assert covered >= binom.ppf(1e-3, repeats, 0.95)
    # The promise of the threshold: the next stranger matches with this probability at most.
    assert np.mean(truths) <= fpir + 3 * np.std(truths) / np.sqrt(repeats)
    assert np.mean(truths) > fpir / 3  # and it is not kept by refusing everybody


def random_searches(seed: int, people: int = 40, rows: int = 600) -> Found:
    """People have very different numbers of searches; scores repeat."""
    rng = np.random.default_rng(seed)
    person = rng.integers(0, people, rows) * rng.integers(0, 2, rows)
    return Found(
        look=np.arange(rows),
        person=person,
        found=rng.integers(0, people, rows),
        score=np.round(rng.normal(0.5, 0.15, rows), 2),
        mated=rng.random(rows) < 0.5,
        gallery=np.arange(people),
        identities=20.0,
    )


def mean_of_people(person: NDArray[np.intp], values: NDArray[np.bool_]) -> float:
    return float(np.mean([values[person == one].mean() for one in sorted(set(person.tolist()))]))


@pytest.mark.parametrize("fpir", [0.1, 0.3, 0.77])
@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_smallest_that_holds(seed: int, fpir: float) -> None:
    strangers = random_searches(seed)
    people = len(set(strangers.person.tolist()))
    holds = [
        cosine
        for score in sorted(set(strangers.score.tolist()))
        if (people * mean_of_people(strangers.person, strangers.score >= (cosine := score + ROUNDING)) + 1)
        / (people + 1)
        <= fpir
    ]
    assert threshold_at(strangers, fpir) == pytest.approx(min(holds), abs=1e-12)
    assert fpir_at(strangers, min(holds), 0).value == pytest.approx(
        mean_of_people(strangers.person, strangers.score >= min(holds))
    )


def test_the_miss_rate_counts_people_and_wrong_names() -> None:
    enrolled = random_searches(3)
    right = enrolled.found == enrolled.person
    told = fnir_at(enrolled, 0.5, 0)
    assert told.value == pytest.approx(mean_of_people(enrolled.person, ~(right & (enrolled.score >= 0.5))))
    assert told.low <= told.value <= told.high


def test_intervals_of_no_error_at_all_keep_the_doubt_of_the_sample() -> None:
    strangers = random_searches(0)
    interval = fpir_at(strangers, 2.0, 0)
    people = len(strangers.gallery)
    assert (interval.value, interval.low) == (0.0, 0.0)
    assert binom.pmf(0, people, interval.high) == pytest.approx(0.025)


def test_the_interval_is_at_least_as_wide_as_the_rate_differs_between_worlds() -> None:
    """Both people of a false match count: with the searching one alone it would be a fourth too narrow."""
    people, threshold = 50, 0.6
    rates, widths = [], []
    for seed in range(150):
        made = world(seed, people)
        looks = Looks.of(made.vectors, made.people, made.platforms, made.cameras, made.heights_px)
        found = search_pair(looks, "ground", "ground", draw_enrolled(people, people // 2, TRIALS, seed))
        assert found is not None
        interval = fpir_at(found.within(~found.mated), threshold, seed)
        rates.append(interval.value)
        widths.append(interval.high - interval.low)
    # The spread of 150 rates is known to 6 %.
    assert 1 < np.mean(widths) / (2 * 1.96 * np.std(rates)) < 1.75


def test_searches_equal_those_by_hand() -> None:
    """Two platforms, people who lack one of them, tracklets that share a camera."""
    rng = np.random.default_rng(5)
    count, people = 60, 9
    person = rng.integers(0, people, count)
    platform = np.where((rng.random(count) < 0.5) & (person != 2), "ground", "aerial")
    camera = [f"{p}{rng.integers(0, 2)}" for p in platform]
    vectors = looks_of(rng, count, 1)
    looks = Looks.of(vectors, [str(p) for p in person], platform.tolist(), camera, [50.0] * count)
    enrolled = draw_enrolled(looks.people, 4, 6, seed=3)
    assert (enrolled.sum(axis=1) == 4).all()
    halves = vectors.astype(np.float16).astype(np.float64)
    for query in ("ground", "aerial"):
        for gallery in ("ground", "aerial"):
            truth = []
            for trial in enrolled:
                columns = [j for j in range(count) if platform[j] == gallery and trial[person[j]]]
                for i in np.flatnonzero(platform == query).tolist():
                    own = [j for j in columns if person[j] == person[i] and j != i]
                    far = [j for j in own if camera[j] != camera[i]]
                    mated = any(person[j] == person[i] for j in columns)
                    if mated and not own:
                        continue
                    allowed = [j for j in columns if person[j] != person[i]] + (far or own)
                    scores = {j: float(vectors[i].astype(np.float64) @ halves[j]) for j in allowed}
                    best = max(scores, key=lambda j: scores[j])
                    truth.append((i, person[best], mated, scores[best]))
            found = search_pair(looks, query, gallery, enrolled)
            assert found is not None
            told = zip(found.look, found.found, found.mated, found.score, strict=True)
            for (i, who, mated, score), row in zip(truth, told, strict=True):
                assert (i, who, mated) == row[:3]
                assert score == pytest.approx(row[3], abs=1e-6)


def test_probabilities_are_those_of_new_people() -> None:
    people, looks = 300, 4
    pair = pooled(calibrated(world(11, people, looks), 0.02))
    rng = np.random.default_rng(12)
    told, right = [], []
    for _ in range(10):
        vectors = looks_of(rng, people, looks).reshape(people, looks, DIM)
        # Half of the people are enrolled. First looks search, and do not find themselves.
        stored = vectors[: people // 2].reshape(-1, DIM).astype(np.float16).astype(np.float32)
        scores = vectors[:, 0] @ stored.T
        scores[np.arange(people // 2), np.arange(0, len(stored), looks)] = -1
        told += [pair.probability(float(score)) for score in scores.max(axis=1)]
        right += (scores.argmax(axis=1) // looks == np.arange(people)).tolist()
    order = np.argsort(told)
    for bin_ in np.array_split(order, 8):
        assert np.mean(np.array(told)[bin_]) == pytest.approx(np.mean(np.array(right)[bin_]), abs=0.07)
    assert np.mean(told) == pytest.approx(np.mean(right), abs=0.03)


def test_the_logistic_is_that_of_a_general_minimiser_and_stays_finite() -> None:
    searches = random_searches(7)
    right = searches.mated & (searches.found == searches.person)
    searches.score[right] += 0.2
    found = logistic(searches)
    assert found is not None
    weights = np.empty(len(right))
    for side in (searches.mated, ~searches.mated):
        weights[side] = person_weights(searches.person[side]) / 2

    def loss(point: NDArray[np.float64]) -> float:
        logits = point[0] * searches.score + point[1]
        return float(weights @ (np.logaddexp(0, logits) - right * logits))

    best = minimize(loss, np.zeros(2), tol=1e-12)
    assert loss(np.array(found)) == pytest.approx(best.fun, abs=1e-4)  # but for the mild ridge
    searches.score[:] = np.where(right, 0.9, 0.1)
    separable = logistic(searches)
    assert separable is not None
    assert 1 < separable[0] < 1e3
    searches.score[:] = np.where(right, 0.1, 0.9)
    assert logistic(searches) is None


def test_too_few_people_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(
        DataError,
        match=r"FPIR 0\.01 needs tracklets of 300 people .*found 60; give 240 more.*--fpir 0\.05",
    ):
        calibrated(world(0, 60), 0.01)
    assert pooled(calibrated(world(0, 60), 0.05)).non_mated_people == 60
    assert [people_needed(fpir) for fpir in (0.1, 0.05, 0.01, 0.07)] == [30, 60, 300, 43]
    with pytest.raises(DataError, match=rf"{LEAST_ENROLLED} people must have one tracklet to search and ano"):
        calibrated(world(0, 60, looks=1), 0.05)
    with pytest.raises(ConfigError, match=r"enrol must be at least 1 and fewer than the 60 of made.*60;"):
        calibrated(world(0, 60), 0.05, identities=60)
    with pytest.raises(ConfigError, match=r"fpir must be above 0 and below 1, found 1;"):
        calibrated(world(0, 60), 1.0)


def test_data_that_contradict_themselves_are_refused() -> None:
    made = world(0, 40)
    twins = World(
        np.tile(made.vectors[:80], (2, 1)), made.people, made.platforms, made.cameras, made.heights_px
    )
    with pytest.raises(DataError, match=r"too many strangers score 1: .* or people have two names"):
        calibrated(twins, 0.1)
    # Looks of one person lie opposite to each other, so that nobody is ever right.
    apart = made.vectors.reshape(40, 4, DIM)[:, :2] * np.array([1, -1], np.float32)[:, None]
    half = [i for i in range(160) if i % 4 < 2]
    backwards = World(
        apart.reshape(-1, DIM),
        [made.people[i] for i in half],
        made.platforms[:80],
        [made.cameras[i] for i in half],
        made.heights_px[:80],
    )
    with pytest.raises(DataError, match="higher scores must be right more often, and are not"):
        calibrated(backwards, 0.1)


def test_a_bucket_with_too_few_people_falls_back_to_all_heights_of_its_pair() -> None:
    made = world(4, 60, heights=(20.0, 50.0))
    few = [height if i < 40 * 4 or height < 32 else 20.0 for i, height in enumerate(made.heights_px)]
    open_set = calibrated(World(made.vectors, made.people, made.platforms, made.cameras, few), 0.05)
    assert [(refusal.bucket.name, refusal.non_mated_people) for refusal in open_set.refused] == [
        ("32-64 px", 40)
    ]
    low, high = open_set.find("ground", "ground", 20.0), open_set.find("ground", "ground", 50.0)
    assert low is not None
    assert high is not None
    assert (low.bucket.low_px, low.bucket.high_px) == (0, EDGES_PX[0])
    assert high.bucket.name == ALL_HEIGHTS
    assert open_set.find("aerial", "ground", 20.0) is None
    assert open_set.find("ground", "aerial", 20.0) is None
    edge = open_set.find("ground", "ground", EDGES_PX[0])
    assert edge is not None
    assert edge.bucket.name == ALL_HEIGHTS  # a height on the edge belongs to the bucket above


def test_thresholds_fall_as_the_target_grows_and_growth_is_stricter() -> None:
    made = world(2, 300)
    targets = (0.01, 0.02, 0.05, 0.1, 0.3)
    pairs = [pooled(calibrated(made, fpir)) for fpir in targets]
    for strict, loose in pairwise(pairs):
        assert strict.threshold >= loose.threshold
        assert strict.fnir.value >= loose.fnir.value
        assert strict.growth_threshold >= loose.growth_threshold
    assert [pair.growth_measured for pair in pairs] == [False, False, False, True, True]
    assert pairs[3].growth_threshold == pairs[0].threshold  # a tenth of 0.1
    assert all(pair.growth_threshold >= pair.threshold for pair in pairs)


def test_the_extrapolated_growth_threshold_lets_a_tenth_of_the_target_in() -> None:
    people, fpir = 100, 0.03
    told = [pooled(calibrated(world(seed, people), fpir, seed)).growth_threshold for seed in range(5)]
    strangers = top_scores(np.random.default_rng(9), people // 2, 4000)
    assert np.mean([np.mean(strangers >= growth) for growth in told]) <= fpir / 10


def test_growth_follows_an_exponential_tail() -> None:
    """The highest of P such scores lies at a rate of 1 / P times a factor whose mean logarithm is known."""
    people, fpir, scale, repeats = 200, 0.02, 0.05, 400
    rng = np.random.default_rng(4)
    row = np.arange(people)
    logs = []
    for _ in range(repeats):
        score = 0.3 + rng.exponential(scale, people)
        growth, measured = growth_threshold_at(
            Found(row, row, row, score, np.zeros(people, bool), row, people), fpir
        )
        assert not measured
        assert growth > score.max()
        logs.append(-(growth - 0.3) / scale)
    assert np.mean(logs) == pytest.approx(np.log(fpir / 10) - np.euler_gamma, abs=0.25)


def test_equal_arguments_give_equal_thresholds_and_survive_json() -> None:
    made = world(3, 60)
    first, again, other = (calibrated(made, 0.05, seed) for seed in (1, 1, 2))
    assert first.pairs == again.pairs
    assert first.pairs != other.pairs
    assert (first.people, first.tracklets, first.identities, first.trials) == (60, 240, 30, TRIALS)
    assert OpenSet.of_json(first.model_dump_json()) == first
    for damaged in ("", "{}", first.model_dump_json()[:-9], first.model_dump_json().replace("fnir", "far")):
        with pytest.raises(GalleryError, match=r"calibration must be one of this version.*calibrate again"):
            OpenSet.of_json(damaged)


def test_larger_galleries_are_warned_of_because_more_strangers_match() -> None:
    open_set = calibrated(world(6, 100), 0.05, identities=20)
    pair = pooled(open_set)
    assert (open_set.identities, pair.identities) == (20, 20)
    assert open_set.warns(40) is None
    warning = open_set.warns(41)
    assert warning is not None
    assert "has 41 identities and its thresholds were measured with 20" in warning
    small, large = (true_fpir(pair.threshold, 1, enrolled) for enrolled in (20, 80))
    assert large > 2 * small
    assert pooled(calibrated(world(6, 100), 0.05, identities=80)).threshold > pair.threshold


def matches(*found: tuple[str, float, str | None]) -> list[Match]:
    return [Match(*one) for one in found]


def test_decisions() -> None:
    open_set = calibrated(world(3, 60), 0.05)
    pair = pooled(open_set)
    at = pair.threshold
    both = matches(("Ann", at, "ground"), ("Bob", at - 0.1, "ground"))
    known = decide(both, open_set, None, platform="ground", height_px=200)
    assert (known.verdict, known.identity, known.nearest) == ("match", "Ann", "Ann")
    assert (known.score, known.threshold, known.runner_up) == (at, at, both[1])
    assert known.probability == pair.probability(at)
    below = decide(both[1:], open_set, None, platform="ground", height_px=200)
    assert (below.verdict, below.identity, below.nearest, below.runner_up) == ("unknown", None, "Bob", None)
    assert below.threshold == at

    for query, platform, calibration in (("aerial", "ground", open_set), ("ground", "ground", None)):
        lost = decide(matches(("Ann", 0.99, platform)), calibration, None, platform=query, height_px=200)
        assert (lost.verdict, lost.identity, lost.nearest) == ("uncalibrated", None, "Ann")
        assert (lost.threshold, lost.probability) == (None, None)
        own = decide(matches(("Ann", 0.99, platform)), calibration, 0.9, platform=query, height_px=200)
        assert (own.verdict, own.identity, own.threshold, own.probability) == ("match", "Ann", 0.9, None)
    stricter = decide(both, open_set, 1.0, platform="ground", height_px=200)
    assert (stricter.verdict, stricter.threshold) == ("unknown", 1.0)
    assert stricter.probability == known.probability

    for calibration in (None, open_set):
        empty = decide([], calibration, None, platform="ground", height_px=200)
        assert (empty.verdict, empty.score, empty.nearest, empty.runner_up) == ("unknown", -1.0, None, None)
    for wrong in (1.01, -2.0, float("nan")):
        with pytest.raises(GalleryError, match=r"threshold must be a cosine in \[-1, 1\], found"):
            decide(both, open_set, wrong, platform="ground", height_px=200)


def test_a_prototype_of_unknown_platform_takes_the_strictest_threshold() -> None:
    made = world(8, 60, looks=6)
    platforms = ["ground" if i % 6 < 3 else "aerial" for i in range(len(made.people))]
    vectors = made.vectors.copy()
    vectors[np.array(platforms) == "aerial", 0] += 1.0  # aerial looks resemble each other more
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    open_set = calibrated(World(vectors, made.people, platforms, made.cameras, made.heights_px), 0.05)
    own = [pooled(open_set, "aerial", gallery).threshold for gallery in ("ground", "aerial")]
    assert own[1] > own[0]
    told = decide(matches(("Ann", own[0], None)), open_set, None, platform="aerial", height_px=200)
    assert (told.verdict, told.threshold) == ("unknown", own[1])
