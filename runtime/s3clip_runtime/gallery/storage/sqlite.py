"""The gallery's own database: one SQLite file, written so that it survives crashes and really forgets.

Journal mode is SQLite's default (a rollback journal, deleted at commit), not WAL: a WAL file keeps the
bytes of erased rows until a checkpoint, and a gallery shall be one file that can be copied. Erased rows are
overwritten with zeros (`secure_delete`). Blocks that the file system or an SSD keeps of deleted files, and
copies made by others, are out of reach.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.storage.database import Dialect, Halves, statements
from s3clip_runtime.gallery.storage.upgrade import is_old, upgrade

_APPLICATION_ID = 0x53334347  # "S3CG": tells our files from other SQLite files
_BUSY_S = 10.0
_POLL_S = 0.002
"""Pause between two tries to begin. SQLite itself tries ten times a second: beside another process that
writes all the time it got its turn after 5 to 10 s, this way within 0.3 s."""

_PAGE_BYTES = 16384
"""Six vectors of 1280 numbers a page; SQLite's 4096 would hold one and waste a third of the file."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLITE_ERROR is a table or a column that is not there."""

_DIALECT = Dialect(key="INTEGER PRIMARY KEY AUTOINCREMENT", text="TEXT", blob="BLOB", vector="BLOB")


class SqliteDatabase:
    """A `database.Database` in one file, or in memory.

    Raises (all methods): see `database.Database`.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file, or make it with empty tables if there is none; None keeps all in memory."""
        if path is not None and _is_filled(path):
            _check_header(path)
        elif path is not None:
            _touch(path)
        self._path = path
        self._name = f"gallery {path}" if path else "the gallery in memory"
        with self._explained():
            # Transactions are opened by hand; the gallery above holds the lock that makes threads safe.
            self._connection = sqlite3.connect(
                str(path) if path else ":memory:",
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    @property
    def name(self) -> str:
        """The file."""
        return self._name

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement and read what it gives."""
        with self._explained():
            return self._connection.execute(statement, values).fetchall()

    def run(self, statement: str, *values: object) -> int:
        """Run one statement; how many rows it changed."""
        with self._explained():
            return self._connection.execute(statement, values).rowcount

    def run_many(self, statement: str, values: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of values."""
        with self._explained():
            self._connection.executemany(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, one writer at a time; on the disk when it ends."""
        with self._spanning(self._begin_writing):
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One state for all reads in it."""
        if self._connection.in_transaction:  # nobody else can write: the transaction is one state
            yield
            return
        with self._spanning(lambda: self._connection.execute("BEGIN")):
            yield

    def packed(self, vector: Halves) -> object:
        """Little-endian bytes."""
        return vector.astype("<f2").tobytes()

    def unpacked(self, values: Sequence[object], dim: int) -> Halves:
        """Float16 (n, dim)."""
        for value in values:
            if not isinstance(value, bytes) or len(value) != 2 * dim:
                raise GalleryError(
                    f"{self._name} is damaged: a prototype is not {2 * dim} bytes; restore it from a backup"
                )
        joined = b"".join(value for value in values if isinstance(value, bytes))
        return np.frombuffer(joined, "<f2").reshape(-1, dim).astype(np.float16)

    def scrub(self) -> None:
        """Write the file anew without the space of erased rows, which are zeros by then."""
        self.run("VACUUM")

    def renumber(self) -> None:
        """AUTOINCREMENT does it."""

    @property
    def scrubbing(self) -> str:
        """Of SQLite."""
        return (
            "erased rows were overwritten with zeros (secure_delete), then the file was written anew (VACUUM)"
        )

    def files(self) -> list[Path]:
        """The file, and the journal of a transaction that a crash left."""
        if self._path is None:
            return []
        beside = [self._path.with_name(f"{self._path.name}-{end}") for end in ("journal", "wal", "shm")]
        return [path for path in (self._path, *beside) if path.exists()]

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._connection.close()

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA synchronous = EXTRA")  # a commit outlives a power cut in this journal mode
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of an old file: from its next VACUUM on
        if not self._has_tables():
            with self.transaction():
                if not self._has_tables():  # another process may have been faster
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    for statement in statements(_DIALECT):
                        connection.execute(statement)
        faults = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if faults != "ok":
            found = " ".join(str(faults).split())
            raise GalleryError(f"{self._name} is damaged ({found}); restore it from a backup")
        if is_old(connection):
            self._upgrade()

    def _upgrade(self) -> None:
        with self.transaction():
            if not is_old(self._connection):
                return  # another process was faster
            upgrade(self._connection, statements(_DIALECT), self._name)
        with contextlib.suppress(GalleryUnavailable):  # it only gives space back; a full disk does not matter
            self.scrub()

    def _has_tables(self) -> bool:
        return bool(self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    @contextmanager
    def _spanning(self, begin: Callable[[], object]) -> Iterator[None]:
        with self._explained():
            begin()
        try:
            yield
            with self._explained():
                self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _begin_writing(self) -> None:
        end_s = time.monotonic() + _BUSY_S
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if _kind(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= end_s:
                        raise
                time.sleep(_POLL_S)
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * _BUSY_S)}")

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with self._explained():
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of SQLite into GalleryErrors with a cure."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # such as use after close: a bug, not a fault of the file
        except (sqlite3.Error, UnicodeDecodeError) as error:
            code = _kind(error)
            if code in _DAMAGE:
                rule = f"{self._name}: {error}; the file is damaged; restore it from a backup"
                raise GalleryError(rule) from error
            if code == sqlite3.SQLITE_BUSY:
                cure = f"another process has been writing for {_BUSY_S:g} s; try again when it is done"
            else:
                cure = "check the path, its permissions and the free space"
            raise GalleryUnavailable(f"{self._name}: {error}; {cure}") from error


def _kind(error: Exception) -> int:
    """The low byte of SQLite's error code. Text that is no UTF-8, also in SQLite's message, has none."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


def _is_filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise GalleryError(f"gallery {path}: cannot be read ({error.strerror}); check the path") from error


def _check_header(path: Path) -> None:
    """Read the first bytes by hand: SQLite could already change a foreign database by opening it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise GalleryError(f"gallery {path}: cannot be read ({error.strerror}); check the path") from error
    if header[:16] != b"SQLite format 3\0" or int.from_bytes(header[68:72], "big") != _APPLICATION_ID:
        raise GalleryError(
            f"gallery {path}: the file is no gallery of s3clip; give the path of a gallery or of a new file"
        )


def _touch(path: Path) -> None:
    """Make the file for its owner alone: vectors of people are biometric data."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise GalleryError(f"gallery {path}: cannot be made ({error.strerror}); check the path") from error
