"""Detections of one camera to tracks: ByteTrack and BoT-SORT (arXiv 2110.06864, 2206.14651) of `trackers`."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import supervision
from trackers import CMC, BoTSORTTracker, ByteTrackTracker

from s3clip_runtime.streams.frames import Detections, Frame, Observation
from s3clip_runtime.streams.tracking.camera_motion import CameraMotion

_log = logging.getLogger(__name__)

Kind = Literal["bytetrack", "botsort"]
"""bytetrack for fixed cameras; botsort allows for the motion of the camera too, for some 10 ms a frame."""

NOMINAL_FPS = 10.0
"""Rate assumed while a camera's is not known. Real times drive the tracker; this scales its noise only."""

LOST_S = 1.0
"""Seconds that a track may be unseen and still be found again."""

ACTIVATION_SCORE = 0.4
"""Least score of a detection that starts a track or is matched first; weaker ones only continue tracks."""

MIN_IOU = 0.2
"""Least overlap with the predicted box. Low, because at 7-10 frames a second people move half their width."""

MIN_FUSED = MIN_IOU * ACTIVATION_SCORE
"""The same limit for BoT-SORT, which multiplies the overlap by the detection's score."""

MIN_FRAMES = 2
"""Detections in a row before a track counts; single false alarms never become one."""

_LIBRARY_FPS = 30.0
"""The library states its buffer in frames of a 30 fps video, whatever the real rate is."""


class CameraTracker:
    """Tracks of one camera. Ids count from 1 in each instance and never depend on other cameras.

    An epoch is a stretch of the video that no track crosses the end of. A new one starts after more than
    `lost_s` without a frame, which no track could bridge anyway, and when the size of the picture changes.
    Ids go on rising through all epochs: none is given twice.

    Args:
        kind: the method.
        fps: the source's rate, None if unknown.
        lost_s: seconds that a track may be unseen and still be found again. Frames must come faster.
        tracks_before: ids that were given before.

    Attributes:
        given: the highest id so far.
    """

    def __init__(
        self,
        kind: Kind = "bytetrack",
        fps: float | None = None,
        *,
        lost_s: float = LOST_S,
        tracks_before: int = 0,
    ) -> None:
        self.epoch = 0
        self._kind: Kind = kind
        self._fps, self._lost_s = fps or NOMINAL_FPS, lost_s
        self._last: tuple[float, tuple[int, ...]] | None = None
        self.given = tracks_before
        self._start()

    def update(self, frame: Frame, detections: Detections) -> list[Observation]:
        """Persons of this frame that belong to a track, by id. Call it for every frame, also empty ones.

        `frame.time_s` must rise from call to call.
        """
        self._begin_epoch_if_broken(frame)
        if self._motion is not None:
            self._follow_camera(self._motion, frame, detections)
        found = supervision.Detections(xyxy=detections.boxes, confidence=detections.scores)
        tracked = self._tracker.update(found, timestamp=frame.time_s)
        # The library numbers the tracks of each instance from 0 and marks what has no track with -1.
        observations = [
            Observation(int(track) + self._first, np.asarray(box, np.float32), float(score))
            for track, box, score in zip(tracked.tracker_id, tracked.xyxy, tracked.confidence, strict=True)
            if track >= 0
        ]
        self.given = max([self.given, *(observation.track for observation in observations)])
        return sorted(observations, key=lambda observation: observation.track)

    def _start(self) -> None:
        """A tracker that knows nothing. A new one, for the library's reset() counts ids from 0 again too."""
        self._first = self.given + 1
        self._motion = CameraMotion() if self._kind == "botsort" else None
        buffer = round(self._lost_s * _LIBRARY_FPS)
        if self._kind == "bytetrack":
            self._tracker = ByteTrackTracker(
                lost_track_buffer=buffer,
                frame_rate=self._fps,
                track_activation_threshold=ACTIVATION_SCORE,
                high_conf_det_threshold=ACTIVATION_SCORE,
                minimum_consecutive_frames=MIN_FRAMES,
                minimum_iou_threshold=MIN_IOU,
            )
        else:
            self._tracker = BoTSORTTracker(
                lost_track_buffer=buffer,
                frame_rate=self._fps,
                track_activation_threshold=ACTIVATION_SCORE,
                high_conf_det_threshold=ACTIVATION_SCORE,
                minimum_consecutive_frames=MIN_FRAMES,
                minimum_iou_threshold_first_assoc=MIN_FUSED,
                minimum_iou_threshold_second_assoc=MIN_IOU,
                minimum_iou_threshold_unconfirmed_assoc=MIN_FUSED,
                instant_first_frame_activation=False,
                enable_cmc=False,  # done here, see CameraMotion
            )

    def _begin_epoch_if_broken(self, frame: Frame) -> None:
        last, self._last = self._last, (frame.time_s, frame.image.shape)
        if last is None:
            return
        gap_s, resized = frame.time_s - last[0], frame.image.shape != last[1]
        if gap_s > self._lost_s or resized:
            self.epoch += 1
            cause = "the picture's size changed" if resized else f"no frame for {gap_s:.1f} s"
            _log.info("camera %s: %s; tracks start again, epoch %d", frame.camera, cause, self.epoch)
            self._start()

    def _follow_camera(self, motion: CameraMotion, frame: Frame, detections: Detections) -> None:
        """Move the tracks as the picture moved; the library then predicts from there.

        Both are linear, so the order does not matter. Without tracks and persons nothing is computed.
        """
        if not self._tracker.tracks and not len(detections.boxes):
            motion.forget()
        else:
            CMC.apply_batch(motion.update(frame.image, detections.boxes), self._tracker.tracks)
