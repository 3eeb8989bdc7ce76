"""The sighting event: what one look at a tracklet says to the outside world, as one JSON line.

`docs/events.md` documents every field; a test keeps the page and this class in step.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.spec import PLATFORMS
from s3clip_runtime.streams.frames import Clock
from s3clip_runtime.streams.looks import Chosen, Look, Reason, Stage, Tracklet

if TYPE_CHECKING:
    from s3clip_runtime.gallery.recognition.deciding import Recognised
    from s3clip_runtime.gallery.records import Kind, Match

SCHEMA = "s3clip.sighting/3"
"""Name and version of the event's fields. A removed or redefined field raises the number."""

STEPS = ("decode", "detect", "track", "wait", "enhance", "embed", "match")
"""The steps of a look, in order; `latency_ms` has one number a step, and their sum as `total`."""

Enhancement = Literal["used", "hr", "switch", "budget", "off"]
"""Why the super-resolver was used or not: used; the tracklet is HR; it is taller than the bundle's measured
switch point; the latency budget was missed; the user turned it off."""


Unasked = Literal["no_gallery", "not_matched", "not_embedded"]
"""Why the gallery said nothing: there is none; it could not be asked; there was no time to look closer."""

Verdict = Literal["match", "unknown", "uncalibrated", Unasked]
"""What is known of the person. match: somebody whom people named. uncalibrated: no threshold tells."""


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The second-best identity and its cosine similarity."""

    identity: str
    score: float


@dataclass(frozen=True, slots=True)
class ChosenFrame:
    """One frame that was embedded, and what spoke for it. Terms in [0, 1], see docs/events.md."""

    time_s: float
    weight: float
    quality: float
    size: float
    sharp: float
    score: float
    covered: float
    cut: bool
    box: list[float]


@dataclass(frozen=True, slots=True)
class SightingEvent:
    """One look at a tracklet and who it is. Field by field in docs/events.md."""

    schema: str
    event_id: str
    run_id: str
    wall_time: str
    look: Stage
    reason: Reason
    partial: bool
    clock: Clock
    first_s: float
    last_s: float
    first_time: str | None
    last_time: str | None
    camera: str
    platform: str
    epoch: int
    track: int
    part: int
    tracklet: str
    frames: int
    box: list[float]
    height_px: float
    resolution: Literal["lr", "hr"]
    enhanced: bool
    enhancement: Enhancement
    decision: Verdict
    identity: str | None
    person: Kind | None
    nearest: str | None
    score: float | None
    threshold: float | None
    probability: float | None
    runner_up: RunnerUp | None
    latency_ms: dict[str, float]
    bundle: str
    embedding_space: str
    chosen: list[ChosenFrame] | None
    embedding: list[float] | None

    @property
    def verdict(self) -> str:
        """Who it is in few words, for pictures, such as `anna 0.83`; empty if the gallery said nothing."""
        if self.score is None:
            return ""
        return f"{self.identity or self.decision} {self.score:.2f}"

    def line(self) -> str:
        """The event as one JSON object without line breaks.

        Raises:
            ValueError: a number is not finite; JSON has no NaN and none is ever written.
        """
        # Only what JSON does not know becomes a dict: copying all of the event took twice as long as writing.
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, default=asdict, allow_nan=False, ensure_ascii=False)


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
        with_embedding: put the embedding into the event.
        explain: put the chosen frames and their qualities into the event.
    """

    def __init__(
        self,
        run_id: str,
        bundle: str,
        embedding_space: str,
        *,
        with_embedding: bool,
        explain: bool = False,
    ) -> None:
        self.run_id = run_id
        self._bundle = bundle
        self._space = embedding_space
        self._with_embedding = with_embedding
        self._explain = explain
        self._made = 0

    def change(self, *, with_embedding: bool, explain: bool) -> None:
        """Other settings from the next event on."""
        self._with_embedding = with_embedding
        self._explain = explain

    def make(
        self,
        look: Look,
        enhancement: Enhancement,
        embedding: NDArray[np.float32] | None,
        found: Recognised | Unasked,
        latency_ms: Mapping[str, float],
        *,
        now_unix_s: float,
    ) -> SightingEvent:
        """The event of one look.

        Args:
            look: what was embedded.
            enhancement: why the super-resolver was used or not.
            embedding: float32 (D,), finite; None when there was no time to make it.
            found: by the gallery, or why it said nothing.
            latency_ms: milliseconds of each of `STEPS`.
            now_unix_s: Unix time of writing.
        """
        self._made += 1
        tracklet = look.tracklet
        real_time = tracklet.clock != "stream"
        heights = (tracklet.boxes[:, 3] - tracklet.boxes[:, 1]).astype(np.float64)
        event = SightingEvent(
            schema=SCHEMA,
            event_id=f"{self.run_id}-{self._made:06d}",
            run_id=self.run_id,
            wall_time=utc_text(now_unix_s),
            look=look.stage,
            reason=look.reason,
            partial=look.partial,
            clock=tracklet.clock,
            first_s=round(tracklet.start_s, 3),
            last_s=round(tracklet.end_s, 3),
            first_time=utc_text(tracklet.start_s) if real_time else None,
            last_time=utc_text(tracklet.end_s) if real_time else None,
            camera=tracklet.camera,
            platform=PLATFORMS[tracklet.platform],
            epoch=tracklet.epoch,
            track=tracklet.track,
            part=tracklet.part,
            tracklet=tracklet.key,
            frames=tracklet.seen,
            box=_corners(tracklet.boxes[-1]),
            height_px=round(float(np.median(heights)), 1),
            resolution="hr" if look.clip.hr else "lr",
            enhanced=enhancement == "used",
            enhancement=enhancement,
            decision=found if isinstance(found, str) else _decision(found),
            identity=None,
            person=None,
            nearest=None,
            score=None,
            threshold=None,
            probability=None,
            runner_up=None,
            latency_ms=_with_total(latency_ms),
            bundle=self._bundle,
            embedding_space=self._space,
            chosen=[_chosen(tracklet, one) for one in look.chosen] if self._explain else None,
            embedding=None if embedding is None or not self._with_embedding else embedding.tolist(),
        )
        return event if isinstance(found, str) else _with_person(event, found)


