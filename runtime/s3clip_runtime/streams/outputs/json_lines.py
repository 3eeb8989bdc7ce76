"""JSON lines: one event a line, never half written."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.streams.events import Sighting
from s3clip_runtime.streams.outputs.line_file import LineFile
from s3clip_runtime.streams.status import OutputStatus

_log = logging.getLogger(__name__)

Fsync = Literal["never", "interval", "always"]

WAITING_BYTES = 32 * 2**20
"""Lines that wait for a full disk, in memory: about 20,000 events without embeddings. What was accepted is
kept; events beyond it are refused and counted as lost."""

_WRITE, _FOLLOW, _FSYNC = "is full or gone, events wait in memory", "cannot be made anew", "failed to sync"
_TICK_S = 1.0
_JOIN_S = 5.0


class JsonLines:
    """Appends one JSON line an event; no line is ever half written, none is lost while the process lives.

    A line is handed to the kernel before `sighting` returns, so kill -9 loses none; a power cut loses what
    `fsync` allows. A line that does not fit (disk full) is taken back and waits in memory with all that
    follow, up to `WAITING_BYTES`; they are tried again, in order, every second, with the next event and at
    `close`. A file that another program moved or deleted is made anew within a second.

    Args:
        path: a file or device; None is standard output.
        rotate_bytes: the file is renamed to PATH.1, and PATH.1 to PATH.2, before a line that would make it
            larger; 0 never rotates. A reader by name (`tail -F`) misses nothing.
        keep: rotated files; the oldest is deleted.
        fsync: "never" leaves it to the kernel; "interval": a power cut costs at most the last second;
            "always": nothing, and `sighting` waits for the disk.

    Raises:
        ConfigError: a value is out of range, or what is to be rotated is no file.
        SinkError: the file cannot be opened for appending, or another run has it.
    """

    def __init__(
        self, path: Path | None, *, rotate_bytes: int = 0, keep: int = 10, fsync: Fsync = "never"
    ) -> None:
        if rotate_bytes < 0 or keep < 1:
            rule = "the size of rotation must be 0 or more, and 1 or more files kept"
            raise ConfigError(f"events: {rule}, not {rotate_bytes} bytes and {keep} files")
        if fsync not in ("never", "interval", "always"):
            raise ConfigError(f"events: fsync {fsync!r} is unknown; use never, interval or always")
        self._file = LineFile(path, rotate_bytes=rotate_bytes, keep=keep, durable=fsync != "never")
        self._is_stdout = path is None
        self._fsync = fsync
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._delivered = self._lost = 0
        self._unsynced = False
        self._errors: dict[str, str] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._tick_loop, name="json-lines", daemon=True)
        self._thread.start()

    def sighting(self, sighting: Sighting) -> None:
        """Write the sighting's event, after those that still wait."""
        line = (sighting.event.line() + "\n").encode()
        with self._lock:
            if self._waiting_bytes + len(line) > WAITING_BYTES:
                self._refuse(sighting.event.event_id)
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            self._write_waiting()

    def status(self) -> OutputStatus:
        """How many lines are written, wait and are lost. Never waits for the disk."""
        error = next(iter(self._errors.copy().values()), "")
        return OutputStatus(self._file.name, self._delivered, len(self._waiting), self._lost, error)

    def close(self) -> None:
        """Try what still waits once more and close. Calling it again does nothing.

        Raises:
            SinkError: some events could not be written; they were printed on standard output instead, but
                for those that were refused before.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join(_JOIN_S)
        with self._lock:
            self._write_waiting()
            if self._fsync == "interval":
                self._sync(self._file.unsynced())
            self._file.close()
        self._raise_for_the_rest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _raise_for_the_rest(self) -> None:
        rest, reason = list(self._waiting), self._errors.get(_WRITE, "")
        if self._is_stdout and (rest or self._lost):
            total = len(rest) + self._lost
            raise SinkError(f"{total} events were lost: writing to standard output failed ({reason})")
        if rest:
            sys.stdout.flush()
            sys.stdout.buffer.write(b"".join(rest))
            sys.stdout.flush()
            more = f"; {self._lost} more found no room in memory and are lost" if self._lost else ""
            raise SinkError(
                f"{len(rest)} events could not be written to {self._file.name} ({reason}); they were printed "
                f"on standard output: append them to the file after making room{more}"
            )
        if self._lost:
            raise SinkError(f"{self._lost} events for {self._file.name} are lost: it was full for too long")

    def _tick_loop(self) -> None:
        while not self._closing.wait(_TICK_S):
            with self._lock:
                self._follow()
                self._write_waiting()
                handles = self._file.unsynced() if self._fsync == "interval" and self._unsynced else []
                self._unsynced = False
            self._sync(handles)  # outside of the lock: `sighting` does not wait for it

    def _follow(self) -> None:
        try:
            self._file.follow()
        except (OSError, SinkError) as error:
            self._fail(_FOLLOW, str(error))
        else:
            self._errors.pop(_FOLLOW, None)

    def _write_waiting(self) -> None:
        """Write in order until one fails."""
        wrote = False
        while self._waiting:
            try:
                self._file.append(self._waiting[0])
            except OSError as error:
                self._fail(_WRITE, error.strerror or str(error))
                break
            self._waiting_bytes -= len(self._waiting.popleft())
            self._delivered += 1
            wrote = True
        else:
            if self._errors.pop(_WRITE, None):
                _log.warning("%s: all events that waited are written", self._file.name)
        self._unsynced = self._unsynced or wrote
        if wrote and self._fsync == "always":
            self._sync(self._file.unsynced())

    def _fail(self, trouble: str, reason: str) -> None:
        if trouble not in self._errors:
            _log.warning("%s %s: %s", self._file.name, trouble, reason)
        self._errors[trouble] = reason

    def _refuse(self, event_id: str) -> None:
        self._lost += 1
        if self._lost == 1:
            limit = f"{WAITING_BYTES // 2**20} MB wait in memory"
            _log.error("events for %s are lost from %s on: %s", self._file.name, event_id, limit)

    def _sync(self, handles: list[int]) -> None:
        """Sync and close descriptors; a disk that fails is told, the lines count as written."""
        for handle in handles:
            try:
                os.fsync(handle)
            except OSError as error:
                self._fail(_FSYNC, error.strerror or str(error))
            else:
                self._errors.pop(_FSYNC, None)
            finally:
                os.close(handle)
