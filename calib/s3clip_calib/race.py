"""Which graph is faster here: sessions asked in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.backends import Session

ROUNDS: Final = 7
"""Of each contender, after one that is not counted."""


def race(
    sessions: Mapping[str, Session], inputs: Sequence[Mapping[str, NDArray[Any]]], rounds: int = ROUNDS
) -> dict[str, float]:
    """Median milliseconds of a run. All take their turns, so that what else the machine does hits all alike.

    Args:
        sessions: name to an open session.
        inputs: one each round, from the first on again.
        rounds: at least 1.
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        for name, session in sessions.items():
            start = perf_counter()
            session.run(inputs[number % len(inputs)])
            times[name].append((perf_counter() - start) * 1e3)
    return {name: float(np.median(taken[1:])) for name, taken in times.items()}
