"""Hands frames and sightings to all outputs of a run; one that breaks is left out and reported."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from s3clip_runtime.errors import S3ClipError, SinkError
from s3clip_runtime.streams.events import Sighting
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.status import OutputStatus

_log = logging.getLogger(__name__)

CLOSE_S = 2.8
"""An output that needs longer to close is left behind and reported; spooled events stay on the disk."""


class FrameWatcher(Protocol):
    """Sees every processed frame. Called by the loop's thread."""

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Take one frame. Raises SinkError when the output is broken for good."""


class Outputs:
    """The sinks and watchers of a run. It closes the sinks."""

    def __init__(self, sinks: Mapping[str, SightingSink], watchers: Sequence[FrameWatcher]) -> None:
        self._sinks = dict(sinks)
        self._watchers = tuple(watchers)
        self._broken: set[int] = set()
        self._lock = threading.Lock()
        self._events: Counter[str] = Counter()
        self.errors: list[S3ClipError] = []

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
        with self._lock:  # held to the end: while a sink is replaced, sightings wait for the new one
            self._events[sighting.event.camera] += 1
            for sink in self._sinks.values():
                if id(sink) not in self._broken:
                    try:
                        sink.sighting(sighting)
                    except SinkError as error:
                        self._leave_out(sink, error)

    def replace(self, name: str, make: Callable[[], SightingSink] | None) -> None:
        """Close one sink and open another in its place; None leaves it out. What fails joins `errors`."""
        with self._lock:
            old = self._sinks.pop(name, None)
            if old is not None:
                self._close_one(old)
            if make is not None:
                try:
                    self._sinks[name] = make()
                except S3ClipError as error:
                    _log.error("%s", error)
                    self.errors.append(error)

    def events(self) -> Counter[str]:
        """Sightings delivered, by camera."""
        return Counter(dict(self._events))  # a copy, without waiting for a sink

    def status(self) -> tuple[OutputStatus, ...]:
        """How the sinks are doing."""
        return tuple(sink.status() for sink in list(self._sinks.values()))

    def close(self) -> None:
        """Close all sinks side by side; what they say joins `errors`."""
        sinks = list(self._sinks.values())
        closers = [threading.Thread(target=self._close_one, args=(sink,), daemon=True) for sink in sinks]
        for closer in closers:
            closer.start()
        for closer, sink in zip(closers, sinks, strict=True):
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
