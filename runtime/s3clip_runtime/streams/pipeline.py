"""The loop of s3clip-run: frames of all cameras in, looks at tracklets out.

Each source is decoded by a process of its own. One thread, the caller's, takes one frame of each camera that
has one, detects them as one batch, tracks, and collects tracklets; the batcher's thread embeds the looks of
all cameras. A camera that fails ends alone; the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from s3clip_runtime.errors import S3ClipError, SourceError
from s3clip_runtime.streams.camera import Camera, CameraPlan
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.frames import Detections, Frame
from s3clip_runtime.streams.looks import Look
from s3clip_runtime.streams.outputs.outputs import Outputs
from s3clip_runtime.streams.recognition.batcher import Batcher
from s3clip_runtime.streams.status import CameraStatus, SourceStatus, State
from s3clip_runtime.streams.tracking.tracklets import Ending

_log = logging.getLogger(__name__)

FLUSH_S = 2.0
"""After a stop, time to embed what waits; then come the outputs. Both together stay under 5 s."""

_TICK_S = 0.1


class Pipeline:
    """Runs cameras until all sources end or `stop` is set. Cameras may come and go while it runs.

    Args:
        batcher: not yet started; delivers to `outputs.sighting`.
        outputs: the sinks; opened and closed by the caller.
        stop: set from outside to end early: no more frames are taken, open tracklets get their last look,
            marked partial, and what cannot be embedded in `FLUSH_S` gives an event without embedding.
    """

    def __init__(self, batcher: Batcher, outputs: Outputs, stop: threading.Event) -> None:
        self._batcher = batcher
        self._outputs = outputs
        self._stop = stop
        self._selector = selectors.DefaultSelector()
        self._cameras: tuple[Camera, ...] = ()
        self._tracks_before: dict[str, int] = {}
        self._refused: tuple[tuple[CameraPlan, SourceError], ...] = ()

    def add(self, plan: CameraPlan) -> None:
        """Open one more camera; call it before `run` or from its `tick`. Names must differ.

        One that cannot be opened is told in `status`; the others go on.
        """
        try:
            camera = Camera(plan, self._tracks_before.get(plan.spec.name, 0))
        except SourceError as error:
            _log.warning("camera %s: %s", plan.spec.name, error)
            self._refused = (*self._refused, (plan, error))
            return
        self._selector.register(camera.source, selectors.EVENT_READ, camera)
        self._cameras = (*self._cameras, camera)

    def remove(self, name: str) -> None:
        """Give the last looks at a camera's tracklets and close it; call it from `tick`."""
        for camera in self._cameras:
            if camera.spec.name == name:
                self._end(camera, "stop")
                self._tracks_before[name] = camera.tracks
                camera.close()
        self._cameras = tuple(camera for camera in self._cameras if camera.spec.name != name)
        self._refused = tuple(one for one in self._refused if one[0].spec.name != name)

    def run(self, tick: Callable[[], None]) -> None:
        """Process frames until all sources have ended or `stop` is set. Cameras stay open for `status`.

        Args:
            tick: called about ten times a second between two rounds; may call `add` and `remove`.

        Raises:
            S3ClipError: the embedder or the gallery failed: nothing more can be recognised. What was seen
                by then was told without embeddings.
        """
        self._batcher.start()
        next_tick_s = 0.0
        try:
            while not self._stop.is_set() and self._batcher.error is None:
                if time.monotonic() >= next_tick_s:
                    tick()
                    next_tick_s = time.monotonic() + _TICK_S
                if all(camera.ended for camera in self._cameras):
                    break
                self._round()
        finally:
            self._finish()
        if self._batcher.error is not None:
            raise self._batcher.error

    def close(self) -> None:
        """Close all sources, side by side: each may need seconds."""
        closers = [threading.Thread(target=camera.close, daemon=True) for camera in self._cameras]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        self._selector.close()

    def status(self) -> tuple[CameraStatus, ...]:
        """How the cameras are doing. Any thread may ask."""
        shed: dict[str, int] = defaultdict(int)
        for (name, _), count in self._batcher.waiting.shed().items():
            shed[name] += count
        events = self._outputs.events()
        opened = (
            camera.status(events=events.get(camera.spec.name, 0), shed=shed[camera.spec.name])
            for camera in self._cameras
        )
        return (*opened, *(_refused(plan, error) for plan, error in self._refused))

    def errors(self) -> list[S3ClipError]:
        """Why cameras could not be opened or have failed for good."""
        failed = [camera.error for camera in self._cameras if camera.error is not None]
        return [*failed, *(error for _, error in self._refused)]

    def _finish(self) -> None:
        stopped = self._stop.is_set() or self._batcher.error is not None
        for camera in self._cameras:
            if not camera.ended:
                self._submit(camera.finish("stop"))
        self._batcher.finish(FLUSH_S if stopped else None)

    def _round(self) -> None:
        """At most one frame of each camera, so that none starves; waits a tick when there is none."""
        full = self._batcher.waiting.full
        taken = []
        for camera in self._cameras:
            if camera.ended or (full and not camera.live):
                continue  # files are read more slowly when the embedder cannot follow; cameras shed instead
            frame = camera.source.take()
            if frame is not None:
                taken.append((camera, frame, time.monotonic()))
            elif camera.source.ended:
                camera.error = camera.source.error
                if camera.error is not None:
                    _log.warning("camera %s ended: %s", camera.spec.name, camera.error)
                self._end(camera, "end")
            else:
                self._submit(camera.idle())
        if taken:
            self._process(taken)
        elif full:
            time.sleep(_TICK_S / 10)  # frames wait, but not for us: the selector would return at once
        else:
            self._selector.select(_TICK_S)

    def _process(self, taken: Sequence[tuple[Camera, Frame, float]]) -> None:
        for detector, group in _by_detector(taken):
            began_s = time.monotonic()
            try:
                found = detector.detect([frame for _, frame, _ in group])
            except S3ClipError as error:
                for camera, _, _ in group:
                    _log.warning("camera %s ended: %s", camera.spec.name, error)
                    camera.error = error
                    self._end(camera, "lost")
                continue
            detect_ms = 1000 * (time.monotonic() - began_s)
            for (camera, frame, taken_s), detections in zip(group, found, strict=True):
                self._observe(camera, frame, detections, taken_s, detect_ms)

    def _observe(
        self, camera: Camera, frame: Frame, detections: Detections, taken_s: float, detect_ms: float
    ) -> None:
        observations, looks = camera.observe(frame, detections, taken_s=taken_s, detect_ms=detect_ms)
        self._outputs.frame(frame, observations)
        self._submit(looks)

    def _end(self, camera: Camera, reason: Ending) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it may have ended before
            self._selector.unregister(camera.source)
        if not camera.ended:
            self._submit(camera.finish(reason))

    def _submit(self, looks: Sequence[Look]) -> None:
        for look in looks:
            self._batcher.submit(look)


def _refused(plan: CameraPlan, error: SourceError) -> CameraStatus:
    source = SourceStatus(State.FAILED, time.time(), reason=str(error))
    return CameraStatus(plan.spec.name, plan.spec.platform, live=False, source=source, error=str(error))


def _by_detector(
    taken: Sequence[tuple[Camera, Frame, float]],
) -> Iterator[tuple[Detector, list[tuple[Camera, Frame, float]]]]:
    """Cameras that share a detector go through it as one batch."""
    groups: dict[int, list[tuple[Camera, Frame, float]]] = defaultdict(list)
    for one in taken:
        groups[id(one[0].detector)].append(one)
    for group in groups.values():
        yield group[0][0].detector, group
