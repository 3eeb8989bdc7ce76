"""Annotated videos: boxes, track ids and, once known, identities."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path

from s3clip_runtime.errors import SinkError
from s3clip_runtime.streams.events import Sighting, SightingEvent
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.outputs.drawing import Label, draw_labels
from s3clip_runtime.streams.outputs.stored_pictures import stored_pictures
from s3clip_runtime.streams.outputs.video import AnnotatedVideo
from s3clip_runtime.streams.reading.addresses import SourceSpec
from s3clip_runtime.streams.status import OutputStatus

_ASSUMED_FPS = 25.0
_TRACKS_REMEMBERED = 1000
"""Of a live stream; older ones have left the picture."""

_Corners = tuple[float, float, float, float]


def label_text(event: SightingEvent) -> str:
    """What is written above a box, e.g. `#3 person-0007 0.83`, `#3 unknown 0.41` or `#3`."""
    return f"#{event.track} {event.verdict}".rstrip()


class FileAnnotator:
    """Remembers the boxes of a file's frames; at the end the file is read again and drawn with the results.

    So a person carries the identity from the first frame on, although it is known only when the track ends.
    """

    def __init__(self, spec: SourceSpec, path: Path) -> None:
        self._spec = spec
        self._path = path
        self._times: dict[int, float] = {}
        self._boxes: dict[int, list[tuple[int, _Corners]]] = {}
        self._texts: dict[int, dict[int, tuple[float, str]]] = defaultdict(dict)
        self._seen = 0

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Remember the boxes of one frame."""
        if frame.camera == self._spec.name:
            self._times[frame.index] = frame.time_s
            self._boxes[frame.index] = [(one.track, _corners(one)) for one in observations]

    def sighting(self, sighting: Sighting) -> None:
        """Remember who the track is up to the sighting's end; a later look at the same part replaces it."""
        event = sighting.event
        if event.camera == self._spec.name:
            self._seen += 1
            self.name(event.track, event.part, event.last_s, label_text(event))

    def name(self, track: int, part: int, until_s: float, text: str) -> None:
        """Write `text` above the boxes of a part of a track, which ends at `until_s`."""
        self._texts[track][part] = (until_s, text)

    def status(self) -> OutputStatus:
        """How many sightings it knows."""
        return OutputStatus(self._path.name, self._seen)

    def close(self) -> None:
        """Nothing is open; `write` draws."""

    def write(self) -> None:
        """Read the file again up to the last frame that was processed, and write the video.

        Raises:
            SourceError: the file is gone.
            SinkError: the video cannot be written.
        """
        video: AnnotatedVideo | None = None
        try:
            for index, (image, fps) in enumerate(stored_pictures(self._spec)):
                if index not in self._boxes:
                    break
                if video is None:
                    height, width = image.shape[:2]
                    video = AnnotatedVideo(self._path, (height, width), fps)
                video.write(draw_labels(image, self._labels(index)), self._times[index])
        finally:
            if video is not None:
                video.close()

    def _labels(self, index: int) -> list[Label]:
        time_s = self._times[index]
        return [Label(track, box, self._text(track, time_s)) for track, box in self._boxes[index]]

    def _text(self, track: int, time_s: float) -> str:
        """The result of the part that covers this time, else of the last part, else the track's number."""
        if track not in self._texts:
            return f"#{track}"
        parts = [result for _, result in sorted(self._texts[track].items())]
        return next((text for until_s, text in parts if time_s <= until_s + 1e-3), parts[-1][1])


class LiveAnnotator:
    """Draws a live stream as it passes: the identity appears with the first look at a track.

    Use an .mkv path: it stays readable when the process is killed.
    """

    def __init__(self, spec: SourceSpec, path: Path) -> None:
        self._spec = spec
        self._path = path
        self._video: AnnotatedVideo | None = None
        self._closed = False
        self._texts: OrderedDict[int, str] = OrderedDict()
        self._seen = 0

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Draw and append one frame.

        Raises:
            SinkError: the video cannot be written.
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
        """Show what the newest look says from now on."""
        event = sighting.event
        if event.camera != self._spec.name:
            return
        self._seen += 1
        self._texts[event.track] = label_text(event)
        self._texts.move_to_end(event.track)
        if len(self._texts) > _TRACKS_REMEMBERED:
            self._texts.popitem(last=False)

    def status(self) -> OutputStatus:
        """How many sightings it was told."""
        return OutputStatus(self._path.name, self._seen)

    def close(self) -> None:
        """End the video, if there is one. Calling it again does nothing.

        Raises:
            SinkError: the last frames cannot be written.
        """
        if self._video is not None and not self._closed:
            self._closed = True
            self._video.close()

    def write(self) -> None:
        """End the video.

        Raises:
            SinkError: the last frames cannot be written, or no frame ever came.
        """
        if self._video is None:
            raise SinkError(
                f"no frame of {self._spec.name} came, so {self._path} was not written; check the camera"
            )
        self.close()


def _corners(observation: Observation) -> _Corners:
    x1, y1, x2, y2 = (float(edge) for edge in observation.box)
    return x1, y1, x2, y2