def _decision(found: Recognised) -> Verdict:
    """Unknown people with an id are unknown still: a match is somebody whom people named."""
    if found.identity is not None:
        return "match" if found.identity.kind == "known" else "unknown"
    return "uncalibrated" if found.decision.verdict == "uncalibrated" else "unknown"


def _with_person(event: SightingEvent, found: Recognised) -> SightingEvent:
    decision, who = found.decision, found.identity
    second = decision.runner_up
    return replace(
        event,
        identity=None if who is None else who.name,
        person=None if who is None else who.kind,
        nearest=decision.nearest,
        score=round(decision.score, 4),
        threshold=None if decision.threshold is None else round(decision.threshold, 4),
        probability=None if decision.probability is None else round(decision.probability, 4),
        runner_up=None if second is None else RunnerUp(second.identity, round(second.score, 4)),
    )


def _with_total(latency_ms: Mapping[str, float]) -> dict[str, float]:
    steps = {step: round(latency_ms[step], 1) for step in STEPS}
    return {**steps, "total": round(sum(latency_ms[step] for step in STEPS), 1)}


def _chosen(tracklet: Tracklet, one: Chosen) -> ChosenFrame:
    quality = tracklet.qualities[one.position]
    return ChosenFrame(
        time_s=round(float(tracklet.times[one.position]), 3),
        weight=round(one.weight, 4),
        quality=round(quality.value, 4),
        size=round(quality.size, 4),
        sharp=round(quality.sharp, 4),
        score=round(quality.score, 4),
        covered=round(quality.covered, 4),
        cut=quality.cut,
        box=_corners(tracklet.boxes[one.position]),
    )


def _corners(box: NDArray[np.float32]) -> list[float]:
    return [round(edge, 1) for edge in box.tolist()]


@dataclass(frozen=True, slots=True)
class Sighting:
    """An event with what it was made from, for the sinks of one process.

    Attributes:
        event: what leaves the process.
        clip: the crops that were embedded.
        embedding: float32 (D,) unit vector; None where there was no time to make it.
        matches: identities of the gallery, best first; empty without a gallery.
        pictures: uint8 (T, 128, 64, 3) RGB, the super-resolved crops; None where none were made.
    """

    event: SightingEvent
    clip: Clip
    embedding: NDArray[np.float32] | None
    matches: tuple[Match, ...]
    pictures: NDArray[np.uint8] | None = None
