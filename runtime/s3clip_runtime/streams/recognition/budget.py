"""Super-resolution is the first work to go when live looks miss their latency budget."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

_log = logging.getLogger(__name__)

LOOKS = 16
"""Last live looks that the decision rests on."""

HOLD_S = (30.0, 600.0)
"""Shortest and longest time without super-resolution; doubled each time it has to go again at once."""

MARGIN = 0.7
"""It comes back when looks, with what it used to cost, would need less than this share of the budget."""


class EnhanceBudget:
    """Decides whether live looks may be super-resolved. Safe for several threads.

    Off when more than half of the last `LOOKS` live looks needed longer than the budget from submission to
    event. On again after a hold, when the looks without it leave room for it. Every change is logged.

    Args:
        budget_ms: of a look, from submission to its event.
        now_s: a monotonic clock.
    """

    def __init__(self, budget_ms: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._budget_ms = budget_ms
        self._now_s = now_s
        self._lock = threading.Lock()
        self._last: deque[float] = deque(maxlen=LOOKS)
        self._cost_ms = 0.0
        self._hold_s = 0.0
        self._changed_s = now_s()
        self._on = True

    @property
    def on(self) -> bool:
        """Live looks may be super-resolved now."""
        with self._lock:
            return self._on

    @property
    def reason(self) -> str:
        """Why it is on or off, for people."""
        if self.on:
            return f"live looks keep the budget of {self._budget_ms:g} ms"
        return f"live looks missed the budget of {self._budget_ms:g} ms"

    def record(self, total_ms: float, enhance_ms: float) -> None:
        """One live look.

        Args:
            total_ms: from submission to event.
            enhance_ms: the part that its batch spent on super-resolution; 0 where there was none.
        """
        with self._lock:
            self._last.append(total_ms)
            if enhance_ms > 0:
                self._cost_ms = enhance_ms
            if self._on:
                self._maybe_off()
            else:
                self._maybe_on()

    def _maybe_off(self) -> None:
        missed = sum(total > self._budget_ms for total in self._last)
        if len(self._last) < LOOKS or 2 * missed <= LOOKS or self._cost_ms == 0:
            return
        again = self._hold_s > 0 and self._now_s() - self._changed_s <= 2 * self._hold_s
        self._hold_s = min(2 * self._hold_s, HOLD_S[1]) if again else HOLD_S[0]
        self._switch(False)
        _log.warning(
            "super-resolution is off: %d of the last %d looks needed more than the budget of %g ms",
            missed, LOOKS, self._budget_ms,
        )  # fmt: skip

    def _maybe_on(self) -> None:
        if self._now_s() - self._changed_s < self._hold_s or len(self._last) < LOOKS:
            return
        if max(self._last) + self._cost_ms <= MARGIN * self._budget_ms:
            self._switch(True)
            _log.warning("super-resolution is on again: looks keep the budget of %g ms", self._budget_ms)

    def _switch(self, on: bool) -> None:
        self._on = on
        self._changed_s = self._now_s()
        self._last.clear()
