"""What the page shows: the newest frame of each camera and the last sightings, kept until somebody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from s3clip_runtime.gallery.records import Match
from s3clip_runtime.streams.events import Sighting, SightingEvent
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.page.pictures import Picture, frame_jpeg, strip_jpeg, thumbnail
from s3clip_runtime.streams.status import OutputStatus

KEPT_SIGHTINGS = 60
"""Looks that the board keeps, one a tracklet."""

MATCHES_SHOWN = 3
"""Best identities of a sighting that the board keeps."""

What = Literal["before", "after"]
"""The crops as the camera gave them, or as the super-resolver made them."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest frame of a camera.

    Attributes:
        version: rises with every frame, and is never used twice.
        age_s: seconds since it was decoded, >= 0.
    """

    version: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Shot:
    """A camera's frame as JPEG, with the version that `Newest` has."""

    version: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """One sighting as the board keeps it.

    Attributes:
        event: without embedding and chosen frames, which nobody sees here.
        matches: best first, at most `MATCHES_SHOWN`.
        before: the crops that were embedded, each at most 128x64.
        after: the same super-resolved; empty where none were made.
    """

    event: SightingEvent
    matches: tuple[Match, ...]
    before: tuple[Picture, ...]
    after: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class _Shown:
    version: int
    frame: Frame
    observations: tuple[Observation, ...]


class Board:
    """Keeps what the page shows. Any thread may call any method.

    `frame` and `sighting` only keep; drawing and encoding happen in the thread that asks, one at a time, so
    that viewers never take more than one core from the run.

    Args:
        keep: sightings that are kept.
    """

    def __init__(self, keep: int = KEPT_SIGHTINGS) -> None:
        self._keep = keep
        self._changed = threading.Condition()  # guards all that follows but the drawing
        self._shown: dict[str, _Shown] = {}
        self._shots: dict[str, Shot] = {}
        self._seen: dict[str, Seen] = {}  # by tracklet, oldest first
        self._frames = 0
        self._taken = 0
        self._drawing = threading.Lock()

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Keep a processed frame in place of its camera's last one. Its image must not change afterwards."""
        with self._changed:
            self._frames += 1
            self._shown[frame.camera] = _Shown(self._frames, frame, tuple(observations))
            self._changed.notify_all()

    def sighting(self, sighting: Sighting) -> None:
        """Keep one look; a later look of the same tracklet takes its place and moves to the front."""
        pictures = () if sighting.pictures is None else tuple(sighting.pictures)
        seen = Seen(
            event=replace(sighting.event, embedding=None, chosen=None),
            matches=sighting.matches[:MATCHES_SHOWN],
            before=tuple(thumbnail(crop) for crop in sighting.clip.crops),
            after=tuple(thumbnail(picture) for picture in pictures),
        )
        with self._changed:
            self._taken += 1
            self._seen.pop(seen.event.tracklet, None)
            self._seen[seen.event.tracklet] = seen
            if len(self._seen) > self._keep:
                del self._seen[next(iter(self._seen))]

    def forget_camera(self, name: str) -> None:
        """Drop the picture and the sightings of a camera; one that is not known is no error."""
        with self._changed:
            self._shown.pop(name, None)
            self._shots.pop(name, None)
            self._seen = {key: seen for key, seen in self._seen.items() if seen.event.camera != name}
            self._changed.notify_all()

    def status(self) -> OutputStatus:
        """As an output: everything is delivered at once."""
        with self._changed:
            return OutputStatus("page", delivered=self._taken)

    def close(self) -> None:
        """Drop all pictures."""
        with self._changed:
            self._shown.clear()
            self._shots.clear()
            self._seen.clear()
            self._changed.notify_all()

    def newest(self, camera: str) -> Newest | None:
        """Which frame the camera shows; None before its first one."""
        with self._changed:
            shown = self._shown.get(camera)
        if shown is None:
            return None
        return Newest(shown.version, max(0.0, time.monotonic() - shown.frame.ready_s))

    def sightings(self) -> list[Seen]:
        """The kept sightings, newest first."""
        with self._changed:
            return list(self._seen.values())[::-1]

    def shot(self, camera: str) -> Shot | None:
        """The camera's newest frame with its tracks, encoded once however many ask; None without a frame."""
        with self._drawing:
            with self._changed:
                shown, drawn = self._shown.get(camera), self._shots.get(camera)
                names = {} if shown is None else self._names(camera)
            if shown is None or (drawn is not None and drawn.version == shown.version):
                return None if shown is None else drawn
            drawn = Shot(shown.version, frame_jpeg(shown.frame, shown.observations, names))
            with self._changed:
                if camera in self._shown:
                    self._shots[camera] = drawn
            return drawn

    def wait_newer(self, camera: str, version: int, timeout_s: float) -> bool:
        """Wait until the camera shows another frame than `version`, or none; False at the time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._version(camera) != version, timeout_s)

    def strip(self, event_id: str, what: What) -> bytes | None:
        """The crops of a sighting as one JPEG; None if it is not kept or has no such crops."""
        with self._changed:
            found = [seen for seen in self._seen.values() if seen.event.event_id == event_id]
        crops = (found[0].before if what == "before" else found[0].after) if found else ()
        if not crops:
            return None
        with self._drawing:
            return strip_jpeg(crops)

    def _version(self, camera: str) -> int | None:
        shown = self._shown.get(camera)
        return None if shown is None else shown.version

    def _names(self, camera: str) -> dict[int, str]:
        """What the newest look says about each track, as far as it is kept."""
        events = [seen.event for seen in self._seen.values() if seen.event.camera == camera]
        return {event.track: event.verdict for event in events}
