"""Interleaved rounds: in every round each contender is called once, so that all meet the same machine.

A machine changes its speed by the minute, through heat and through neighbours. Ratios within a round do not
see that, and the order rotates, so that nobody always runs behind the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.bench.load import LoadMeter
from s3clip_runtime.bench.records import Latency, Spread
from s3clip_runtime.errors import ConfigError

REST_S: Final = 0.1
"""Between two calls: the threads of a backend keep spinning when their work is done, and would take the cores
from the next contender. ONNX Runtime's spin for 47 ms of CPU time."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the rounds gave for one contender: one number a round, in the order of the rounds.

    Attributes:
        first_ms: wall time of its first call, which is in no round.
        wall_ms: float64 (rounds,).
        cpu_ms: float64 (rounds,), CPU time of all threads of this process.
    """

    first_ms: float
    wall_ms: NDArray[np.float64]
    cpu_ms: NDArray[np.float64]

    @property
    def latency(self) -> Latency:
        """First call, median, 95th and 99th percentile (linear between samples)."""
        p50, p95, p99 = (float(value) for value in np.quantile(self.wall_ms, [0.5, 0.95, 0.99]))
        return Latency(first_ms=self.first_ms, p50_ms=p50, p95_ms=p95, p99_ms=p99, samples=len(self.wall_ms))

    def speedup_over(self, reference: Samples) -> Spread:
        """How many times faster than the reference, by the ratios within each round."""
        low, median, high = np.quantile(reference.wall_ms / self.wall_ms, [0.25, 0.5, 0.75])
        return Spread(median=float(median), low=float(low), high=float(high))


@dataclass(frozen=True, slots=True)
class Rounds:
    """The samples of all contenders, and the share of the cores that others took meanwhile."""

    samples: Mapping[str, Samples]
    foreign_load: float


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    tick: Callable[[str], None] | None = None,
    rest_s: float = REST_S,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Rounds:
    """Call every contender once a round, in an order that rotates by one from round to round.

    Args:
        contenders: name to what is timed. A call must be finished when it returns.
        rounds: at least 1; before them each is called once, which is told apart.
        tick: called with the contender's name before each call, outside of the timing.
        rest_s: seconds of rest before each call, also outside of it.
        cpu_clock: seconds of CPU time of all that works for the contenders.

    Raises:
        ConfigError: no round.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, found {rounds}; ask for one or more")
    names = list(contenders)
    first_ms: dict[str, float] = {}
    wall_ms: dict[str, list[float]] = {name: [] for name in names}
    cpu_ms: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        first_ms[name], _ = _timed(name, contenders[name], tick, rest_s, cpu_clock)
    meter = LoadMeter()
    for number in range(rounds):
        for name in order(names, number):
            wall, cpu = _timed(name, contenders[name], tick, rest_s, cpu_clock)
            wall_ms[name].append(wall)
            cpu_ms[name].append(cpu)
    samples = {
        name: Samples(first_ms[name], np.array(wall_ms[name]), np.array(cpu_ms[name])) for name in names
    }
    return Rounds(samples, meter.read().foreign)


def order(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: each starts once before anyone starts again."""
    place = number % len(names) if names else 0
    return [*names[place:], *names[:place]]


def _timed(
    name: str,
    call: Callable[[], object],
    tick: Callable[[str], None] | None,
    rest_s: float,
    cpu_clock: Callable[[], float],
) -> tuple[float, float]:
    """Wall and CPU milliseconds of one call."""
    if tick is not None:
        tick(name)
    time.sleep(rest_s)
    cpu, wall = cpu_clock(), time.perf_counter()
    call()
    wall, cpu = time.perf_counter() - wall, cpu_clock() - cpu
    return 1e3 * wall, 1e3 * cpu
