"""Hands frames and sightings to all outputs of a run; one that breaks is left out and reported."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from s3clip_runtime.errors import SinkError
from s3clip_runtime.streams.events import Sighting
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.status import OutputStatus

_log = logging.getLogger(__name__)

CLOSE_S = 2.0
"""An output that needs longer to close is left behind and reported; spooled events stay on the disk."""


class FrameWatcher(Protocol):
    """Sees every processed frame. Called by the loop's thread."""

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Take one frame. Raises SinkError when the output is broken for good."""


class Outputs:
    """The sinks and watchers of a run. It closes the sinks."""

    def __init__(self, sinks: Sequence[SightingSink], watchers: Sequence[FrameWatcher]) -> None:
        self._sinks = tuple(sinks)
        self._watchers = tuple(watchers)
        self._broken: set[int] = set()
        self._lock = threading.Lock()
        self._events: Counter[str] = Counter()
        self.errors: list[SinkError] = []

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """One processed frame to all watchers."""
        for watcher in self._watchers:
            if id(watcher) not in self._broken:
                try:
                    watcher.frame(frame, observations)
                except SinkError as error:
                    self._leave_out(watcher, error)

    def sighting(self, sighting: Sighting) -> None:
        """One sighting to all sinks. Called by the batcher's thread."""
        with self._lock:
            self._events[sighting.event.camera] += 1
        for sink in self._sinks:
            if id(sink) not in self._broken:
                try:
                    sink.sighting(sighting)
                except SinkError as error:
                    self._leave_out(sink, error)

    def events(self) -> Counter[str]:
        """Sightings delivered, by camera."""
        with self._lock:
            return Counter(self._events)

    def status(self) -> tuple[OutputStatus, ...]:
        """How the sinks are doing."""
        return tuple(sink.status() for sink in self._sinks)

    def close(self) -> None:
        """Close all sinks side by side; what they say joins `errors`."""
        closers = [
            threading.Thread(target=self._close_one, args=(sink,), daemon=True) for sink in self._sinks
        ]
        for closer in closers:
            closer.start()
        for closer, sink in zip(closers, self._sinks, strict=True):
            closer.join(CLOSE_S)
            if closer.is_alive():
                name = sink.status().name
                self.errors.append(SinkError(f"{name} did not close within {CLOSE_S:g} s and was left"))

    def _close_one(self, sink: SightingSink) -> None:
        try:
            sink.close()
        except SinkError as error:
            self.errors.append(error)

    def _leave_out(self, output: object, error: SinkError) -> None:
        self._broken.add(id(output))
        self.errors.append(error)
        _log.warning("%s", error)
