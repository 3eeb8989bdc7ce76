"""One camera of a pipeline: detect, track, build tracklets, and keep count."""

from __future__ import annotations

from dataclasses import dataclass

from s3clip_runtime.errors import S3ClipError
from s3clip_runtime.inference.spec import platform_id
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.events import EndedTracklet
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.reading.sources import SourceSpec
from s3clip_runtime.streams.tracking.tracker import LOST_S, CameraTracker
from s3clip_runtime.streams.tracking.tracklets import TrackletBuilder

MAX_GAP_S = LOST_S
"""A track that is unseen for longer has ended: the tracker would not find it again either."""

MAX_TRACKLET_S = 10.0
"""Longer tracks are cut, so a person who stays is reported at least so often."""

MIN_FRAMES = 4
"""Default of `min_frames`: tracklets seen in fewer frames are mostly false alarms."""


@dataclass(slots=True)
class CameraReport:
    """What one camera did in a run.

    Attributes:
        camera: name of the source.
        live: it is a stream, not a file.
        frames: processed.
        dropped: left out by a live source because they were damaged or nobody took them in time.
        reconnects: connections after the first one.
        tracklets: submitted for recognition.
        min_frames: tracklets seen in fewer frames give no event.
        too_short: how many those were.
        events: delivered; equals `tracklets` when the run ended in order.
        seconds: from the run's start to the end of this camera.
        error: None when it ended as it should.
    """

    camera: str
    live: bool = False
    frames: int = 0
    dropped: int = 0
    reconnects: int = 0
    tracklets: int = 0
    min_frames: int = MIN_FRAMES
    too_short: int = 0
    events: int = 0
    seconds: float = 0.0
    error: S3ClipError | None = None

    @property
    def fps(self) -> float:
        """Processed frames a second of wall time."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


class Camera:
    """One source with the parts that only it uses.

    Args:
        spec: what to read.
        detector: not shared with other cameras if it remembers frames.
        min_frames: tracklets seen in fewer frames are counted, but give no event; the tracker
            spends one more frame on confirming a track.
    """

    def __init__(self, spec: SourceSpec, detector: Detector, min_frames: int = MIN_FRAMES) -> None:
        self.spec = spec
        self.report = CameraReport(spec.name, min_frames=min_frames)
        self._detector = detector
        self._tracker = CameraTracker()
        self._builder = TrackletBuilder(
            spec.name, platform_id(spec.platform), max_gap_s=MAX_GAP_S, max_seconds=MAX_TRACKLET_S
        )

    def process(self, frame: Frame) -> tuple[list[Observation], list[EndedTracklet]]:
        """Persons of the frame, and the tracklets that have ended by its time."""
        ended = self.expire(frame.time_s)
        observations = self._tracker.update(frame, self._detector.detect(frame))
        self._builder.add(frame, observations)  # ends none: expire has just taken them
        self.report.frames += 1
        return observations, ended

    def expire(self, time_s: float) -> list[EndedTracklet]:
        """Tracklets that have ended by `time_s`, also when no frame comes any more."""
        return [
            EndedTracklet(tracklet, self.report.live, final=time_s - tracklet.end_s > MAX_GAP_S)
            for tracklet in self._builder.expire(time_s)
        ]

    def finish(self) -> list[EndedTracklet]:
        """All tracklets that are still open."""
        return [EndedTracklet(one, self.report.live, final=True) for one in self._builder.finish()]
