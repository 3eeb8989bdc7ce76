"""When super-resolution has to go, and when it comes back."""

from __future__ import annotations

import numpy as np
import pytest
from test_events import LATENCY_MS

from s3clip_runtime.streams.events import STEPS
from s3clip_runtime.streams.recognition.budget import HOLD_S, LOOKS, EnhanceBudget
from s3clip_runtime.streams.recognition.latency import KEPT, LatencyBook


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def feed(budget: EnhanceBudget, total_ms: float, enhance_ms: float, looks: int = LOOKS) -> None:
    for _ in range(looks):
        budget.record(total_ms, enhance_ms)


def test_it_goes_when_most_looks_are_late_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    budget = EnhanceBudget(500)
    feed(budget, 400, 200, 100)
    assert (budget.on, budget.reason) == (True, "live looks keep the budget of 500 ms")
    feed(budget, 600, 200, LOOKS // 2)
    assert budget.on, "half of the looks are not most of them"
    feed(budget, 600, 200, 1)
    assert (budget.on, budget.reason) == (False, "live looks missed the budget of 500 ms")
    assert "9 of the last 16 looks needed more than the budget of 500 ms" in caplog.text


def test_it_stays_when_it_is_not_the_reason() -> None:
    """Only HR looks: without super-resolution they would be as late."""
    budget = EnhanceBudget(500)
    feed(budget, 900, 0, 100)
    assert budget.on


def test_it_comes_back_only_when_there_is_room_for_it() -> None:
    clock = Clock()
    budget = EnhanceBudget(500, clock)
    feed(budget, 800, 300)
    assert not budget.on
    feed(budget, 20, 0)
    assert not budget.on, "the hold is not over"
    clock.now_s += HOLD_S[0] + 1
    feed(budget, 100, 0)
    assert not budget.on, "100 + 300 ms is more than 70 % of the budget"
    feed(budget, 20, 0)
    assert budget.on


def test_the_hold_doubles_when_it_fails_again_at_once() -> None:
    clock = Clock()
    budget = EnhanceBudget(500, clock)
    holds: list[float] = []
    for _ in range(7):
        feed(budget, 800, 300)
        assert not budget.on
        off_s = clock.now_s
        while not budget.on:
            clock.now_s += 1
            budget.record(20, 0)
        holds.append(clock.now_s - off_s)
    assert holds == sorted(holds)
    assert holds[0] == pytest.approx(HOLD_S[0], abs=1)
    assert holds[-1] == pytest.approx(HOLD_S[1], abs=1)


def test_quantiles_are_those_of_the_last_looks() -> None:
    rng = np.random.default_rng(0)
    rows = rng.gamma(2.0, 20.0, (KEPT + 500, len(STEPS)))
    book = LatencyBook()
    assert book.quantiles() == {}
    for row in rows:
        book.add(dict(zip(STEPS, row, strict=True)))
    found = book.quantiles()
    assert list(found) == [*STEPS, "total"]
    last = rows[-KEPT:]
    for column, step in enumerate(STEPS):
        assert found[step].count == KEPT
        assert found[step].p95 == pytest.approx(sorted(last[:, column])[round(0.95 * (KEPT - 1))], rel=0.01)
    assert found["total"].p50 == pytest.approx(float(np.median(last.sum(axis=1))), abs=0.01)


def test_a_look_without_a_step_is_refused() -> None:
    with pytest.raises(KeyError, match="wait"):
        LatencyBook().add({step: ms for step, ms in LATENCY_MS.items() if step != "wait"})
