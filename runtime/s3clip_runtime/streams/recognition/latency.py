"""How long the steps of a look take: p50, p95 and p99 over the last looks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

import numpy as np

from s3clip_runtime.streams.events import STEPS
from s3clip_runtime.streams.status import Quantiles

KEPT = 1024
"""Looks that the quantiles are of: p99 then rests on ten of them."""


class LatencyBook:
    """Collects the milliseconds of looks. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: deque[tuple[float, ...]] = deque(maxlen=KEPT)

    def add(self, steps_ms: Mapping[str, float]) -> None:
        """One look: milliseconds of each of `events.STEPS`."""
        row = tuple(steps_ms[step] for step in STEPS)
        with self._lock:
            self._rows.append(row)

    def quantiles(self) -> dict[str, Quantiles]:
        """Step, and `total`, to its quantiles; empty before the first look."""
        with self._lock:
            rows = np.array(self._rows, np.float64)
        if not len(rows):
            return {}
        table = np.column_stack([rows, rows.sum(axis=1)])
        p50, p95, p99 = np.quantile(table, (0.5, 0.95, 0.99), axis=0)
        return {
            step: Quantiles(round(float(a), 2), round(float(b), 2), round(float(c), 2), len(rows))
            for step, a, b, c in zip((*STEPS, "total"), p50, p95, p99, strict=True)
        }
