"""Decisions on final looks, one after the other: who it is, or a new unknown, and what is remembered."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from s3clip_runtime.gallery.edits import Edits
from s3clip_runtime.gallery.open_set.decision import Decision, decide
from s3clip_runtime.gallery.recognition.growth import Growth, sure
from s3clip_runtime.gallery.recognition.travel import Travel
from s3clip_runtime.gallery.records import Action, Identity, Match, Origin, Seen, Sighting
from s3clip_runtime.gallery.search.memory import Memory
from s3clip_runtime.gallery.search.prototypes import Prototypes
from s3clip_runtime.gallery.storage.book import Book, Views

_TRACKS_S: Final = 600.0
"""A track that is cut because it is long goes on at once; so long its identity is remembered."""

_LIKELY: Final = 0.5
"""From this calibrated probability on, a look below the threshold is no new person either."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a run may do beyond naming known people. See `site.identities`.

    Attributes:
        threshold: the operator's own cosine; None: the calibrated ones.
        unknowns: give ids to people whom nobody knows, and remember them.
        grow: add views to known people.
        promote_after: tracks after which a candidate counts as an unknown person.
        min_quality: of a look that is remembered at all.
        keep_crops: keep the crops of remembered looks, for the day when the model changes.
        travel: how long the way between cameras takes.
    """

    threshold: float | None = None
    unknowns: bool = False
    grow: bool = False
    promote_after: int = 3
    min_quality: float = 0.3
    keep_crops: bool = False
    travel: Travel = field(default_factory=Travel)

    @property
    def writes(self) -> bool:
        """Final looks leave something in the gallery."""
        return self.unknowns or self.grow or bool(self.travel.ways)


@dataclass(frozen=True, slots=True)
class Recognised:
    """What became of one look.

    Attributes:
        decision: by the open-set rule, among those whom time does not forbid.
        identity: who it is, known or not; None: nobody knows, or nobody may tell.
        matches: of the gallery, best first, whatever time says.
    """

    decision: Decision
    identity: Identity | None
    matches: tuple[Match, ...]


@dataclass(slots=True)
class Tally:
    """What decisions did: unknown people met, views grown, matches that time forbade."""

    met: int = 0
    grown: int = 0
    vetoed: int = 0


class Remembered:
    """What goes on from one batch to the next: tracks and half-confirmed growth. Lost when the run ends."""

    def __init__(self) -> None:
        self.growth = Growth()
        self.tally = Tally()
        self._tracks: dict[tuple[str, str], tuple[str, float]] = {}

    def copy(self) -> Remembered:
        """Another one that knows the same: for a batch that may fail to be written."""
        copied = Remembered()
        copied.growth, copied.tally = self.growth.copy(), replace(self.tally)
        now_s = time.time()
        copied._tracks = {key: one for key, one in self._tracks.items() if now_s - one[1] <= _TRACKS_S}
        return copied

    def track(self, seen: Seen, now_s: float) -> str | None:
        """Id of the identity that an earlier part of the track got."""
        id, at_s = self._tracks.get((seen.run, seen.track), (None, 0.0))
        return id if now_s - at_s <= _TRACKS_S else None

    def keep_track(self, seen: Seen, identity: str, now_s: float) -> None:
        """Note who a track is."""
        self._tracks[seen.run, seen.track] = identity, now_s


class Deciding:
    """One batch of decisions within `Gallery.deciding`: each knows what those before it wrote.

    Args:
        memory: of the gallery, as of this transaction; it learns of the writes after it.
        book: what is written to.
        rules: what may be done.
        remembered: of the run.
    """

    def __init__(self, memory: Memory, book: Book, rules: Rules, remembered: Remembered) -> None:
        self._memory = memory
        self._book = book
        self._edits = Edits(book)
        self._rules = rules
        self._remembered = remembered
        self._fresh = Prototypes(memory.dim)
        self._changed: dict[str, Identity] = {}
        self._now_s = time.time()

    def decide(self, seen: Seen, row: Sequence[Match]) -> Recognised:
        """Decide on one look, and write what the rules allow.

        Args:
            seen: the look.
            row: what memory finds for it.
        """
        matches = self._with_fresh(seen, row)
        if not seen.final:
            told = verdict(self._memory, self._rules, seen, matches)
            who = None if told.identity is None else self._named(told.identity)
            return Recognised(told, who, tuple(matches))
        decision, match, identity = self._possible(seen, matches)
        score = None if identity is None else decision.score
        if identity is None and decision.verdict == "unknown":
            identity = self._by_id(self._remembered.track(seen, self._now_s))
        if identity is None and self._is_new(seen, decision):
            identity = self._meet(seen)
        elif identity is not None and identity.kind != "known":
            self._see_again(seen, identity)
        elif identity is not None and match is not None:
            self._maybe_grow(seen, identity, decision, match)
        if identity is not None:
            identity = self._sight(seen, identity, score)
        return Recognised(decision, identity, tuple(matches))

    def _possible(
        self, seen: Seen, matches: Sequence[Match]
    ) -> tuple[Decision, Match | None, Identity | None]:
        """The decision among those who can have been there at that time."""
        left = list(matches)
        while True:
            decision = verdict(self._memory, self._rules, seen, left)
            if decision.identity is None:
                return decision, None, None
            identity = self._named(decision.identity)
            since_s = self._now_s - self._rules.travel.horizon_s
            if self._rules.travel.allows(seen, self._book.sightings(identity.id, since_s=since_s)):
                return decision, left[0], identity
            self._remembered.tally.vetoed += 1
            left.pop(0)

    def _is_new(self, seen: Seen, decision: Decision) -> bool:
        """Nobody whom we know, surely enough and seen well enough for an id of one's own."""
        if not self._rules.unknowns or decision.verdict != "unknown":
            return False
        unlikely = decision.probability is None or decision.probability < _LIKELY
        return unlikely and seen.quality >= self._rules.min_quality and self._can_come_back(seen)

    def _can_come_back(self, seen: Seen) -> bool:
        """The next look like this one can be told from others: else everybody would be new, always."""
        if self._rules.threshold is not None:
            return True
        open_set = self._memory.open_set
        return open_set is not None and (
            open_set.find(seen.platform, seen.platform, seen.height_px) is not None
        )

    def _meet(self, seen: Seen) -> Identity:
        identity = self._book.add_identity(f"unknown-{secrets.token_hex(6)}", "candidate")
        self._add(seen, identity, self._views(seen, "unknown"), "meet", made=True)
        self._remembered.tally.met += 1
        return identity

    def _see_again(self, seen: Seen, identity: Identity) -> None:
        if self._rules.unknowns and seen.quality >= self._rules.min_quality:
            self._add(seen, identity, self._views(seen, "unknown"), "meet", made=False)

    def _maybe_grow(self, seen: Seen, identity: Identity, decision: Decision, match: Match) -> None:
        open_set = self._memory.open_set
        if not self._rules.grow or open_set is None or seen.quality < self._rules.min_quality:
            return
        if not sure(decision, match, seen, open_set):
            return
        views = self._views(seen, "grown")
        for one in self._remembered.growth.offer(identity.id, seen, views, open_set, self._now_s):
            self._add(seen, identity, one, "grow", made=False)
            self._remembered.tally.grown += 1

    def _sight(self, seen: Seen, identity: Identity, score: float | None) -> Identity:
        self._book.add_sighting(
            Sighting(
                identity.id, seen.camera, seen.platform, seen.tracklet, seen.run, seen.track, seen.clock,
                seen.first_s, seen.last_s, self._now_s, score,
            )
        )  # fmt: skip
        self._remembered.keep_track(seen, identity.id, self._now_s)
        if identity.kind == "candidate" and self._book.tracks(identity.id) >= self._rules.promote_after:
            identity = replace(identity, kind="unknown", seen_s=self._now_s)
            self._book.put_identity(identity)
            self._book.log.append("promote", identity.id)
            self._changed[identity.name] = identity
        return identity

    def _views(self, seen: Seen, origin: Origin) -> Views:
        return Views(
            space=self._memory.space.hash,
            vectors=seen.vector[None].astype(np.float16),
            origin=origin,
            platform=seen.platform,
            camera=seen.camera,
            source=f"{seen.run} {seen.tracklet}",
            quality=seen.quality,
            seen_s=self._now_s if seen.clock == "stream" else seen.last_s,
            pictures=seen.pictures() if self._rules.keep_crops else None,
        )

    def _add(self, seen: Seen, identity: Identity, views: Views, action: Action, *, made: bool) -> None:
        self._edits.add_views(identity, [views], action, made=made)
        prototypes, vectors = self._book.vectors(identity.id, self._memory.space)
        self._fresh.put(identity.name, vectors, [one.platform for one in prototypes])
        self._changed[identity.name] = identity

    def _with_fresh(self, seen: Seen, row: Sequence[Match]) -> list[Match]:
        """The matches with what was written since memory was read."""
        best = {match.identity: match for match in row}
        for match in self._fresh.search(seen.vector[None], len(self._fresh.identities) or 1)[0]:
            best[match.identity] = match
        return sorted(best.values(), key=lambda match: (-match.score, match.identity))

    def _named(self, name: str) -> Identity:
        return self._changed.get(name) or self._memory.identities[name]

    def _by_id(self, id: str | None) -> Identity | None:
        return None if id is None else self._book.identity(id)


def answer(memory: Memory, rules: Rules, seen: Seen, matches: Sequence[Match]) -> Recognised:
    """Who it is by what is known; changes nothing."""
    decision = verdict(memory, rules, seen, matches)
    identity = None if decision.identity is None else memory.identities.get(decision.identity)
    return Recognised(decision, identity, tuple(matches))


def verdict(memory: Memory, rules: Rules, seen: Seen, matches: Sequence[Match]) -> Decision:
    """`decision.decide` with the gallery's calibration."""
    return decide(matches, memory.open_set, rules.threshold, platform=seen.platform, height_px=seen.height_px)
