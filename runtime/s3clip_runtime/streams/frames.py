"""The values that flow through a camera: frames, detections, track observations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a camera.

    Attributes:
        camera: name of the source.
        index: position in the stream, from 0.
        time_s: capture time in seconds: from the stream's start for files, Unix time for live streams.
        image: uint8 (h, w, 3) RGB.
    """

    camera: str
    index: int
    time_s: float
    image: NDArray[np.uint8]


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
        track: id, unique within its camera.
        box: float32 (4,) x1, y1, x2, y2 in pixels, clipped to the frame.
        score: detection score in [0, 1].
    """

    track: int
    box: NDArray[np.float32]
    score: float
