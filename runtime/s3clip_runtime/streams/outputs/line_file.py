"""A file to which whole lines are appended, and which is rotated between two of them."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.streams.outputs.claim import claim

_log = logging.getLogger(__name__)

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND


class LineFile:
    """A file, a device or standard output that takes whole lines. Not safe for threads.

    A file is locked: two runs that append to the same one would take back each other's lines.

    Args:
        path: None is standard output.
        rotate_bytes: a line that would make the file larger goes to a new one; 0 never rotates.
        keep: rotated files PATH.1 (newest) to PATH.keep.
        durable: `unsynced` will be called, and its files synced.

    Raises:
        ConfigError: what is to be rotated is no file.
        SinkError: it cannot be opened for appending, or another run has it.
    """

    def __init__(self, path: Path | None, *, rotate_bytes: int, keep: int, durable: bool) -> None:
        self.name = "standard output" if path is None else str(path)
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._durable = durable
        self._retired: list[int] = []
        self._rotation_fails = False
        try:
            self._fd = os.dup(1) if path is None else os.open(path, _FLAGS, 0o644)
        except OSError as error:
            rule = f"events cannot be written to {self.name}: {error.strerror}"
            raise SinkError(f"{rule}; name a writable file") from error
        self.is_file = path is not None and stat.S_ISREG(os.fstat(self._fd).st_mode)
        try:
            if rotate_bytes and not self.is_file:
                raise ConfigError(f"{self.name} is no file, so it cannot be rotated; set rotate_mb = 0")
            if self.is_file:
                claim(self._fd, self.name)
        except (ConfigError, SinkError):
            os.close(self._fd)
            raise
        self._torn = self.is_file and _ends_torn(self._fd)
        self._retire_folder()

    def append(self, line: bytes) -> None:
        """Write one line with its line break, wholly or not at all.

        Raises:
            OSError: it does not fit; the file is as before.
        """
        if not self.is_file:
            _write_all(self._fd, line)
            return
        size = os.fstat(self._fd).st_size
        if self._rotate_bytes and size and size + len(line) > self._rotate_bytes:
            self._rotate()
            size = os.fstat(self._fd).st_size
        try:
            # A last line torn by a power cut gets its end first.
            _write_all(self._fd, b"\n" + line if self._torn else line)
        except OSError:
            self._take_back(size)
            raise
        self._torn = False

    def follow(self) -> None:
        """Open the path again when its file was moved or deleted by somebody else, such as logrotate."""
        if not self.is_file or self._path is None:
            return
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
            if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
                return
        except FileNotFoundError:
            pass
        fresh = os.open(self._path, _FLAGS, 0o644)
        try:
            claim(fresh, self.name)
        except SinkError:
            os.close(fresh)
            raise
        _log.warning("%s was moved or deleted by another program; events go to a new one", self.name)
        self._swap(fresh)

    def unsynced(self) -> list[int]:
        """Descriptors of what may not be on the disk yet, rotated files too; the caller syncs and closes."""
        if not self.is_file:
            return []
        retired, self._retired = self._retired, []
        return [*retired, os.dup(self._fd)]

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (self._fd, *self._retired):
            os.close(fd)

    def _take_back(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError:  # such as a file system that became read-only
            self._torn = self._torn or os.fstat(self._fd).st_size != size

    def _rotate(self) -> None:
        """PATH becomes PATH.1 and so on, by renames alone; where that fails, the file just grows."""
        assert self._path is not None
        new = self._path.with_name(self._path.name + ".new")
        fresh = None
        try:
            fresh = os.open(new, _FLAGS | os.O_TRUNC, 0o644)
            claim(fresh, str(new))
            # Up to the first number that is free: after a crash in here nothing is moved twice.
            free = next((n for n in range(1, self._keep) if not self._rotated(n).exists()), self._keep)
            for number in range(free, 1, -1):
                os.replace(self._rotated(number - 1), self._rotated(number))
            os.replace(self._path, self._rotated(1))
            os.replace(new, self._path)
        except (OSError, SinkError) as error:
            if fresh is not None:
                os.close(fresh)
            if not self._rotation_fails:
                _log.warning("%s cannot be rotated and grows: %s", self.name, error)
            self._rotation_fails = True
            return
        self._rotation_fails = False
        self._swap(fresh)

    def _rotated(self, number: int) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.{number}")

    def _swap(self, fresh: int) -> None:
        old, self._fd = self._fd, fresh
        self._torn = _ends_torn(fresh)
        if not self._durable:
            os.close(old)
            return
        self._retired.append(old)
        self._retire_folder()

    def _retire_folder(self) -> None:
        """A new name is on the disk when its folder is."""
        if self.is_file and self._durable:
            assert self._path is not None
            with suppress(OSError):  # a folder that may not be listed
                self._retired.append(os.open(self._path.parent, os.O_RDONLY))


def _write_all(fd: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])


def _ends_torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
