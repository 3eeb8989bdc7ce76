"""The loop of s3clip-run: frames of all cameras in, sightings out.

Each source is read in a thread of its own. One thread, the caller's, detects, tracks and builds tracklets;
the batcher's thread embeds them. A camera that fails ends alone; the others go on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from s3clip_runtime.errors import S3ClipError, SinkError, SourceError
from s3clip_runtime.streams.camera import Camera, CameraReport
from s3clip_runtime.streams.events import EndedTracklet, Sighting
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.reading.sources import Source, open_source

if TYPE_CHECKING:
    from s3clip_runtime.streams.outputs.sink import SightingSink
    from s3clip_runtime.streams.recognition.batcher import Batcher

_LOG = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0
STOP_GRACE_S = 15.0
"""After a stop, a reader that does not end within this time is given up and reported."""

_FRAMES_WAITING = 2
_TICK_S = 0.1


class FrameWatcher(Protocol):
    """Sees every processed frame. Called by the pipeline's thread."""

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Take one frame. Raises SinkError when the output is broken for good."""


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing that a reader queues."""

    error: Exception | None


class _Reader:
    """Reads one source in a daemon thread into a short queue.

    It waits for room in the queue. So files lose no frame, and live sources drop their oldest themselves.
    """

    def __init__(self, camera: Camera, stop: threading.Event, arrived: threading.Event) -> None:
        self.camera = camera
        self.ended = False
        self.queue: queue.Queue[Frame | _End] = queue.Queue(_FRAMES_WAITING)
        self.abandoned = threading.Event()
        self._stop = stop
        self._arrived = arrived
        self._thread = threading.Thread(target=self._read, name=f"read {camera.spec.name}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, but not for ever: a source may hang in the network."""
        self._thread.join(STOP_GRACE_S)

    def _read(self) -> None:
        try:
            with open_source(
                self.camera.spec,
                open_timeout_s=OPEN_TIMEOUT_S,
                read_timeout_s=READ_TIMEOUT_S,
                stop=self._stop,
            ) as source:
                self._read_frames(source)
                self._put(_End(None))  # before closing: a hanging connection must not hold back the events
        except Exception as error:  # carried to the pipeline's thread, which judges it
            self._put(_End(error))

    def _read_frames(self, source: Source) -> None:
        report = self.camera.report
        report.live = source.live
        for frame in source.frames():
            self._put(frame)
            report.dropped, report.reconnects = source.dropped, source.reconnects
            if self.abandoned.is_set():
                return

    def _put(self, item: Frame | _End) -> None:
        while not self.abandoned.is_set():
            try:
                self.queue.put(item, timeout=_TICK_S)
                self._arrived.set()
                return
            except queue.Full:
                continue


class Outputs:
    """Hands frames and sightings to the sinks of a run. A sink that breaks is left out and reported."""

    def __init__(self, sinks: Sequence[SightingSink], watchers: Sequence[FrameWatcher]) -> None:
        self._sinks = list(sinks)
        self._watchers = list(watchers)
        self.errors: list[SinkError] = []
        self.events: dict[str, int] = {}

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """One processed frame to all watchers."""
        for watcher in tuple(self._watchers):
            try:
                watcher.frame(frame, observations)
            except SinkError as error:
                self._watchers.remove(watcher)
                self._report(error)

    def sighting(self, sighting: Sighting) -> None:
        """One sighting to all sinks."""
        camera = sighting.event.camera
        self.events[camera] = self.events.get(camera, 0) + 1
        for sink in tuple(self._sinks):
            try:
                sink.sighting(sighting)
            except SinkError as error:
                self._sinks.remove(sink)
                self._report(error)

    def _report(self, error: SinkError) -> None:
        self.errors.append(error)
        _LOG.warning("%s", error)


class Pipeline:
    """Runs cameras until all sources end or `stop` is set.

    Args:
        cameras: names must differ.
        batcher: not yet started; delivers to `outputs.sighting`.
        outputs: the sinks; opened and closed by the caller.
        stop: set from outside to end early. Frames that were read are still processed, open tracklets are
            ended, embedded and delivered.
    """

    def __init__(
        self, cameras: Sequence[Camera], batcher: Batcher, outputs: Outputs, stop: threading.Event
    ) -> None:
        self._cameras = cameras
        self._batcher = batcher
        self._outputs = outputs
        self._stop = stop
        self._arrived = threading.Event()
        self._stopped_s: float | None = None

    def run(self, tick: Callable[[Sequence[CameraReport]], None]) -> list[CameraReport]:
        """Process all frames.

        Args:
            tick: called at least ten times a second with the reports so far, e.g. for a status line.

        Returns:
            One report a camera, in order; look at `error` of each.

        Raises:
            S3ClipError: the embedder failed: nothing more can be recognised.
        """
        reports = [camera.report for camera in self._cameras]
        started_s = time.monotonic()
        self._batcher.start()
        readers = [_Reader(camera, self._stop, self._arrived) for camera in self._cameras]
        try:
            while not all(reader.ended for reader in readers):
                self._round(readers, started_s)
                tick(reports)
            self._batcher.finish()
        finally:
            for reader in readers:
                reader.abandoned.set()
        for reader in readers:
            reader.join()
        for report in reports:
            report.events = self._outputs.events.get(report.camera, 0)
        return reports

    def _round(self, readers: Sequence[_Reader], started_s: float) -> None:
        """At most one frame of each camera, so that none starves; waits a tick when there is none."""
        self._arrived.clear()
        busy = False
        for reader in readers:
            if not reader.ended:
                busy |= self._step(reader)
                reader.camera.report.seconds = time.monotonic() - started_s
        if not busy:
            self._give_up_late_readers(readers)
            self._arrived.wait(_TICK_S)

    def _step(self, reader: _Reader) -> bool:
        camera = reader.camera
        try:
            item = reader.queue.get_nowait()
        except queue.Empty:
            if camera.report.live:  # a camera that went dark still owes its last tracklets
                self._submit(camera, camera.expire(time.time()))
            return False
        if isinstance(item, _End):
            self._end(reader, item.error)
            return True
        try:
            observations, ended = camera.process(item)
        except S3ClipError as error:
            reader.abandoned.set()
            self._end(reader, error)
            return True
        self._outputs.frame(item, observations)
        self._submit(camera, ended)
        return True

    def _end(self, reader: _Reader, error: Exception | None) -> None:
        if error is not None and not isinstance(error, S3ClipError):
            raise error  # a bug: with its traceback
        camera = reader.camera
        camera.report.error = error
        reader.ended = True
        if error is not None:
            _LOG.warning("camera %s ended: %s", camera.spec.name, error)
        self._submit(camera, camera.finish())

    def _submit(self, camera: Camera, ended: Sequence[EndedTracklet]) -> None:
        for one in ended:
            if one.tracklet.seen < camera.report.min_frames:
                camera.report.too_short += 1
            else:
                self._batcher.submit(one)
                camera.report.tracklets += 1

    def _give_up_late_readers(self, readers: Sequence[_Reader]) -> None:
        if not self._stop.is_set():
            return
        now_s = time.monotonic()
        self._stopped_s = now_s if self._stopped_s is None else self._stopped_s
        if now_s - self._stopped_s < STOP_GRACE_S:
            return
        for reader in readers:
            if not reader.ended:
                name = reader.camera.spec.name
                message = (
                    f"source {name} did not stop within {STOP_GRACE_S:.0f} s and was left; check its network"
                )
                self._end(reader, SourceError(message))
