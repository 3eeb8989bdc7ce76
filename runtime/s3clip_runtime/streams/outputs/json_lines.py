"""JSON lines: one event a line, never half written."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from s3clip_runtime.errors import SinkError
from s3clip_runtime.streams.events import Sighting

_LOG = logging.getLogger(__name__)


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
