"""Which graph is faster here: sessions asked in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.backends import Session

ROUNDS: Final = 7
"""Of each contender at least, after one that is not counted."""

LEAST_S: Final = 0.3
"""Seconds that each contender runs at least, so that the median of a tiny graph is of many runs."""

MOST_ROUNDS: Final = 101


def race(sessions: Mapping[str, Session], inputs: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """Median milliseconds of a run. All take their turns, so that what else the machine does hits all alike.

    Args:
        sessions: name to an open session.
        inputs: one each round, from the first on again.
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    number = 0
    while number <= ROUNDS or (number <= MOST_ROUNDS and min(map(sum, times.values())) < LEAST_S * 1e3):
        for name, session in sessions.items():
            start = perf_counter()
            session.run(inputs[number % len(inputs)])
            times[name].append((perf_counter() - start) * 1e3)
        number += 1
    return {name: float(np.median(taken[1:])) for name, taken in times.items()}
