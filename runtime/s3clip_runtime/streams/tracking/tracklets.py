"""From observations to tracklets: the crops of one track, cut, rated, thinned and closed in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import Clip, best_indices, is_hr_tracklet
from s3clip_runtime.inference.spec import HR_MIN_SIZE, LR_SIZE
from s3clip_runtime.streams.frames import Frame, Observation

Crop = NDArray[np.uint8]

SHARP_VARIANCE = 500.0
"""Variance of the Laplacian, at 64x32, that counts as half sharp."""


@dataclass(frozen=True, slots=True)
class LiveTracklet:
    """A finished tracklet: one person, one camera, one stretch of time.

    Attributes:
        camera: name of the source.
        platform: platform id (`spec.PLATFORMS`).
        track: id within the camera. A long track gives several tracklets with the same id.
        start_s, end_s: times of the first and last observation, also if their crops were thinned out.
        seen: observations, of which `crops` holds the best.
        crops: N >= 1 uint8 (h, w, 3) RGB in temporal order, each with its own memory.
        quality: float32 (N,) in [0, 1], see `crop_quality`.
        times: float64 (N,) seconds, as in `Frame.time_s`.
        boxes: float32 (N, 4) x1, y1, x2, y2 in pixels of the frame.
    """

    camera: str
    platform: int
    track: int
    start_s: float
    end_s: float
    seen: int
    crops: tuple[Crop, ...]
    quality: NDArray[np.float32]
    times: NDArray[np.float64]
    boxes: NDArray[np.float32]

    def clip(self) -> Clip:
        """The T crops that represent the tracklet; HR is decided on all crops it holds."""
        chosen = tuple(self.crops[i] for i in best_indices(self.quality))
        return Clip(chosen, self.platform, is_hr_tracklet([crop.shape[:2] for crop in self.crops]))


@dataclass(slots=True)
class _Sample:
    quality: float
    time_s: float
    box: NDArray[np.float32]
    crop: Crop


class _OpenTracklet:
    """A tracklet that grows. Each sample is the best of `span` observations in a row.

    When all samples are used, neighbours are merged in pairs (the better one stays) and the span doubles:
    memory is bounded and the samples stay evenly spread, however long the track gets.
    """

    def __init__(self, track: int, start_s: float) -> None:
        self.track = track
        self.start_s = self.end_s = start_s
        self.seen = 0
        self.span = 1
        self.samples: list[_Sample] = []

    def add(self, image: Crop, box: NDArray[np.float32], quality: float, time_s: float, limit: int) -> None:
        slot = self.seen // self.span
        if slot == limit:
            pairs = [self.samples[i : i + 2] for i in range(0, limit, 2)]
            self.samples = [max(pair, key=lambda sample: sample.quality) for pair in pairs]
            self.span *= 2
            slot = self.seen // self.span
        self.seen += 1
        self.end_s = time_s
        if slot == len(self.samples):
            self.samples.append(_Sample(quality, time_s, box, cut(image, box)))
        elif quality > self.samples[slot].quality:
            self.samples[slot] = _Sample(quality, time_s, box, cut(image, box))

    def close(self, camera: str, platform: int) -> LiveTracklet:
        return LiveTracklet(
            camera,
            platform,
            self.track,
            self.start_s,
            self.end_s,
            self.seen,
            tuple(sample.crop for sample in self.samples),
            np.array([sample.quality for sample in self.samples], np.float32),
            np.array([sample.time_s for sample in self.samples], np.float64),
            np.array([sample.box for sample in self.samples], np.float32),
        )


class TrackletBuilder:
    """Collects the observations of one camera into tracklets.

    Args:
        camera: name of the source.
        platform: platform id of the camera (`spec.platform_id`).
        max_gap_s: a track that is unseen for longer has ended.
        max_seconds: longest tracklet; the track goes on in a new one, so people who stay are reported too.
        max_frames_kept: most crops of one tracklet, >= 1.
    """

    def __init__(
        self, camera: str, platform: int, *, max_gap_s: float, max_seconds: float, max_frames_kept: int = 64
    ) -> None:
        self._camera, self._platform = camera, platform
        self._max_gap_s, self._max_seconds, self._limit = max_gap_s, max_seconds, max_frames_kept
        self._open: dict[int, _OpenTracklet] = {}

    def add(self, frame: Frame, observations: Sequence[Observation]) -> list[LiveTracklet]:
        """Take the persons of one frame; returns the tracklets that have ended by its time."""
        ended = self.expire(frame.time_s)
        if observations:
            boxes = np.stack([observation.box for observation in observations])
            scores = np.array([observation.score for observation in observations], np.float32)
            qualities = crop_quality(frame.image, boxes, scores)
            for observation, quality in zip(observations, qualities, strict=True):
                tracklet = self._open.setdefault(
                    observation.track, _OpenTracklet(observation.track, frame.time_s)
                )
                tracklet.add(frame.image, observation.box, float(quality), frame.time_s, self._limit)
        return ended

    def expire(self, time_s: float) -> list[LiveTracklet]:
        """Tracklets that have ended by `time_s`: for a camera that sends nothing. `add` does it by itself."""
        ended = [
            tracklet
            for tracklet in self._open.values()
            if time_s - tracklet.end_s > self._max_gap_s or time_s - tracklet.start_s >= self._max_seconds
        ]
        return [self._open.pop(tracklet.track).close(self._camera, self._platform) for tracklet in ended]

    def finish(self) -> list[LiveTracklet]:
        """All tracklets that are still open, at the end of the stream."""
        ended = [tracklet.close(self._camera, self._platform) for tracklet in self._open.values()]
        self._open.clear()
        return ended


def cut(image: Crop, box: NDArray[np.float32]) -> Crop:
    """A copy of the pixels that `box` touches, at least 1x1, so that the frame can be freed."""
    x1, y1, x2, y2 = pixel_box(image, box)
    return image[y1:y2, x1:x2].copy()


def pixel_box(image: Crop, box: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the whole pixels that `box` touches, inside the picture, at least 1x1."""
    height, width = image.shape[:2]
    x1, y1 = (int(np.clip(np.floor(box[axis]), 0, side - 1)) for axis, side in ((0, width), (1, height)))
    x2, y2 = (int(np.clip(np.ceil(box[axis]), 1, side)) for axis, side in ((2, width), (3, height)))
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def crop_quality(image: Crop, boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much the crops of one frame tell about their persons. Our rule, not the paper's.

    quality = (0.4 size + 0.4 sharp + 0.2 score) * (1 - 0.5 cut) * (1 - covered), with
    size: side of a square of the crop's area over that of an HR frame (128x64), at most 1;
    sharp: v / (v + 500), v the variance of the Laplacian of the grey crop at 64x32, the same for all sizes;
    score: of the detector; cut: 1 if the box touches the frame's border, else 0;
    covered: largest share of the box that one other box of the frame lies over.

    Args:
        image: uint8 (h, w, 3) RGB.
        boxes: float32 (N, 4) in pixels of it.
        scores: float32 (N,) in [0, 1].

    Returns:
        float32 (N,) in [0, 1].
    """
    height, width = image.shape[:2]
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1)
    size = np.minimum(np.sqrt(areas / (HR_MIN_SIZE[0] * HR_MIN_SIZE[1])), 1)
    variance = np.array([_laplacian_variance(image, box) for box in boxes])
    touches = (boxes[:, :2] < 1).any(axis=1) | (boxes[:, 2:] > (width - 1, height - 1)).any(axis=1)
    low, high = np.maximum(boxes[:, None], boxes[None]), np.minimum(boxes[:, None], boxes[None])
    inner = np.maximum(high[..., 2:] - low[..., :2], 0).prod(axis=-1)
    np.fill_diagonal(inner, 0)
    covered = np.minimum((inner / areas[:, None]).max(axis=1), 1)
    worth = 0.4 * size + 0.4 * variance / (variance + SHARP_VARIANCE) + 0.2 * scores
    return np.asarray(worth * (1 - 0.5 * touches) * (1 - covered), np.float32)


def _laplacian_variance(image: Crop, box: NDArray[np.float32]) -> float:
    x1, y1, x2, y2 = pixel_box(image, box)
    # Shrunk before the grey conversion: the crop may be large, the small picture never is.
    small = cv2.resize(image[y1:y2, x1:x2], (LR_SIZE[1], LR_SIZE[0]), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())
