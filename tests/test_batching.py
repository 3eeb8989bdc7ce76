"""The triplet sampler: who meets whom, and that nobody is forgotten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from s3clip.batching import Triplet, TripletSampler
from s3clip.datasets import Tracklet
from s3clip_runtime.errors import ConfigError

HR_SIZE, LR_SIZE = (200, 100), (40, 20)


def tracklets_of(identity: int, hr: int, lr: int) -> list[Tracklet]:
    return [
        Tracklet(f"{kind}/{identity:04}/{i}", identity, "cam0", 0, Path(), ("frame.jpg",), (size,))
        for kind, count, size in (("hr", hr, HR_SIZE), ("lr", lr, LR_SIZE))
        for i in range(count)
    ]


def split(*counts: tuple[int, int]) -> list[Tracklet]:
    return [tracklet for i, (hr, lr) in enumerate(counts) for tracklet in tracklets_of(i, hr, lr)]


def shown(batches: list[list[Triplet]]) -> set[str]:
    """Names of all tracklets of an epoch."""
    triplets = [triplet for batch in batches for triplet in batch]
    return {t.name for triplet in triplets for t in (*triplet.low, triplet.hr) if t is not None}


MIXED = split((3, 5), (7, 2), (4, 4), (1, 1), (2, 9), (6, 0), (0, 5), (1, 0), (0, 1))


def test_same_seed_and_epoch_give_the_same_batches_in_any_input_order() -> None:
    first, second = (TripletSampler(order, 3, 2, seed=5) for order in (MIXED, MIXED[::-1]))
    assert second.epoch(0) == first.epoch(0)
    assert first.epoch(0) == first.epoch(0)  # a draw leaves no trace
    assert first.epoch(1) != first.epoch(0)
    assert TripletSampler(MIXED, 3, 2, seed=6).epoch(0) != first.epoch(0)


def test_batches_hold_groups_of_k_triplets_of_distinct_identities() -> None:
    for n in range(20):
        for batch in TripletSampler(MIXED, 3, 2, seed=0).epoch(n):
            identities = [triplet.identity for triplet in batch]
            assert len(batch) == 6
            assert identities[::2] == identities[1::2]
            assert len(set(identities)) == 3


def test_each_triplet_is_of_one_identity_and_its_slots_have_the_right_resolution() -> None:
    has_lr = {t.identity for t in MIXED if not t.hr}
    for batch in TripletSampler(MIXED, 3, 2, seed=0).epoch(0):
        for triplet in batch:
            assert {t.identity for t in triplet.low} == {triplet.identity}
            if triplet.hr is None:
                assert len(triplet.low) == 3
                assert not any(t.hr for t in triplet.low)
            else:
                assert triplet.hr.hr
                assert triplet.hr.identity == triplet.identity
                assert [t.hr for t in triplet.low] == [triplet.identity not in has_lr]


def test_every_tracklet_is_shown_when_no_group_is_dropped() -> None:
    data = split(
        (3, 5), (5, 2), (6, 6), (5, 0), (0, 5), (1, 6)
    )  # 6 identities x 3 groups of 2: 9 batches of 2
    for n in range(20):
        batches = TripletSampler(data, 2, 2, seed=1).epoch(n)
        assert len(batches) == 9
        assert shown(batches) == {t.name for t in data}


def test_every_tracklet_is_shown_over_some_epochs() -> None:
    sampler = TripletSampler(MIXED, 4, 2, seed=2)
    assert set().union(*(shown(sampler.epoch(n)) for n in range(20))) == {t.name for t in MIXED}


def test_groups_per_identity_are_the_larger_resolution_over_k_rounded_up() -> None:
    data = split((3, 5), (5, 2), (6, 6), (1, 1))  # K = 2: 3, 3, 3 and 1 groups, P = 2: none is dropped
    drawn = Counter(t.identity for batch in TripletSampler(data, 2, 2, seed=0).epoch(0) for t in batch)
    assert drawn == {0: 6, 1: 6, 2: 6, 3: 2}


@pytest.mark.parametrize("n", range(20))
def test_distinct_identities_where_only_a_careful_order_allows_it(n: int) -> None:
    # Identity 0 has 6 of 18 groups: it must be in each of the 6 batches. 18 groups, P = 3, none dropped.
    data = split((6, 6), (4, 4), (3, 3), (3, 3), (1, 1), (1, 1))
    batches = TripletSampler(data, 3, 1, seed=0).epoch(n)
    assert len(batches) == 6
    assert all(len({t.identity for t in batch}) == 3 for batch in batches)


def test_identities_repeat_only_when_too_few_are_left_and_never_fill_a_batch_alone() -> None:
    data = split((8, 8), (2, 2), (2, 2))  # P = 3: two distinct batches use up identities 1 and 2
    for n in range(10):
        batches = TripletSampler(data, 3, 1, seed=0).epoch(n)
        assert all(len({t.identity for t in batch}) >= 2 for batch in batches)
        assert sum(len({t.identity for t in batch}) == 3 for batch in batches) == 2


def test_batches_with_repeats_are_spread_over_the_epoch() -> None:
    data = split((5, 5), (3, 3), (1, 1))  # three batches, of which only one has three identities
    sampler = TripletSampler(data, 3, 1, seed=0)
    distinct_at = {
        position
        for n in range(30)
        for position, batch in enumerate(sampler.epoch(n))
        if len({t.identity for t in batch}) == 3
    }
    assert distinct_at == {0, 1, 2}


def test_two_identities_in_a_batch_of_three_are_padded_from_the_fuller_one() -> None:
    data = split((5, 5), (3, 3), (1, 1))  # 9 groups: one distinct batch, then 0 and 1 share two more
    batches = TripletSampler(data, 3, 1, seed=0).epoch(0)
    drawn = Counter(t.identity for batch in batches for t in batch)
    assert drawn == {0: 5, 1: 3, 2: 1}


def test_identity_without_lr_pairs_two_different_hr_tracklets() -> None:
    triplets = [t for batch in TripletSampler(split((4, 0), (4, 4)), 2, 2, seed=0).epoch(0) for t in batch]
    own = [t for t in triplets if t.identity == 0]
    assert {t.hr.name for t in own if t.hr} == {f"hr/0000/{i}" for i in range(4)}
    assert all(t.low[0].hr and t.low[0] is not t.hr for t in own)


def test_identity_with_a_single_tracklet_repeats_it() -> None:
    triplets = [t for batch in TripletSampler(split((1, 0), (0, 1)), 2, 1, seed=0).epoch(0) for t in batch]
    sharp, natural = sorted(triplets, key=lambda t: t.identity)
    assert sharp.hr is not None
    assert sharp.low == (sharp.hr,)
    assert natural.hr is None
    assert len(natural.low) == 3


def test_identity_without_hr_shows_three_different_lr_tracklets() -> None:
    triplets = [t for batch in TripletSampler(split((0, 4), (4, 4)), 2, 2, seed=0).epoch(0) for t in batch]
    own = [t for t in triplets if t.identity == 0]
    assert len(own) == 4
    assert all(t.hr is None and len({low.name for low in t.low}) == 3 for t in own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((10, 2, 0), "has 9 identities"),
        ((1, 2, 0), "at least 2"),
        ((3, 0, 0), "triplets_per_identity is 0"),
        ((3, 2, -1), "seed is -1"),
    ],
)
def test_bad_settings(settings: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TripletSampler(MIXED, *settings)
