"""Detections of one camera to tracks: ByteTrack (arXiv 2110.06864) of the `trackers` library."""

from __future__ import annotations

import numpy as np
import supervision
from trackers import ByteTrackTracker

from s3clip_runtime.streams.frames import Detections, Frame, Observation

NOMINAL_FPS = 10.0
"""Rate assumed while a camera's is not known. Real times drive the tracker; this scales its noise only."""

LOST_S = 1.0
"""Seconds that a track may be unseen and still be found again."""

ACTIVATION_SCORE = 0.4
"""Least score of a detection that starts a track or is matched first; weaker ones only continue tracks."""

MIN_IOU = 0.2
"""Least overlap with the predicted box. Low, because at 7-10 frames a second people move half their width."""

MIN_FRAMES = 2
"""Detections in a row before a track counts; single false alarms never become one."""

_LIBRARY_FPS = 30.0
"""The library states its buffer in frames of a 30 fps video, whatever the real rate is."""


class CameraTracker:
    """Tracks of one camera. Ids count from 1 in each instance and never depend on other cameras.

    Args:
        fps: the source's rate, None if unknown.
        lost_s: seconds that a track may be unseen and still be found again.
    """

    def __init__(self, fps: float | None = None, *, lost_s: float = LOST_S) -> None:
        self._tracker = ByteTrackTracker(
            lost_track_buffer=round(lost_s * _LIBRARY_FPS),
            frame_rate=fps or NOMINAL_FPS,
            track_activation_threshold=ACTIVATION_SCORE,
            high_conf_det_threshold=ACTIVATION_SCORE,
            minimum_consecutive_frames=MIN_FRAMES,
            minimum_iou_threshold=MIN_IOU,
        )

    def update(self, frame: Frame, detections: Detections) -> list[Observation]:
        """Persons of this frame that belong to a track, by id. Call it for every frame, also empty ones.

        `frame.time_s` must rise from call to call; gaps (dropped frames) are allowed for.
        """
        found = supervision.Detections(xyxy=detections.boxes, confidence=detections.scores)
        tracked = self._tracker.update(found, timestamp=frame.time_s)
        # The library numbers the tracks of each instance from 0 and marks what has no track with -1.
        observations = [
            Observation(int(track) + 1, np.asarray(box, np.float32), float(score))
            for track, box, score in zip(tracked.tracker_id, tracked.xyxy, tracked.confidence, strict=True)
            if track >= 0
        ]
        return sorted(observations, key=lambda observation: observation.track)
