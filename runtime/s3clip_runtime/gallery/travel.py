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
        min_s: faster is impossible.
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
        within one video of one run. A look at a track that was sighted before is always possible.
        """
        last: dict[str, Sighting] = {}
        for one in sightings:
            if (one.run, one.track) == (seen.run, seen.track):
                continue
            if one.camera == seen.camera and _comparable(one, seen) and _overlap_s(one, seen) > SAME_CAMERA_S:
                return False
            last[one.camera] = one
        return all(self._in_time(one, seen) for one in last.values())

    def _in_time(self, one: Sighting, seen: Seen) -> bool:
        way = self.ways.get((one.camera, seen.camera))
        if way is None or not _comparable(one, seen):
            return True
        took_s = seen.first_s - one.last_s
        return way.min_s <= took_s and (way.max_s is None or took_s <= way.max_s)


def _comparable(one: Sighting, seen: Seen) -> bool:
    if "stream" in (one.clock, seen.clock):
        return one.clock == seen.clock and (one.run, one.camera) == (seen.run, seen.camera)
    return True


def _overlap_s(one: Sighting, seen: Seen) -> float:
    return min(one.last_s, seen.last_s) - max(one.first_s, seen.first_s)
