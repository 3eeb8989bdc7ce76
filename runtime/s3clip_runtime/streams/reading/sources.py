"""Where frames come from: video files and image folders. Streams are in `live.py`, opened from here too."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from s3clip_runtime.errors import SourceError
from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.reading.addresses import SourceSpec, parse_source, redact, refusal
from s3clip_runtime.streams.reading.live import LiveSource

__all__ = ["Source", "SourceSpec", "open_source", "parse_source", "redact"]

_log = logging.getLogger(__name__)

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDER_FPS = 10.0
"""Rate given to the pictures of a folder, which carry no time."""

_ASSUMED_FPS = 25.0
"""Only for files that state neither time stamps nor a rate."""


class Source(Protocol):
    """An open source of frames. Close it, or use it as a context manager; `frames` is walked once.

    Attributes:
        spec: what was opened.
        live: frames arrive by the clock and are dropped when nobody takes them. Files never drop.
        fps: frames a second: as stated by a file, as measured for a stream, None while unknown.
        dropped: frames that were decoded or damaged but never handed out.
        reconnects: connections after the first one.
    """

    spec: SourceSpec
    live: bool

    @property
    def fps(self) -> float | None: ...
    @property
    def dropped(self) -> int: ...
    @property
    def reconnects(self) -> int: ...
    def frames(self) -> Iterator[Frame]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(
    spec: SourceSpec,
    *,
    open_timeout_s: float = 5,
    read_timeout_s: float = 5,
    stop: threading.Event,
    folder_fps: float = FOLDER_FPS,
) -> Source:
    """Open a video file, a folder of pictures, or a stream (rtsp, rtsps, http, https). The caller closes it.

    Files and folders are checked here: one frame is decoded. A stream connects in its own thread and goes on
    trying until `stop` is set or the source is closed, so a camera that is off does not stop a run.

    Args:
        spec: what to open.
        open_timeout_s: seconds to connect (streams).
        read_timeout_s: seconds without a picture after which a stream counts as lost.
        stop: ends `frames` of every kind of source when set.
        folder_fps: frames a second of an image folder.

    Raises:
        SourceError: missing, not a video, no video stream, no picture, or an unknown scheme.
    """
    scheme, mark, _ = spec.url.partition("://")
    if mark:
        if scheme.lower() not in STREAM_SCHEMES:
            schemes = ", ".join(STREAM_SCHEMES)
            raise refusal(spec, f"scheme {scheme!r} is not supported; use one of {schemes}")
        return LiveSource(spec, open_timeout_s=open_timeout_s, read_timeout_s=read_timeout_s, stop=stop)
    path = Path(spec.url)
    if path.is_dir():
        return FolderSource(spec, folder_fps, stop)
    if not path.is_file():
        raise refusal(spec, "no such file or folder; check the path")
    return FileSource(spec, stop)


class _Stored:
    """What files and folders share: they are whole, so nothing is dropped and nothing reconnects."""

    live = False
    dropped = 0
    reconnects = 0

    def close(self) -> None:
        """Release the source. Calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FileSource(_Stored):
    """A video file. Times come from its time stamps, from 0 and always rising.

    Raises:
        SourceError: not a video, no video stream, or no picture that can be decoded.
    """

    def __init__(self, spec: SourceSpec, stop: threading.Event) -> None:
        self.spec = spec
        self._stop = stop
        try:
            # Absolute: a colon in a relative name would be taken for a protocol.
            self._container = av.open(str(Path(spec.url).absolute()))
        except av.FFmpegError as error:
            rule = f"not a readable video ({error.strerror}); convert it to MP4 or MKV"
            raise refusal(spec, rule) from error
        try:
            if self._container.format.name == "tty":  # FFmpeg draws any text as a video
                raise refusal(spec, "a text file, not a video; give a video")
            self._pictures = self._decode()
            self._first = next(self._pictures, None)
            if self._first is None:
                raise refusal(spec, "no picture can be decoded; the file is empty or damaged, copy it again")
        except SourceError:
            self._container.close()
            raise

    @property
    def fps(self) -> float | None:
        """Average rate that the file states, or None."""
        rate = self._container.streams.video[0].average_rate
        return float(rate) if rate else None

    def frames(self) -> Iterator[Frame]:
        """All frames in order, until the end, damage, or `stop`."""
        period = 1 / (self.fps or _ASSUMED_FPS)
        reformatter = VideoReformatter()  # kept: one per frame costs four times the conversion
        picture, start, last, index = self._first, None, -period, 0
        while picture is not None and not self._stop.is_set():
            stamp = index * period if picture.time is None else picture.time
            start = stamp if start is None else start
            last = stamp - start if stamp - start > last else last + period
            image = reformatter.reformat(picture, format="rgb24").to_ndarray()
            yield Frame(self.spec.name, index, last, image.astype(np.uint8, copy=False))
            picture = next(self._pictures, None)
            index += 1

    def close(self) -> None:
        """Release the file. Calling it again does nothing."""
        self._pictures.close()
        self._container.close()

    def _decode(self) -> Generator[av.VideoFrame]:
        if not self._container.streams.video:
            raise refusal(self.spec, "the file has no video stream; give a file with pictures")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        count = 0
        try:
            for picture in self._container.decode(stream):
                count += 1
                yield picture
        except av.FFmpegError as error:
            _log.warning("camera %s: damaged after %d frames (%s)", self.spec.name, count, error.strerror)
            return
        if count < stream.frames:
            _log.warning(
                "camera %s: %d of %d frames are missing", self.spec.name, stream.frames - count, stream.frames
            )


class FolderSource(_Stored):
    """A folder of pictures (jpg, png) in the order of the numbers in their names.

    Raises:
        SourceError: no picture in it, or the first one cannot be decoded.
    """

    def __init__(self, spec: SourceSpec, fps: float, stop: threading.Event) -> None:
        self.spec = spec
        self.fps: float | None = fps
        self._period = 1 / fps
        self._stop = stop
        found = (path for path in Path(spec.url).iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        self._paths = sorted(found, key=_natural)
        if not self._paths:
            kinds = ", ".join(PICTURE_SUFFIXES)
            raise refusal(spec, f"the folder holds no {kinds}; give the folder of the pictures")
        if cv2.imread(str(self._paths[0]), cv2.IMREAD_COLOR) is None:
            raise refusal(spec, f"{self._paths[0].name} is not a readable picture; remove or replace it")

    def frames(self) -> Iterator[Frame]:
        """All pictures in order, until the end, a damaged one, or `stop`."""
        for index, path in enumerate(self._paths):
            if self._stop.is_set():
                return
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is None:
                _log.warning("camera %s: %s is damaged after %d frames", self.spec.name, path.name, index)
                return
            image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
            yield Frame(self.spec.name, index, index * self._period, image)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]
