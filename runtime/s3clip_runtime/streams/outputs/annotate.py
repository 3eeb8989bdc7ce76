"""Annotated videos: boxes, track ids and, once known, identities."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from s3clip_runtime.errors import SinkError
from s3clip_runtime.streams.events import Sighting, SightingEvent
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.outputs.drawing import Label, draw_labels
from s3clip_runtime.streams.outputs.video import AnnotatedVideo
from s3clip_runtime.streams.reading.sources import SourceSpec, open_source

_ASSUMED_FPS = 25.0


def label_text(event: SightingEvent) -> str:
    """What is written above a box, e.g. `#3 person-0007 0.83`, `#3 unknown 0.41` or `#3`."""
    if event.decision == "no_gallery":
        return f"#{event.track}"
    return f"#{event.track} {event.identity or 'unknown'} {event.score:.2f}"


class FileAnnotator:
    """Remembers the boxes of a file's frames; at the end the file is read again and drawn with the results.

    So a person carries the identity from the first frame on, although it is known only when the track ends.
    """

    def __init__(self, spec: SourceSpec, path: Path) -> None:
        self._spec = spec
        self._path = path
        self._boxes: dict[int, list[tuple[int, tuple[float, float, float, float]]]] = {}
        self._texts: dict[int, list[tuple[float, str]]] = defaultdict(list)

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Remember the boxes of one frame."""
        if frame.camera == self._spec.name:
            self._boxes[frame.index] = [(one.track, _corners(one)) for one in observations]

    def sighting(self, sighting: Sighting) -> None:
        """Remember who the track is up to the sighting's end."""
        event = sighting.event
        if event.camera == self._spec.name:
            self.name(event.track, event.last_s, label_text(event))

    def name(self, track: int, until_s: float, text: str) -> None:
        """Write `text` above the track's boxes up to `until_s`; calls for one track come in order of time."""
        self._texts[track].append((until_s, text))

    def write(self) -> None:
        """Read the file again up to the last frame that was processed, and write the video.

        Raises:
            SourceError: the file is gone.
            SinkError: the video cannot be written.
        """
        video: AnnotatedVideo | None = None
        with open_source(self._spec, stop=threading.Event()) as source:
            try:
                for frame in source.frames():
                    if frame.index not in self._boxes:
                        break
                    if video is None:
                        height, width = frame.image.shape[:2]
                        video = AnnotatedVideo(self._path, (height, width), source.fps or _ASSUMED_FPS)
                    video.write(draw_labels(frame.image, self._labels(frame)), frame.time_s)
            finally:
                if video is not None:
                    video.close()

    def _labels(self, frame: Frame) -> list[Label]:
        return [Label(track, box, self._text(track, frame.time_s)) for track, box in self._boxes[frame.index]]

    def _text(self, track: int, time_s: float) -> str:
        """The result that covers this time, else the last one of the track, else its number."""
        texts = self._texts.get(track)
        if not texts:
            return f"#{track}"
        return next((text for until_s, text in texts if time_s <= until_s + 1e-3), texts[-1][1])


class LiveAnnotator:
    """Draws a live stream as it passes: the identity appears when the first tracklet of a track has ended.

    Use an .mkv path: it stays readable when the process is killed.
    """

    def __init__(self, spec: SourceSpec, path: Path) -> None:
        self._spec = spec
        self._path = path
        self._video: AnnotatedVideo | None = None
        self._texts: dict[int, str] = {}

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Draw and append one frame.

        Raises:
            SinkError: the video cannot be written; what was written is closed.
        """
        if frame.camera != self._spec.name:
            return
        if self._video is None:
            height, width = frame.image.shape[:2]
            self._video = AnnotatedVideo(self._path, (height, width), _ASSUMED_FPS)
        labels = [
            Label(one.track, _corners(one), self._texts.get(one.track, f"#{one.track} …"))
            for one in observations
        ]
        self._video.write(draw_labels(frame.image, labels), frame.time_s)

    def sighting(self, sighting: Sighting) -> None:
        """Show who the track is from now on."""
        if sighting.event.camera == self._spec.name:
            self._texts[sighting.event.track] = label_text(sighting.event)

    def write(self) -> None:
        """End the video.

        Raises:
            SinkError: the last frames cannot be written, or no frame ever came.
        """
        if self._video is None:
            raise SinkError(
                f"no frame of {self._spec.name} came, so {self._path} was not written; check the camera"
            )
        self._video.close()


def _corners(observation: Observation) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(edge) for edge in observation.box)
    return x1, y1, x2, y2
