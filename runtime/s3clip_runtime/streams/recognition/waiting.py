"""Looks that wait for the embedder: bounded, shared by all cameras, the least valuable shed first."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from s3clip_runtime.streams.looks import Look, Stage

LIMIT = 64
"""Looks that wait at most; each holds up to 64 crops, most of them shared with the open tracklet."""

_TICK_S = 0.2

_VALUE: Mapping[Stage, int] = {"refined": 0, "first": 1, "final": 2}
"""A refinement repeats what is known, a first look comes again as a refinement, a final one never again."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A look and the monotonic time at which it was submitted."""

    look: Look
    since_s: float


class WaitingLooks:
    """A queue between the loop that sees and the thread that recognises. Safe for both.

    Under pressure, live looks are shed: first refinements, then first looks, then finals; among equals the
    oldest one of the camera that has most waiting, so that one crowded camera never starves the others.
    A newer look at a live tracklet takes the place of an older one that still waits.
    Looks at files are always taken; their reader asks `full` first and waits. A final look that was shed can
    still be told without embedding: it lies in `overdue`.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._overdue: deque[Waiting] = deque(maxlen=LIMIT)
        self._looks: list[Waiting] = []
        self._changed = threading.Condition()
        self._closed = False
        self._shed: Counter[tuple[str, Stage]] = Counter()

    def __len__(self) -> int:
        with self._changed:
            return len(self._looks)

    @property
    def limit(self) -> int:
        """Looks that wait at most, up to `LIMIT`. A smaller one holds from the next look on."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._changed:
            self._limit = min(limit, LIMIT)

    @property
    def full(self) -> bool:
        """Readers of files wait while this holds."""
        return len(self) >= self._limit

    def shed(self) -> Counter[tuple[str, Stage]]:
        """Looks that were left out under pressure, by camera and stage."""
        with self._changed:
            return Counter(self._shed)

    def put(self, look: Look) -> None:
        """Take one look; may shed another one, or this one. Never blocks."""
        with self._changed:
            self._looks.append(self._in_place_of_older(look))
            while look.live and len(self._looks) > self._limit and any(one.look.live for one in self._looks):
                self._shed_one()
            self._changed.notify()

    def take(self, count: int, window_s: float) -> list[Waiting]:
        """Up to `count` looks, the most urgent first; waits until there is one.

        Args:
            count: largest batch, >= 1.
            window_s: the oldest look waits at most so long for company.

        Returns:
            Empty after a tick without work; after `close`, what is left at once.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._looks or self._closed, timeout=_TICK_S)
            if self._looks and not self._closed:
                left_s = min(one.since_s for one in self._looks) + window_s - time.monotonic()
                self._changed.wait_for(
                    lambda: len(self._looks) >= count or self._closed, timeout=max(left_s, 0)
                )
            # Finals and first looks by age; a refinement goes when nothing more valuable waits.
            self._looks.sort(key=lambda one: (one.look.stage == "refined", one.since_s))
            taken, self._looks = self._looks[:count], self._looks[count:]
            return taken

    def overdue(self) -> list[Waiting]:
        """Final looks that were shed since the last call, the last `LIMIT` of them."""
        with self._changed:
            overdue = list(self._overdue)
            self._overdue.clear()
            return overdue

    def close(self) -> None:
        """Wake whoever waits in `take`; nobody waits for company any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _in_place_of_older(self, look: Look) -> Waiting:
        """The look with the age, and for a refinement with the rank, of the one that it replaces."""
        now_s = time.monotonic()
        older = [one for one in self._looks if look.live and one.look.tracklet.key == look.tracklet.key]
        for one in older:
            self._looks.remove(one)
            now_s = min(now_s, one.since_s)
            if one.look.stage == "first" and look.stage == "refined":
                look = replace(look, stage="first")
        return Waiting(look, now_s)

    def _shed_one(self) -> None:
        sheddable = [one for one in self._looks if one.look.live]
        least = min(_VALUE[one.look.stage] for one in sheddable)
        candidates = [one for one in sheddable if _VALUE[one.look.stage] == least]
        crowd = Counter(one.look.tracklet.camera for one in candidates)
        victim = min(candidates, key=lambda one: (-crowd[one.look.tracklet.camera], one.since_s))
        self._looks.remove(victim)
        self._shed[victim.look.tracklet.camera, victim.look.stage] += 1
        if victim.look.stage == "final":
            self._overdue.append(victim)
