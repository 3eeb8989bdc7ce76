"""The choice of calibration tracklets against slow and obvious versions of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_calib.choose import check_pool, choose, split
from s3clip_calib.statistics import describe
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.tracklets import Tracklet, read_clip, read_tracklets

F32 = NDArray[np.float32]


def unit(rows: np.ndarray) -> F32:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def blocks(embeddings: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """The space of the choice, in float64 and by its definition: pairs of rows tell the scale."""
    parts = []
    z = (statistics - statistics.mean(axis=0)) / statistics.std(axis=0)
    for part in (embeddings.astype(np.float64), z.astype(np.float64)):
        pairs = np.square(part[:, None] - part[None]).sum(axis=-1)
        parts.append(part / np.sqrt(pairs.mean() / 2))  # mean squared distance is twice the variance
    return np.hstack(parts)


def slow_choice(points: np.ndarray, groups: list[str], count: int, first: int) -> list[int]:
    """Greedy k-centre, a round of all groups at a time, with every distance computed anew."""
    chosen = [first]
    while len(chosen) < count:
        served = Counter(groups[row] for row in chosen)
        free = [row for row in range(len(points)) if row not in chosen]
        least = min(served[groups[row]] for row in free)
        allowed = [row for row in free if served[groups[row]] == least]
        chosen.append(
            max(allowed, key=lambda row: min(np.linalg.norm(points[row] - points[c]) for c in chosen))
        )
    return chosen


def radius(points: np.ndarray, chosen: list[int]) -> float:
    """How far the worst row is from the nearest chosen one."""
    return float(np.linalg.norm(points[:, None] - points[chosen][None], axis=-1).min(axis=1).max())


def clustered(seed: int, count: int = 120) -> tuple[F32, F32]:
    """Twelve clusters of people of very different sizes, under a few kinds of light."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(12, 0.4))
    cluster = rng.choice(12, count, p=share)
    embeddings = rng.normal(size=(12, 32))[cluster] + 0.15 * rng.normal(size=(count, 32))
    statistics = rng.normal(size=(12, 6))[cluster] + 0.1 * rng.normal(size=(count, 6))
    return unit(embeddings + 1), np.asarray(statistics * [1, 10, 0.1, 1, 1, 1] + 5, np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_that_of_the_slow_version(seed: int) -> None:
    embeddings, statistics = clustered(seed, 60)
    groups = [str(name) for name in np.random.default_rng(seed).choice(list("abc"), 60, p=[0.7, 0.25, 0.05])]
    found = choose(embeddings, statistics, groups, 40, seed)
    assert len(set(found)) == 40
    assert found == slow_choice(blocks(embeddings, statistics), groups, 40, found[0])


def test_the_radius_is_at_most_twice_the_best_one() -> None:
    """What greedy k-centre promises, against all choices of three of sixteen."""
    for seed in range(10):
        embeddings, statistics = clustered(seed, 16)
        points = blocks(embeddings, statistics)
        best = min(radius(points, list(rows)) for rows in combinations(range(16), 3))
        assert radius(points, choose(embeddings, statistics, ["all"] * 16, 3, seed)) <= 2 * best + 1e-6


def test_it_covers_better_than_a_random_choice() -> None:
    for data in range(5):
        embeddings, statistics = clustered(data)
        points = blocks(embeddings, statistics)
        groups = ["all"] * len(points)
        greedy = [radius(points, choose(embeddings, statistics, groups, 12, seed)) for seed in range(20)]
        rng = np.random.default_rng(data)
        random = [radius(points, rng.choice(len(points), 12, replace=False).tolist()) for _ in range(200)]
        assert max(greedy) < np.quantile(random, 0.02)


@pytest.mark.parametrize(
    ("sizes", "count", "shares"),
    [
        ({"a": 50, "b": 50}, 8, {"a": 4, "b": 4}),
        ({"a": 50, "b": 2, "c": 50}, 12, {"a": 5, "b": 2, "c": 5}),
        ({"a": 90, "b": 1, "c": 3, "d": 6}, 16, {"a": 6, "b": 1, "c": 3, "d": 6}),
        ({"a": 3, "b": 4}, 7, {"a": 3, "b": 4}),
    ],
)
def test_each_group_gets_its_share(sizes: dict[str, int], count: int, shares: dict[str, int]) -> None:
    groups = [name for name, size in sizes.items() for _ in range(size)]
    embeddings, statistics = clustered(1, len(groups))
    for seed in range(10):
        chosen = choose(embeddings, statistics, groups, count, seed)
        assert Counter(groups[row] for row in chosen) == shares
        # So it is at every length: no group is more than one ahead of one that has tracklets left.
        for length in range(1, count):
            served = Counter(groups[row] for row in chosen[:length])
            behind = [served[name] for name, size in sizes.items() if served[name] < size]
            assert max(served.values()) <= min(behind) + 1


def test_a_smaller_choice_is_the_beginning_of_a_larger_one() -> None:
    embeddings, statistics = clustered(4)
    groups = [f"cam{i % 3}" for i in range(len(embeddings))]
    full = choose(embeddings, statistics, groups, 32, 7)
    for count in (1, 2, 8, 31):
        assert choose(embeddings, statistics, groups, count, 7) == full[:count]
    assert choose(embeddings, statistics, groups, 32, 7) == full
    assert len({choose(embeddings, statistics, groups, 1, seed)[0] for seed in range(40)}) > 10


def test_units_and_constant_columns_change_nothing() -> None:
    embeddings, statistics = clustered(2)
    groups = ["all"] * len(embeddings)
    expected = choose(embeddings, statistics, groups, 20, 0)
    # 0.1 has no exact float32: its mean differs from it in the last digit, which must not become a spread.
    dull = np.full((len(embeddings), 2), [0.1, 1234.567], np.float32)
    assert choose(embeddings, np.hstack([statistics, dull]), groups, 20, 0) == expected
    assert choose(embeddings, statistics * np.float32(64), groups, 20, 0) == expected
    assert choose(np.hstack([embeddings, dull]), statistics, groups, 20, 0) == expected
    # So must the last digit itself, in which one picture's statistic may differ from the next one's.
    dull[::3] = np.nextafter(dull[::3], np.float32(0))
    assert choose(embeddings, np.hstack([statistics, dull]), groups, 20, 0) == expected


def test_each_part_counts_as_much_as_the_other() -> None:
    """A network that puts all people near to each other does not silence what the embeddings tell."""
    rng = np.random.default_rng(0)
    embeddings = unit(1 + 1e-3 * rng.normal(size=(100, 64)))
    statistics = np.asarray(rng.normal(size=(100, 6)), np.float32)
    found = choose(embeddings, statistics, ["all"] * 100, 10, 0)
    assert found == slow_choice(blocks(embeddings, statistics), ["all"] * 100, 10, found[0])
    assert found[1:] != slow_choice(statistics, ["all"] * 100, 10, found[0])[1:]


@pytest.mark.parametrize("part", ["embeddings", "statistics", "both"])
def test_parts_that_are_the_same_for_all(part: str) -> None:
    embeddings, statistics = clustered(3, 30)
    groups = ["all"] * 30
    if part != "statistics":
        embeddings[:] = embeddings[0]
        embeddings[::3] = np.nextafter(embeddings[0], np.float32(0))
    if part != "embeddings":
        statistics[:] = statistics[0]
    found = choose(embeddings, statistics, groups, 30, 0)
    assert sorted(found) == list(range(30))
    nothing = np.zeros((30, 1), np.float32)
    alive = {"embeddings": statistics, "statistics": embeddings, "both": nothing}[part]
    if part == "embeddings":
        alive = (alive - alive.mean(axis=0)) / alive.std(axis=0)
    assert found == slow_choice(alive.astype(np.float64), groups, 30, found[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(value: float) -> None:
    embeddings, statistics = clustered(0, 10)
    for part in (embeddings, statistics):
        kept = part[3, 1]
        part[3, 1] = value
        with pytest.raises(DataError, match="finite numbers, found NaN or infinity; check the crops"):
            choose(embeddings, statistics, ["all"] * 10, 2, 0)
        part[3, 1] = kept
    assert len(choose(embeddings, statistics, ["all"] * 10, 2, 0)) == 2


def test_more_than_there_are() -> None:
    embeddings, statistics = clustered(0, 10)
    with pytest.raises(DataError, match="11 calibration tracklets were asked for, found 10 to choose from"):
        choose(embeddings, statistics, ["all"] * 10, 11, 0)


def test_large_pools_are_fast() -> None:
    rng = np.random.default_rng(0)
    embeddings = unit(rng.normal(size=(5000, 1280)).astype(np.float32))
    statistics = rng.normal(size=(5000, 6)).astype(np.float32)
    began_s = time.process_time()
    choose(embeddings, statistics, [f"cam{i % 7}" for i in range(5000)], 64, 0)
    assert time.process_time() - began_s < 20  # 2 s here


def made(name: str, camera: str = "ground/cam0", identity: str | None = None) -> Tracklet:
    return Tracklet(name, (Path(name),), 0, camera, identity, ((20, 10),))


def people(count: int, cameras: int, seed: int) -> list[Tracklet]:
    """Each with one to five tracklets, of cameras that see very different numbers of people."""
    rng = np.random.default_rng(seed)
    weights = 0.5 ** np.arange(cameras)
    return [
        made(f"{i:04}/{k}", f"ground/cam{rng.choice(cameras, p=weights / weights.sum())}", f"{i:04}")
        for i in range(count)
        for k in range(int(rng.integers(1, 6)))
    ]


@pytest.mark.parametrize("seed", range(10))
def test_the_split_keeps_people_whole_and_cameras_on_both_sides(seed: int) -> None:
    tracklets = people(40, 4, seed)
    pool, held_out = split(tracklets, seed)
    assert sorted(tracklet.name for tracklet in pool + held_out) == [tracklet.name for tracklet in tracklets]
    assert not {tracklet.identity for tracklet in pool} & {tracklet.identity for tracklet in held_out}
    seen_by = Counter(camera for camera, _ in {(t.camera, t.identity) for t in tracklets})
    shared = {camera for camera, persons in seen_by.items() if persons > 1}
    for side in (pool, held_out):
        assert shared <= {tracklet.camera for tracklet in side}
        assert [tracklet.name for tracklet in side] == sorted(tracklet.name for tracklet in side)
    assert abs(len(pool) - len(held_out)) <= 4


def lacking(sides: Iterable[Iterable[Tracklet]], cameras: set[str]) -> int:
    return sum(len(cameras - {tracklet.camera for tracklet in side}) for side in sides)


def test_the_split_is_the_best_of_all_splits() -> None:
    """Few people and many cameras, so that chance alone leaves cameras on one side."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        tracklets = people(int(rng.integers(4, 9)), int(rng.integers(2, 6)), seed)
        cameras = {tracklet.camera for tracklet in tracklets}
        names = sorted({tracklet.identity for tracklet in tracklets if tracklet.identity})
        every = (
            [[t for t in tracklets if (t.identity in some) == side] for side in (True, False)]
            for size in range(1, len(names))
            for some in combinations(names, size)
        )
        assert lacking(split(tracklets, 0), cameras) == min(lacking(sides, cameras) for sides in every)


def test_people_who_share_no_camera_are_halved_too() -> None:
    pool, held_out = split([made(str(i), f"ground/cam{i}") for i in range(9)], 0)
    assert {len(pool), len(held_out)} == {4, 5}


def test_the_split_halves_each_camera() -> None:
    tracklets = people(200, 3, 0)
    pool, _ = split(tracklets, 0)
    every = Counter(tracklet.camera for tracklet in tracklets)
    mine = Counter(tracklet.camera for tracklet in pool)
    for camera, count in every.items():
        assert mine[camera] == pytest.approx(count / 2, abs=4)


def test_a_camera_chain_that_has_just_one_solution() -> None:
    """Each camera saw two of four people: a and c against b and d, or a side lacks a camera."""
    chain = {"a": "12", "b": "23", "c": "34", "d": "41"}
    tracklets = [made(f"{who}{camera}", camera, who) for who, seen in chain.items() for camera in seen]
    for seed in range(20):
        pool, held_out = split(tracklets, seed)
        assert {tracklet.camera for tracklet in pool} == set("1234")
        assert {tracklet.camera for tracklet in held_out} == set("1234")


def test_the_split_is_decided_by_the_seed_alone() -> None:
    tracklets = people(30, 3, 0)
    shuffled = [tracklets[i] for i in np.random.default_rng(1).permutation(len(tracklets))]
    assert split(tracklets, 5) == split(shuffled, 5)
    pools = {tuple(tracklet.name for tracklet in split(tracklets, seed)[0]) for seed in range(10)}
    assert len(pools) > 5


def test_tracklets_without_identity_stand_for_themselves() -> None:
    tracklets = [made(f"cam{i % 2}_{i}", f"ground/cam{i % 2}") for i in range(11)]
    pool, held_out = split(tracklets, 0)
    for side in (pool, held_out):
        assert sorted(Counter(tracklet.camera for tracklet in side).values()) in ([2, 3], [3, 3])
    # An identity that is called as a tracklet is somebody else.
    pool, held_out = split([made("7"), made("b", identity="7")], 0)
    assert len(pool) == len(held_out) == 1


def test_what_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"two people or more.*found no tracklet; add tracklets of others"):
        split([], 0)
    with pytest.raises(DataError, match=r"two people or more.*found one tracklet; add"):
        split([made("a")], 0)
    with pytest.raises(
        DataError, match=r"found only identity '0007' \(the folder below the platform's\); add"
    ):
        split([made("a", identity="0007"), made("b", identity="0007")], 0)


def test_pools_that_ranges_cannot_come_from() -> None:
    two = [made("a", "ground/cam0"), made("b", "aerial/cam0")]
    check_pool(two, 2)
    with pytest.raises(DataError, match="a calibration pool must have 2 tracklets or more, found 1; add"):
        check_pool(two[:1], 1)
    with pytest.raises(DataError, match="found 0; add"):
        check_pool([], 1)
    with pytest.raises(
        DataError, match=r"3 calibration tracklets were asked for, found 2 .*ask for at most 2"
    ):
        check_pool(two, 3)
    with pytest.raises(DataError) as caught:
        check_pool([made("a"), made("b")], 2)
    assert str(caught.value).startswith(
        "calibration tracklets must be of two cameras or more, found only ground/cam0: ranges from one "
        "camera's light and distance do not hold for another; add"
    )


def test_from_a_folder_to_a_choice(tiny_world: Path) -> None:
    tracklets = read_tracklets(tiny_world)
    pool, held_out = split(tracklets, 0)
    assert abs(len(pool) - len(held_out)) <= 4
    check_pool(pool, 8)
    statistics = np.stack([describe(read_clip(tracklet)) for tracklet in pool])
    assert np.isfinite(statistics).all()
    embeddings = unit(np.random.default_rng(0).normal(size=(len(pool), 16)))
    chosen = choose(embeddings, statistics, [tracklet.camera for tracklet in pool], 8, 0)
    assert Counter(pool[row].camera for row in chosen) == {
        f"{platform}/{platform}{number}": 2 for platform in ("ground", "aerial") for number in range(2)
    }
