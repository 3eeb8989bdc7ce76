"""From observations to looks: the crops of one track, cut, rated, thinned, and handed out while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import Clip, is_hr_tracklet
from s3clip_runtime.inference.spec import FRAME_SIZE
from s3clip_runtime.streams.frames import Clock, Frame, Observation
from s3clip_runtime.streams.looks import Crop, CropQuality, Look, Reason, Stage, Tracklet
from s3clip_runtime.streams.tracking.quality import choose, crop_quality, pixel_box

MAX_CROP_PIXELS = 4 * FRAME_SIZE[0] * FRAME_SIZE[1]
"""Larger crops are shrunk to this area, 512x256, so 64 crops of a 4K camera are at most 25 MB and not 200.

Inference shrinks to 256x128 in any case. Doing it in two steps changed 1000x400 crops by 0.3 of 255 levels on
average, and their embeddings by less than 1e-6 in cosine; one step further down, 256x128, by 3 levels.
"""

FIRST_FRAMES = 8
"""Default of `first_frames`: as many as a clip has, so the first look needs no repeated crop."""


Ending = Literal["end", "stop", "lost"]
"""Why all tracklets of a camera end at once."""


class TrackletBuilder:
    """Collects the observations of one camera into tracklets, and looks at them while they grow.

    A tracklet gives its first look after `first_frames` observations, a refined one each time their number
    has doubled since, and a final one when it ends, however short it was. So its looks grow with the
    logarithm of its length.

    Args:
        camera: name of the source.
        platform: platform id of the camera (`spec.platform_id`).
        max_gap_s: a track that is unseen for longer has ended.
        max_seconds: longest tracklet; its track goes on in the next part, so who stays is reported too.
        first_frames: observations before the first look, >= 1.
        max_frames_kept: most crops of one tracklet, >= 1; with `MAX_CROP_PIXELS` they bound its memory.
    """

    def __init__(
        self,
        camera: str,
        platform: int,
        *,
        max_gap_s: float,
        max_seconds: float,
        first_frames: int = FIRST_FRAMES,
        max_frames_kept: int = 64,
    ) -> None:
        self._camera, self._platform = camera, platform
        self._max_gap_s, self._max_seconds = max_gap_s, max_seconds
        self._first_frames, self._limit = first_frames, max_frames_kept
        self._open: dict[int, _OpenTracklet] = {}
        self._epoch = 0
        self._last_s: float | None = None

    @property
    def open(self) -> int:
        """Tracklets that have not ended."""
        return len(self._open)

    def add(self, frame: Frame, observations: Sequence[Observation], epoch: int) -> list[Look]:
        """Take the persons of one frame; call it for every frame, also empty ones.

        Args:
            frame: the picture and its time, which must rise.
            observations: with the track ids of `CameraTracker`.
            epoch: of `CameraTracker`. A new one ends all tracklets: "lost".

        Returns:
            The looks that are due, in the order of their tracklets' starts; endings come first.
        """
        looks = self.expire(frame.time_s)
        if epoch != self._epoch:
            looks += self.finish("lost")
        self._epoch, self._last_s = epoch, frame.time_s
        if not observations:
            return looks
        boxes = np.stack([observation.box for observation in observations])
        scores = np.array([observation.score for observation in observations], np.float32)
        for observation, quality in zip(observations, crop_quality(frame.image, boxes, scores), strict=True):
            tracklet = self._open.get(observation.track)
            if tracklet is None:
                tracklet = self._begin(observation.track, 0, frame)
            elif frame.time_s - tracklet.start_s >= self._max_seconds:
                looks.append(self._look(tracklet, "final", "long"))
                tracklet = self._begin(observation.track, tracklet.part + 1, frame)
            tracklet.add(frame, observation.box, quality, self._limit)
            if self._is_due(tracklet.seen):
                stage: Stage = "first" if tracklet.seen == self._first_frames else "refined"
                looks.append(self._look(tracklet, stage, "growing"))
        return looks

    def expire(self, time_s: float) -> list[Look]:
        """Final looks at the tracklets that have ended by `time_s`. `add` does it by itself.

        For a camera that sends nothing: when no frame came for `max_gap_s`, nobody knows whether the persons
        are still there, and the reason is "lost" instead of "gone".
        """
        silent = self._last_s is not None and time_s - self._last_s > self._max_gap_s
        ended = [one for one in self._open.values() if time_s - one.end_s > self._max_gap_s]
        for tracklet in ended:
            del self._open[tracklet.track]
        return [self._look(tracklet, "final", "lost" if silent else "gone") for tracklet in ended]

    def finish(self, reason: Ending) -> list[Look]:
        """Final looks at all tracklets that are still open."""
        ended = list(self._open.values())
        self._open.clear()
        return [self._look(tracklet, "final", reason) for tracklet in ended]

    def _begin(self, track: int, part: int, frame: Frame) -> _OpenTracklet:
        tracklet = _OpenTracklet(track, part, self._epoch, frame.clock, frame.time_s)
        self._open[track] = tracklet
        return tracklet

    def _is_due(self, seen: int) -> bool:
        """True at first_frames times 1, 2, 4, 8, ..."""
        times, rest = divmod(seen, self._first_frames)
        return rest == 0 and times.bit_count() == 1

    def _look(self, one: _OpenTracklet, stage: Stage, reason: Reason) -> Look:
        crops = tuple(sample.crop for sample in one.samples)
        tracklet = Tracklet(
            camera=self._camera,
            platform=self._platform,
            clock=one.clock,
            epoch=one.epoch,
            track=one.track,
            part=one.part,
            start_s=one.start_s,
            end_s=one.end_s,
            seen=one.seen,
            crops=crops,
            qualities=tuple(sample.quality for sample in one.samples),
            times=np.array([sample.time_s for sample in one.samples], np.float64),
            boxes=np.array([sample.box for sample in one.samples], np.float32),
        )
        chosen = choose(tracklet.qualities)
        hr = is_hr_tracklet([crop.shape[:2] for crop in crops])
        clip = Clip(tuple(crops[choice.position] for choice in chosen), self._platform, hr)
        return Look(tracklet, stage, reason, clip, chosen)


@dataclass(frozen=True, slots=True)
class _Sample:
    quality: CropQuality
    time_s: float
    box: NDArray[np.float32]
    crop: Crop


class _OpenTracklet:
    """A tracklet that grows. Each sample is the best of `span` observations in a row.

    When all samples are used, neighbours are merged in pairs (the better one stays) and the span doubles:
    memory is bounded and the samples stay evenly spread, however long the track gets.
    """

    def __init__(self, track: int, part: int, epoch: int, clock: Clock, start_s: float) -> None:
        self.track, self.part, self.epoch, self.clock = track, part, epoch, clock
        self.start_s = self.end_s = start_s
        self.seen = 0
        self.span = 1
        self.samples: list[_Sample] = []

    def add(self, frame: Frame, box: NDArray[np.float32], quality: CropQuality, limit: int) -> None:
        slot = self.seen // self.span
        if slot == limit:
            pairs = [self.samples[i : i + 2] for i in range(0, limit, 2)]
            self.samples = [max(pair, key=lambda sample: sample.quality.value) for pair in pairs]
            self.span *= 2
            slot = self.seen // self.span
        self.seen += 1
        self.end_s = frame.time_s
        if slot == len(self.samples):
            self.samples.append(_Sample(quality, frame.time_s, box, cut(frame.image, box)))
        elif quality.value > self.samples[slot].quality.value:
            self.samples[slot] = _Sample(quality, frame.time_s, box, cut(frame.image, box))


def cut(image: Crop, box: NDArray[np.float32]) -> Crop:
    """A copy of the pixels that `box` touches, so that the frame can be freed.

    Returns:
        uint8 (h, w, 3), at least 1x1; more than `MAX_CROP_PIXELS` are shrunk to it, proportions kept.
    """
    x1, y1, x2, y2 = pixel_box(image, box)
    crop = image[y1:y2, x1:x2]
    scale = sqrt(MAX_CROP_PIXELS / ((y2 - y1) * (x2 - x1)))
    if scale >= 1:
        return crop.copy()
    size = (max(int((x2 - x1) * scale), 1), max(int((y2 - y1) * scale), 1))
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)
