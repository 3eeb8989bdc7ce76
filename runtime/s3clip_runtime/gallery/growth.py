"""When a view that the run saw may become a prototype of a known person. Galleries rot by less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.book import Views
from s3clip_runtime.gallery.open_set import Decision, PairCalibration
from s3clip_runtime.gallery.records import Seen

WINDOW_S: Final = 600.0
"""Two sightings confirm each other within so many seconds: then the person wears the same clothes."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    track: tuple[str, str]
    seen_s: float
    vector: NDArray[np.float32]
    views: Views


class Growth:
    """Holds the first of the two sightings that one growth needs. It is lost when the run ends."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}

    def copy(self) -> Growth:
        """Another one that holds the same."""
        copied = Growth()
        copied._waiting = dict(self._waiting)
        return copied

    def offer(
        self, identity: str, decision: Decision, pair: PairCalibration, seen: Seen, views: Views, now_s: float
    ) -> Sequence[Views]:
        """What may be added to a known person after this sighting: nothing, or this view and the one before.

        All must hold: the score is at or above the pair's growth threshold; the runner-up stays below its
        threshold; another track of the last `WINDOW_S` was offered for the same person; both views are
        alike, at or above the threshold.

        Args:
            identity: id of the person.
            decision: a match.
            pair: that the decision was made by.
            views: of `seen`, one vector.
            now_s: Unix seconds.
        """
        runner_up = decision.runner_up
        if decision.score < pair.growth_threshold:
            return ()
        if runner_up is not None and runner_up.score >= pair.threshold:
            return ()
        before = self._waiting.get(identity)
        track = (seen.run, seen.track)
        if (
            before is not None
            and before.track != track
            and now_s - before.seen_s <= WINDOW_S
            and float(before.vector @ seen.vector) >= pair.threshold
        ):
            del self._waiting[identity]
            return before.views, views
        self._waiting[identity] = _Waiting(track, now_s, seen.vector, views)
        return ()
