"""One camera of a run: its source, its tracker, its tracklets, and what is counted of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from s3clip_runtime.errors import S3ClipError
from s3clip_runtime.inference.spec import platform_id
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.detection.external import ExternalBoxes
from s3clip_runtime.streams.frames import Detections, Frame, Observation
from s3clip_runtime.streams.looks import FrameCost, Look
from s3clip_runtime.streams.reading.sources import ReadOptions, Source, SourceSpec, open_source
from s3clip_runtime.streams.status import CameraStatus, FeedStatus
from s3clip_runtime.streams.tracking.tracker import LOST_S, CameraTracker, Kind
from s3clip_runtime.streams.tracking.tracklets import FIRST_FRAMES, Ending, TrackletBuilder

MAX_GAP_S = LOST_S
"""A track that is unseen for longer has ended: the tracker would not find it again either."""

MAX_TRACKLET_S = 10.0
"""Longer tracks are cut, so a person who stays is reported at least so often."""

MIN_FRAMES = 4
"""Default of `min_frames`: tracklets seen in fewer frames are mostly false alarms."""

FPS_FRAMES = 64
"""Frames that a camera's rate is measured over."""


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """What a camera is made of.

    Attributes:
        spec: what to read.
        detector: not shared with other cameras if it remembers frames.
        options: how to read it.
        tracker: "bytetrack", or "botsort" for a camera that moves.
        min_frames: tracklets seen in fewer frames are counted, but give no event; the tracker spends one
            more frame on confirming a track.
        first_frames: frames after which the first look is taken.
    """

    spec: SourceSpec
    detector: Detector
    options: ReadOptions = field(default_factory=ReadOptions)
    tracker: Kind = "bytetrack"
    min_frames: int = MIN_FRAMES
    first_frames: int = FIRST_FRAMES


class Camera:
    """An open source with the parts that only it uses. Close it.

    Args:
        plan: what it is made of.
        tracks_before: ids that a camera of the same name has given in this run.

    Raises:
        SourceError: the source cannot be opened, see `open_source`.
    """

    def __init__(self, plan: CameraPlan, tracks_before: int = 0) -> None:
        self.spec = plan.spec
        self.detector = plan.detector
        self.min_frames = plan.min_frames
        self.source: Source = open_source(plan.spec, plan.options)
        self.ended = False
        self.error: S3ClipError | None = None
        self.frames = self.tracklets = self.too_short = 0
        self._tracker = CameraTracker(plan.tracker, tracks_before=tracks_before)
        self._builder = TrackletBuilder(
            plan.spec.name,
            platform_id(plan.spec.platform),
            max_gap_s=MAX_GAP_S,
            max_seconds=MAX_TRACKLET_S,
            first_frames=plan.first_frames,
        )
        self._opened_s = time.monotonic()
        self._ended_s: float | None = None
        self._taken_s: deque[float] = deque(maxlen=FPS_FRAMES)
        self._newest: Frame | None = None
        self._cost = FrameCost()

    def observe(
        self, frame: Frame, detections: Detections, *, taken_s: float, detect_ms: float
    ) -> tuple[list[Observation], list[Look]]:
        """Persons of the frame, and the looks that are due at its time.

        Args:
            frame: the newest one.
            detections: in it.
            taken_s: monotonic time at which it was taken from the source.
            detect_ms: milliseconds of the detector's batch.
        """
        began_s = time.monotonic()
        observations = self._tracker.update(frame, detections)
        looks = self._builder.add(frame, observations, self._tracker.epoch)
        self.frames += 1
        self._newest = frame
        self._taken_s.append(taken_s)
        queued_ms = max(1000 * (taken_s - frame.ready_s), 0.0)
        track_ms = 1000 * (time.monotonic() - began_s)
        self._cost = FrameCost(frame.decode_ms, queued_ms, detect_ms, track_ms)
        return observations, self._counted(looks)

    def idle(self) -> list[Look]:
        """Looks at tracklets that have ended although no frame comes: a live camera that went dark."""
        if not self.live or self._newest is None:
            return []
        dark_s = time.monotonic() - self._taken_s[-1]
        return self._counted(self._builder.expire(self._newest.time_s + dark_s))

    def finish(self, reason: Ending) -> list[Look]:
        """Last looks at all tracklets that are still open; no frame may follow."""
        self.ended = True
        self._ended_s = time.monotonic()
        return self._counted(self._builder.finish(reason))

    @property
    def live(self) -> bool:
        """It is a stream, not a file. An HTTP address may turn out to be a file once it is open."""
        return self.source.live

    @property
    def tracks(self) -> int:
        """Ids given so far."""
        return self._tracker.given

    def close(self) -> None:
        """Close the source. A second call does nothing."""
        self.source.close()

    def status(self, *, events: int, shed: int) -> CameraStatus:
        """How it is doing. Any thread may ask."""
        return CameraStatus(
            name=self.spec.name,
            platform=self.spec.platform,
            live=self.live,
            source=self.source.status(),
            frames=self.frames,
            fps=self._fps(),
            seconds=(self._ended_s or time.monotonic()) - self._opened_s,
            tracks_open=self._builder.open,
            tracklets=self.tracklets,
            too_short=self.too_short,
            events=events,
            shed=shed,
            error=None if self.error is None else str(self.error),
            boxes=self._boxes(),
        )

    def _boxes(self) -> FeedStatus | None:
        if not isinstance(self.detector, ExternalBoxes):
            return None
        return self.detector.status.cameras[self.spec.name]

    def _fps(self) -> float | None:
        taken_s = list(self._taken_s)
        return (len(taken_s) - 1) / (taken_s[-1] - taken_s[0]) if len(taken_s) >= 8 else None

    def _counted(self, looks: Iterable[Look]) -> list[Look]:
        """The looks that give events, with what the newest frame cost."""
        good = []
        for look in looks:
            if look.stage != "final" and not self.live:
                continue  # nobody waits for an early answer about a file
            enough = look.tracklet.seen >= self.min_frames
            if look.stage == "final":
                self.tracklets += enough
                self.too_short += not enough
            if enough:
                good.append(replace(look, live=self.live, cost=self._cost))
        return good
