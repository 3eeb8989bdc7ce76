"""What finds persons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from s3clip_runtime.streams.frames import Detections, Frame


class Detector(Protocol):
    """Finds persons in frames. One instance may serve several cameras if it says so; else one a camera."""

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """Persons of each frame; boxes are clipped to it and have sides of at least 2 px.

        The frames of one call come from different cameras: a network takes them as one batch.
        """

    def close(self) -> None:
        """Give back what it holds. A second call does nothing."""
