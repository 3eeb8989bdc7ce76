"""The sighting event: what one ended tracklet says to the outside world, as one JSON line.

`docs/events.md` documents every field; a test keeps the page and this class in step.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.spec import PLATFORMS

if TYPE_CHECKING:
    from s3clip_runtime.gallery.prototypes import Match
    from s3clip_runtime.gallery.store import Decision
    from s3clip_runtime.streams.tracklets import LiveTracklet

SCHEMA = "s3clip.sighting/1"
"""Name and version of the event's fields. A removed or redefined field raises the number."""

UNCALIBRATED_THRESHOLD = 0.6
"""Cosine at which a match counts when the user names none. NOT calibrated: it depends on model and scene."""


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The second-best identity and its cosine similarity."""

    identity: str
    score: float


@dataclass(frozen=True, slots=True)
class SightingEvent:
    """One ended tracklet and who it is. Field by field in docs/events.md."""

    schema: str
    event_id: str
    run_id: str
    wall_time: str
    clock: Literal["stream", "unix"]
    first_s: float
    last_s: float
    first_time: str | None
    last_time: str | None
    camera: str
    platform: str
    track: int
    frames: int
    final: bool
    box: list[float]
    height_px: float
    resolution: Literal["lr", "hr"]
    enhanced: bool
    decision: Literal["match", "unknown", "no_gallery"]
    identity: str | None
    score: float | None
    threshold: float | None
    runner_up: RunnerUp | None
    bundle: str
    embedding_space: str
    embedding: list[float] | None

    def line(self) -> str:
        """The event as one JSON object without line breaks.

        Raises:
            ValueError: a number is not finite; JSON has no NaN and none is ever written.
        """
        return json.dumps(asdict(self), allow_nan=False, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class EndedTracklet:
    """A tracklet on its way to the embedder.

    Attributes:
        tracklet: the crops and boxes.
        live: its times are Unix time, else seconds from the stream's start.
        final: False when it was cut because the track is long.
    """

    tracklet: LiveTracklet
    live: bool
    final: bool


def new_run_id() -> str:
    """A name for one run: UTC start time to the second, then 24 random bits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def utc_text(unix_s: float) -> str:
    """Unix time as ISO 8601 in UTC with milliseconds, e.g. 2026-11-23T03:26:00.125Z."""
    return f"{datetime.fromtimestamp(unix_s, UTC).isoformat(timespec='milliseconds')[:-6]}Z"


class EventMaker:
    """Makes the events of one run; its counter makes the ids unique and ordered.

    Args:
        run_id: from `new_run_id`.
        bundle: name of the bundle's folder.
        embedding_space: hash that the bundle's manifest gives.
        threshold: cosine from which a match counts; None without a gallery.
        with_embedding: put the embedding into the event.
    """

    def __init__(
        self, run_id: str, bundle: str, embedding_space: str, threshold: float | None, *, with_embedding: bool
    ) -> None:
        self._run_id = run_id
        self._bundle = bundle
        self._space = embedding_space
        self._threshold = threshold
        self._with_embedding = with_embedding
        self._made = 0

    def make(
        self,
        ended: EndedTracklet,
        hr: bool,
        embedding: NDArray[np.float32],
        decision: Decision | None,
        *,
        now_unix_s: float,
    ) -> SightingEvent:
        """The event of one tracklet.

        Args:
            ended: the tracklet.
            hr: as its clip says.
            embedding: float32 (D,), finite.
            decision: of the gallery; None when there is no gallery.
            now_unix_s: Unix time of writing.
        """
        self._made += 1
        tracklet, live = ended.tracklet, ended.live
        heights = [float(box[3] - box[1]) for box in tracklet.boxes]
        event = SightingEvent(
            schema=SCHEMA,
            event_id=f"{self._run_id}-{self._made:06d}",
            run_id=self._run_id,
            wall_time=utc_text(now_unix_s),
            clock="unix" if live else "stream",
            first_s=round(tracklet.start_s, 3),
            last_s=round(tracklet.end_s, 3),
            first_time=utc_text(tracklet.start_s) if live else None,
            last_time=utc_text(tracklet.end_s) if live else None,
            camera=tracklet.camera,
            platform=PLATFORMS[tracklet.platform],
            track=tracklet.track,
            frames=tracklet.seen,
            final=ended.final,
            box=[round(float(edge), 1) for edge in tracklet.boxes[-1]],
            height_px=round(float(np.median(heights)), 1),
            resolution="hr" if hr else "lr",
            enhanced=not hr,
            decision="no_gallery",
            identity=None,
            score=None,
            threshold=None,
            runner_up=None,
            bundle=self._bundle,
            embedding_space=self._space,
            embedding=[float(value) for value in embedding] if self._with_embedding else None,
        )
        return event if decision is None else self._decided(event, decision)

    def _decided(self, event: SightingEvent, decision: Decision) -> SightingEvent:
        second = decision.runner_up
        return replace(
            event,
            decision="unknown" if decision.identity is None else "match",
            identity=decision.identity,
            score=round(decision.score, 4),
            threshold=self._threshold,
            runner_up=None if second is None else RunnerUp(second.identity, round(second.score, 4)),
        )


@dataclass(frozen=True, slots=True)
class Sighting:
    """An event with what it was made from, for the sinks of one process.

    Attributes:
        event: what leaves the process.
        clip: the crops that were embedded.
        embedding: float32 (D,) unit vector.
        matches: identities of the gallery, best first; empty without a gallery.
    """

    event: SightingEvent
    clip: Clip
    embedding: NDArray[np.float32]
    matches: tuple[Match, ...]
