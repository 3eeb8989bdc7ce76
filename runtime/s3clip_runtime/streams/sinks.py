"""Where results go: JSON lines, video files, the contact sheet."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import SinkError
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.preprocess import resize_bicubic
from s3clip_runtime.streams.drawing import SheetMatch, SheetRow, contact_sheet
from s3clip_runtime.streams.events import Sighting

_LOG = logging.getLogger(__name__)
_MILLISECONDS = Fraction(1, 1000)


class SightingSink(Protocol):
    """Takes sightings. Called by one thread at a time."""

    def sighting(self, sighting: Sighting) -> None:
        """Take one sighting. Raises SinkError when the output is broken for good."""


class JsonLines:
    """Appends one JSON line an event; no line is ever half written, none is lost while the process lives.

    A line that does not fit (disk full) is taken back and kept in memory with all that follow; they are
    tried again, in order, with the next event and at `close`.

    Args:
        path: a file or device; None is standard output.

    Raises:
        SinkError: the file cannot be opened for appending.
    """

    def __init__(self, path: Path | None) -> None:
        self._name = "standard output" if path is None else str(path)
        self._is_stdout = path is None
        self._waiting: list[bytes] = []
        self._told = False
        try:
            self._fd = os.dup(1) if path is None else _open_to_append(path)
        except OSError as error:
            raise SinkError(
                f"events cannot be written to {self._name}: {error.strerror}; name a writable file"
            ) from error
        self._is_file = path is not None and stat.S_ISREG(os.fstat(self._fd).st_mode)

    def sighting(self, sighting: Sighting) -> None:
        """Write the sighting's event, after those that still wait."""
        self._waiting.append((sighting.event.line() + "\n").encode())
        self._write_waiting()

    def close(self) -> None:
        """Try what still waits once more and close.

        Raises:
            SinkError: some events could not be written; they were printed on standard output instead.
        """
        reason = self._write_waiting()
        os.close(self._fd)
        if reason is None:
            return
        lost, self._waiting = self._waiting, []
        if self._is_stdout:
            raise SinkError(f"{len(lost)} events were lost: writing to standard output failed ({reason})")
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(lost))
        sys.stdout.flush()
        raise SinkError(
            f"{len(lost)} events could not be written to {self._name} ({reason}); "
            "they were printed on standard output: append them to the file after making room"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_waiting(self) -> str | None:
        """Write in order until one fails; the reason of the failure, or None."""
        while self._waiting:
            try:
                self._write_line(self._waiting[0])
            except OSError as error:
                reason = error.strerror or str(error)
                if not self._told:
                    _LOG.warning("events for %s wait in memory: %s", self._name, reason)
                    self._told = True
                return reason
            del self._waiting[0]
        self._told = False
        return None

    def _write_line(self, line: bytes) -> None:
        start = os.fstat(self._fd).st_size if self._is_file else 0
        done = 0
        try:
            while done < len(line):
                done += os.write(self._fd, line[done:])
        except OSError:
            if self._is_file:
                os.ftruncate(self._fd, start)
            raise


def _open_to_append(path: Path) -> int:
    """A file descriptor at a line's start: a last line torn by a power cut gets its end."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
    return fd


class AnnotatedVideo:
    """An H.264 file, frame by frame, with the frames' own times.

    Args:
        path: .mp4 or .mkv; an existing file is overwritten.
        size: (height, width) of the pictures; an odd last row or column is left out, as H.264 demands.
        fps: of the source; only a hint for players.

    Raises:
        SinkError: the file cannot be created, or PyAV was built without an H.264 encoder.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._path = path
        self._given_size = size
        self._size = (size[0] // 2 * 2, size[1] // 2 * 2)
        self._first_s: float | None = None
        self._last_pts = -1
        rate = Fraction(fps if fps > 0 else 25.0).limit_denominator(1001)
        try:
            self._container = av.open(str(path), "w")
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.height, self._stream.width = self._size
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"preset": "veryfast", "crf": "20"}
            self._stream.codec_context.time_base = _MILLISECONDS
            self._container.start_encoding()  # opens the file, which `av.open` does not
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SinkError(f"the video {path} cannot be created: {error}; name a writable folder") from error

    def write(self, image: NDArray[np.uint8], time_s: float) -> None:
        """Append one picture, uint8 (h, w, 3) RGB of the size given, shown at `time_s` of the source's clock.

        Pictures of another size are resized.

        Raises:
            SinkError: the disk is full or gone.
        """
        first_s = self._first_s = time_s if self._first_s is None else self._first_s
        pts = max(round((time_s - first_s) * 1000), self._last_pts + 1)
        self._last_pts = pts
        if image.shape[:2] != self._given_size:  # a camera may change its size; a video file cannot
            image = resize_bicubic(image, self._given_size)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[: self._size[0], : self._size[1]]))
        frame.pts, frame.time_base = pts, _MILLISECONDS
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise SinkError(
                f"the video {self._path} cannot be written: {error}; make room on the disk"
            ) from error

    def close(self) -> None:
        """Write the last frames and the index.

        Raises:
            SinkError: the disk is full or gone.
        """
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise SinkError(
                f"the video {self._path} cannot be ended: {error}; make room on the disk"
            ) from error


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a uint8 (h, w, 3) RGB picture, overwriting.

    Raises:
        SinkError: the file cannot be written.
    """
    _, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise SinkError(
            f"the picture {path} cannot be written: {error.strerror}; name a writable file"
        ) from error


class ContactSheet:
    """Collects sightings and draws them as one PNG at `write`.

    Args:
        path: the PNG.
        title: first line of the picture.
        enhance: clip to its super-resolved crops, uint8 (T, 128, 64, 3).
        known_crops: identity to a crop of it, for those that have one.
    """

    MAX_ROWS = 40
    """Later sightings are counted but not drawn."""

    def __init__(
        self,
        path: Path,
        title: str,
        enhance: Callable[[Clip], NDArray[np.uint8]],
        known_crops: Mapping[str, NDArray[np.uint8]],
    ) -> None:
        self._path = path
        self._title = title
        self._enhance = enhance
        self._known_crops = known_crops
        self._kept: list[Sighting] = []
        self._seen = 0

    def sighting(self, sighting: Sighting) -> None:
        """Keep the clip of the sighting, up to `MAX_ROWS`."""
        self._seen += 1
        if len(self._kept) < self.MAX_ROWS:
            self._kept.append(sighting)

    def write(self, verdict: Callable[[Sighting], tuple[str, bool | None]]) -> None:
        """Super-resolve, draw and write.

        Args:
            verdict: text under a row's facts, and whether it is good, bad or neither.

        Raises:
            SinkError: the file cannot be written.
        """
        rows = [self._row(sighting, *verdict(sighting)) for sighting in self._kept]
        title = f"{self._title} - {self._seen} tracklets"
        if self._seen > len(rows):
            title += f", the first {len(rows)} shown"
        write_png(self._path, contact_sheet(rows, title))

    def _row(self, sighting: Sighting, text: str, good: bool | None) -> SheetRow:
        event, clip = sighting.event, sighting.clip
        return SheetRow(
            lines=(
                f"{event.camera} #{event.track}",
                f"{event.first_s:.1f} to {event.last_s:.1f} s, {event.frames} frames"
                if event.clock == "stream"
                else f"{event.first_time}, {event.frames} frames",
                f"{event.height_px:.0f} px high, {event.resolution.upper()}",
                event.decision if event.identity is None else f"is {event.identity}",
            ),
            crops=clip.crops,
            enhanced=None if clip.hr else self._enhance(clip),
            matches=tuple(
                SheetMatch(match.identity, match.score, self._known_crops.get(match.identity))
                for match in sighting.matches
            ),
            verdict=text,
            good=good,
        )
