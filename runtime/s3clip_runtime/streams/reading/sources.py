"""Sources of frames: files, folders, streams, devices and pipelines, each read by a process of its own."""

from __future__ import annotations

from typing import Protocol

from s3clip_runtime.errors import SourceError
from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.reading.addresses import SourceSpec, kind_of, parse_source, redact
from s3clip_runtime.streams.reading.options import ReadOptions
from s3clip_runtime.streams.reading.supervisor import ChildSource
from s3clip_runtime.streams.status import SourceStatus

__all__ = ["ReadOptions", "Source", "SourceSpec", "open_source", "parse_source", "redact"]


class Source(Protocol):
    """An open source of frames. Whoever opened it closes it.

    Attributes:
        spec: what was opened.
        live: frames arrive by the clock, and the oldest are dropped when nobody takes them. Files never drop.
            An HTTP address counts as live until it is open and turns out to be a file.
        fps: frames a second: as stated by a file, as measured for a stream, None while unknown.
        ended: every frame was handed out and none will come.
        error: why it could not be read, once it has `ended`.
    """

    spec: SourceSpec

    @property
    def live(self) -> bool: ...
    @property
    def fps(self) -> float | None: ...
    @property
    def ended(self) -> bool: ...
    @property
    def error(self) -> SourceError | None: ...
    def take(self) -> Frame | None:
        """The oldest frame that waits, or None; never blocks."""

    def status(self) -> SourceStatus:
        """How it is doing now."""

    def fileno(self) -> int:
        """For `selectors`: readable when a frame waits or the state changed, until `take` finds nothing."""

    def close(self) -> None:
        """End it, in about 2 s at most. Calling it again does nothing."""


def open_source(spec: SourceSpec, options: ReadOptions) -> Source:
    """Start the child that opens and reads the source, and return at once.

    What cannot be opened shows later: a file or folder ends with an `error`; streams, devices and pipelines
    are tried again until they are closed, so that a camera that is off does not stop a run.

    Raises:
        SourceError: an unknown scheme, no such file, or an empty pipeline.
    """
    return ChildSource(spec, kind_of(spec), options)
