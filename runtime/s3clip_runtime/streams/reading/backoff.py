"""How long to wait before the next attempt."""

from __future__ import annotations

import random

BACKOFF_S = (0.5, 30.0)
"""Shortest and longest wait before the next attempt; doubled each time, jittered so that cameras spread."""

HEALTHY_S = 60.0
"""What lived this long starts the waits from the shortest again."""


class Backoff:
    """Waits that double from failure to failure."""

    def __init__(self) -> None:
        self._failures = 0

    def next_s(self, lived_s: float) -> float:
        """Seconds to wait after a failure of something that had worked for `lived_s` seconds."""
        self._failures = 1 if lived_s >= HEALTHY_S else self._failures + 1
        longest_s = min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(self._failures - 1, 16))
        return jittered(longest_s)


def jittered(longest_s: float) -> float:
    """50 to 100 % of it."""
    return longest_s * random.uniform(0.5, 1.0)
