"""Tracklets as values, and the looks that are taken at them while they grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.streams.frames import Clock

Crop = NDArray[np.uint8]

Stage = Literal["first", "refined", "final"]
"""Which look at a tracklet: after its first frames, after more of them, or at its end."""

Reason = Literal["growing", "gone", "long", "end", "stop", "lost"]
"""Why a look was taken: enough new frames; the person left; the tracklet was cut because it is long (its
track goes on in the next part); the source ended; the program was stopped; the camera was lost."""


@dataclass(frozen=True, slots=True)
class CropQuality:
    """How much one crop tells about its person, and why.

    Attributes:
        value: the product that counts, in [0, 1]; see `tracking.quality`.
        size, sharp, score: in [0, 1], higher is better.
        covered: share of the box that another box lies over, in [0, 1].
        cut: the box touches the frame's border.
    """

    value: float
    size: float
    sharp: float
    score: float
    covered: float
    cut: bool


@dataclass(frozen=True, slots=True)
class Tracklet:
    """One person, one camera, one stretch of time, as far as it has been seen.

    Attributes:
        camera: name of the source.
        platform: platform id (`spec.PLATFORMS`).
        clock: what the times count.
        epoch: number of the camera's uninterrupted stretch, from 0; a gap starts a new one.
        track: id, unique within camera and run.
        part: a long track gives several tracklets, numbered from 0.
        start_s, end_s: times of the first and last observation, also if their crops were thinned out.
        seen: observations, of which `crops` holds the best.
        crops: N >= 1 uint8 (h, w, 3) RGB in temporal order, each with its own memory.
        qualities: N, one a crop.
        times: float64 (N,) seconds.
        boxes: float32 (N, 4) x1, y1, x2, y2 in pixels of the frame.
    """

    camera: str
    platform: int
    clock: Clock
    epoch: int
    track: int
    part: int
    start_s: float
    end_s: float
    seen: int
    crops: tuple[Crop, ...]
    qualities: tuple[CropQuality, ...]
    times: NDArray[np.float64]
    boxes: NDArray[np.float32]

    @property
    def key(self) -> str:
        """Names the tracklet within the run: camera, track and part, such as `gate-12-0`."""
        return f"{self.camera}-{self.track}-{self.part}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """One frame of a clip and why it is in it.

    Attributes:
        position: index into the tracklet's crops.
        weight: its quality over the sum of the clip's, so that weights of a clip sum to 1.
    """

    position: int
    weight: float


@dataclass(frozen=True, slots=True)
class FrameCost:
    """What one frame cost in milliseconds.

    Attributes:
        decode_ms: decoding and converting it.
        queued_ms: from decoded to taken by the loop.
        detect_ms: the detector's whole batch.
        track_ms: tracking, and cutting and rating its crops.
    """

    decode_ms: float = 0.0
    queued_ms: float = 0.0
    detect_ms: float = 0.0
    track_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """A tracklet on its way to the embedder.

    Attributes:
        tracklet: all that was seen so far.
        stage: which look it is.
        reason: why it was taken.
        clip: the T crops that represent the tracklet; HR is decided on all crops it holds.
        chosen: T, one a crop of the clip.
        live: work that may be shed under pressure; files never shed.
        cost: of the newest frame.
    """

    tracklet: Tracklet
    stage: Stage
    reason: Reason
    clip: Clip
    chosen: tuple[Chosen, ...]
    live: bool = False
    cost: FrameCost = FrameCost()

    @property
    def partial(self) -> bool:
        """The person was still in view when the look was taken, and no later look follows."""
        return self.reason in ("stop", "lost")
