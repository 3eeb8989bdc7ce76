"""What the gallery's parts, and the run, hand to each other: values without behaviour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["known", "unknown", "candidate"]
"""known: somebody named the person; unknown: met several times, nobody knows who; candidate: not yet often
enough for that."""

Origin = Literal["enrolled", "grown", "unknown"]
"""Who put a prototype there: a person, the run to a known person, the run to an unknown one."""

Action = Literal[
    "enrol", "grow", "meet", "promote", "name", "note", "merge", "split", "undo", "search", "forget",
    "expire", "calibrate", "add space", "embed again", "retire space", "backup", "restore",
]  # fmt: skip
"""What the log tells. meet: an unknown person got an id or one more view."""

Clock = Literal["camera", "arrival", "stream"]
"""What times count: Unix seconds by the camera or by arrival; seconds of a video."""


@dataclass(frozen=True, slots=True)
class Match:
    """One identity and its prototype nearest to the query.

    Attributes:
        identity: its name.
        score: cosine in [-1, 1] up to rounding.
        platform: of that prototype, one of `spec.PLATFORMS`; None if it is not known.
    """

    identity: str
    score: float
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """The embedding space that a bundle gives: `Manifest.embedding_space` and the numbers of a vector."""

    hash: str
    dim: int


@dataclass(frozen=True, slots=True)
class Identity:
    """One person. `id` is random and stays; times are Unix seconds.

    Attributes:
        seen_s: end of the last sighting; None if there was none.
    """

    id: str
    name: str
    kind: Kind
    note: str
    added_s: float
    seen_s: float | None


@dataclass(frozen=True, slots=True)
class Prototype:
    """One stored vector, without its numbers.

    Attributes:
        source: where it comes from, for people to read.
        quality: of its crops, in [0, 1]; None if nobody rated them.
        seen_s: when its crops were taken, or it was enrolled.
        clip: id of the crops that were kept of it.
    """

    id: int
    identity: str
    space: str
    origin: Origin
    platform: str | None
    camera: str | None
    source: str
    quality: float | None
    seen_s: float
    added_s: float
    clip: int | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """One tracklet that was recognised.

    Attributes:
        identity: id of the identity.
        track: names the person's track within the run; parts of a long track share it.
        clock: what `first_s` and `last_s` count. `told_s` is always Unix seconds.
        score: cosine of the decision; None where the track alone decided, or the person was new.
    """

    identity: str
    camera: str
    platform: str
    tracklet: str
    run: str
    track: str
    clock: Clock
    first_s: float
    last_s: float
    told_s: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """One embedded look, as far as the gallery needs it.

    Attributes:
        vector: float32 (dim,) of length 1.
        height_px: median height of the clip's crops.
        quality: mean of the clip's crops, in [0, 1].
        tracklet: names it within the run; `track` names the person's track, which may have several.
        clock: what `first_s` and `last_s` count.
        final: no later look at this tracklet follows.
        pictures: gives its packed crops (`clips.pack`) and whether they are HR.
    """

    vector: NDArray[np.float32]
    camera: str
    platform: str
    height_px: float
    quality: float
    run: str
    tracklet: str
    track: str
    clock: Clock
    first_s: float
    last_s: float
    final: bool
    pictures: Callable[[], tuple[bytes, bool]]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One decision. `identity` and `other` are ids; `detail` is what undoing needs, empty once scrubbed.

    Attributes:
        undone: number of the entry that undid it.
    """

    seq: int
    time_s: float
    box: str
    actor: str
    action: Action
    identity: str | None
    other: str | None
    detail: dict[str, object]
    undone: int | None


@dataclass(frozen=True, slots=True)
class IdentitySummary:
    """One line of a list: an identity and what there is of it.

    Attributes:
        enrolled_s: when its newest prototype was added, Unix seconds; when it was made, if it has none.
    """

    identity: str
    kind: Kind
    note: str
    prototypes: int
    platforms: tuple[str, ...]
    cameras: tuple[str, ...]
    sources: tuple[str, ...]
    enrolled_s: float
    seen_s: float | None
    sightings: int

    @staticmethod
    def of(identity: Identity, prototypes: Sequence[Prototype], sightings: int) -> IdentitySummary:
        """Sum up."""
        return IdentitySummary(
            identity.name,
            identity.kind,
            identity.note,
            len(prototypes),
            tuple(sorted({one.platform for one in prototypes if one.platform is not None})),
            tuple(sorted({one.camera for one in prototypes if one.camera is not None})),
            tuple(sorted({one.source for one in prototypes})),
            max((one.added_s for one in prototypes), default=identity.added_s),
            identity.seen_s,
            sightings,
        )


@dataclass(frozen=True, slots=True)
class GalleryInfo:
    """What a gallery says of itself.

    Attributes:
        gallery: its id.
        spaces: of its models, the oldest first, with the number of prototypes in each.
        encrypted: vectors and crops are sealed by a key file.
        people: identities by kind.
    """

    gallery: str
    spaces: tuple[tuple[Space, int], ...]
    encrypted: bool
    people: dict[Kind, int]
