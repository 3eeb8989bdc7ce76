"""The values that flow through a camera: frames, detections, track observations."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Clock = Literal["stream", "camera", "arrival"]
"""What a frame's time counts: seconds from a file's start, the camera's own clock as its RTCP reports give
it (Unix time), or Unix time of arrival here."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a camera.

    Attributes:
        camera: name of the source.
        index: position in the stream, from 0; a gap shows dropped frames.
        time_s: capture time in seconds as `clock` says; rises from frame to frame of one camera.
        image: uint8 (h, w, 3) RGB.
        clock: what `time_s` counts.
        ready_s: monotonic time (`time.monotonic`, the same in all processes) at which it was decoded.
        decode_ms: milliseconds that decoding and converting it took.
    """

    camera: str
    index: int
    time_s: float
    image: NDArray[np.uint8]
    clock: Clock = "stream"
    ready_s: float = field(default_factory=time.monotonic)
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Detections:
    """Persons found in one frame.

    Attributes:
        boxes: float32 (N, 4) x1, y1, x2, y2 in pixels of the frame, clipped to it.
        scores: float32 (N,) in [0, 1].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    @staticmethod
    def none() -> Detections:
        """No person."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros((0,), np.float32))


@dataclass(frozen=True, slots=True)
class Observation:
    """One person of one frame with the id of its track.

    Attributes:
        track: id, unique within its camera and run.
        box: float32 (4,) x1, y1, x2, y2 in pixels, clipped to the frame.
        score: detection score in [0, 1].
    """

    track: int
    box: NDArray[np.float32]
    score: float
