"""When a view that the run saw may become a prototype of a known person. Galleries rot by less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.open_set.decision import Decision, OpenSet
from s3clip_runtime.gallery.records import Match, Seen
from s3clip_runtime.gallery.storage.book import Views

WINDOW_S: Final = 600.0
"""Two sightings confirm each other within so many seconds: then the person wears the same clothes."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    track: tuple[str, str]
    seen_s: float
    vector: NDArray[np.float32]
    views: Views


def sure(decision: Decision, match: Match, seen: Seen, open_set: OpenSet) -> bool:
    """A match that may count for growth: at or above its growth threshold, and nobody else comes near.

    Args:
        decision: a match; its runner-up must stay below the threshold of its own pair of platforms.
        match: that the decision is about.
    """
    pair = open_set.find(seen.platform, match.platform, seen.height_px)
    if pair is None or decision.score < pair.growth_threshold:
        return False
    other = decision.runner_up
    return other is None or _reaches(open_set, seen, other.platform, other.score) is False


class Growth:
    """Holds the first of the two sightings that one growth needs. It is lost when the run ends."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}

    def copy(self) -> Growth:
        """One that goes on from here by itself."""
        copied = Growth()
        copied._waiting = dict(self._waiting)
        return copied

    def offer(
        self, identity: str, seen: Seen, views: Views, open_set: OpenSet, now_s: float
    ) -> Sequence[Views]:
        """What a known person gets after a sure sighting: nothing, or this view and the one before.

        The one before must be of another track, of the last `WINDOW_S`, and alike: at or above the threshold
        of the pair of platforms.

        Args:
            identity: id of the person.
            views: of `seen`, one vector.
            now_s: Unix seconds.
        """
        self._waiting = {id: one for id, one in self._waiting.items() if now_s - one.seen_s <= WINDOW_S}
        before = self._waiting.pop(identity, None)
        track = (seen.run, seen.track)
        if before is not None and before.track != track:
            alike = float(before.vector @ seen.vector)
            if _reaches(open_set, seen, before.views.platform, alike):
                return before.views, views
        self._waiting[identity] = _Waiting(track, now_s, seen.vector, views)
        return ()


def _reaches(open_set: OpenSet, seen: Seen, platform: str | None, score: float) -> bool | None:
    """None: nobody knows."""
    pair = open_set.find(seen.platform, platform, seen.height_px)
    return None if pair is None else score >= pair.threshold
