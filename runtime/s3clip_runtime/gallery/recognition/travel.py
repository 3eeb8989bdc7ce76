"""Where a person can have been at what time: nobody is at two places, and ways between cameras take time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from s3clip_runtime.gallery.records import Seen, Sighting

SAME_CAMERA_S: Final = 1.0
"""Tracks of one camera that overlap by more are two people; by less, perhaps one who was lost and found."""

HORIZON_S: Final = 3600.0
"""Sightings before that are not looked at, unless a limit is longer."""


@dataclass(frozen=True, slots=True)
class Way:
    """How long a person needs from one camera to another, in seconds.

    Attributes:
        min_s: faster is impossible; 0.0: one can be in view of both.
        max_s: whoever has not come by then is not looked for there; None: always.
    """

    min_s: float = 0.0
    max_s: float | None = None


@dataclass(frozen=True, slots=True)
class Travel:
    """The ways between cameras.

    Attributes:
        ways: (from, to) to its limits; what is not named is not limited.
    """

    ways: Mapping[tuple[str, str], Way] = field(default_factory=dict)

    @property
    def horizon_s(self) -> float:
        """How far back sightings matter."""
        longest = max((way.max_s or way.min_s for way in self.ways.values()), default=0.0)
        return max(HORIZON_S, 2 * longest)

    def allows(self, seen: Seen, sightings: Iterable[Sighting]) -> bool:
        """Whether a person with these sightings can be who was seen now.

        Times of different cameras are compared only where both count Unix seconds; times of videos only
        within one video of one run. A look at a track that was sighted before is always possible. No way may
        be too fast; too slow is told of the way from the last sighting alone.
        """
        sightings = list(sightings)
        if any((one.run, one.track) == (seen.run, seen.track) for one in sightings):
            return True
        others = [one for one in sightings if _comparable(one, seen)]
        if any(one.camera == seen.camera and _overlap_s(one, seen) > SAME_CAMERA_S for one in others):
            return False
        before = [one for one in others if one.first_s <= seen.first_s]
        newest = max(before, key=lambda one: one.last_s, default=None)
        return not any(self._too_fast(one, seen) for one in others) and not (
            newest is not None and self._too_slow(newest, seen)
        )

    def _too_fast(self, one: Sighting, seen: Seen) -> bool:
        # Final looks come when tracks end, so the one that is told later may have been there first.
        first, then = (one, seen) if one.first_s <= seen.first_s else (seen, one)
        way = self.ways.get((first.camera, then.camera), Way())
        return max(then.first_s - first.last_s, 0.0) < way.min_s

    def _too_slow(self, one: Sighting, seen: Seen) -> bool:
        max_s = self.ways.get((one.camera, seen.camera), Way()).max_s
        return max_s is not None and seen.first_s - one.last_s > max_s


def _comparable(one: Sighting, seen: Seen) -> bool:
    if "stream" in (one.clock, seen.clock):
        return one.clock == seen.clock and (one.run, one.camera) == (seen.run, seen.camera)
    return True


def _overlap_s(one: Sighting, seen: Seen) -> float:
    return min(one.last_s, seen.last_s) - max(one.first_s, seen.first_s)
