"""A queue of events on disk that outlives the program, for outputs behind a network."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.streams.outputs.claim import claim

_log = logging.getLogger(__name__)

MEMORY_BYTES = 8 * 2**20
"""Events that wait in memory while the disk is full: about 5,000 without embeddings."""

_APPLICATION_ID = 0x53334351  # "S3CQ"
_SCHEMA = "CREATE TABLE event (number INTEGER PRIMARY KEY, event_id TEXT NOT NULL, payload BLOB NOT NULL)"
_ROW_BYTES = 100  # about what a row takes beyond its payload
_BATCH = 100
_RETRY_S = 1.0
_BUSY_S = 5.0  # only our own checkpoint can be in the way, and for a moment


@dataclass(frozen=True, slots=True)
class Spooled:
    """One waiting event.

    Attributes:
        number: rises from event to event of one opened spool.
        event_id: of the event.
        payload: what is to be delivered.
    """

    number: int
    event_id: str
    payload: bytes

    @property
    def size(self) -> int:
        """Bytes that count against the limit."""
        return len(self.payload) + _ROW_BYTES


class Spool:
    """First in, first out, on disk, in order also after kill -9 and a restart. Safe for threads.

    An SQLite file in WAL mode with synchronous=NORMAL: `append` hands the event to the kernel and waits for
    no fsync, which `tend` does in the sender's thread. So kill -9 loses nothing; a power cut may lose the
    last second, which the JSON lines keep.

    When more than `max_bytes` wait, the oldest are dropped. While the disk is full, events wait in memory up
    to `MEMORY_BYTES`; those beyond are refused. Both are counted in `lost`, and told.

    Args:
        path: the file; made if missing.
        max_bytes: limit of the waiting payloads. The file grows to about a third more and does not shrink.

    Raises:
        ConfigError: the limit is not positive.
        SinkError: the file cannot be opened, is no spool, is damaged, or another run has it.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ConfigError(
                f"spool {path}: the limit must be 1 byte or more, not {max_bytes}; raise spool_mb"
            )
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._memory: deque[Spooled] = deque()
        self._memory_bytes = 0
        self._acknowledged = self._dropped = 0  # up to these numbers
        self._rows = self._row_bytes = 0  # on the disk and not acknowledged
        self._lost = 0
        self._told: set[str] = set()
        self._retry_s = 0.0
        self._changed = True
        self._undeleted = False  # the disk was too full even to forget an event
        self._error = ""
        self._open()

    def _open(self) -> None:
        try:
            self._claim = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            rule = f"spool {self._path} cannot be opened: {error.strerror}"
            raise SinkError(f"{rule}; name a file in a writable folder") from error
        database = tender = None
        try:
            claim(self._claim, f"spool {self._path}")
            database = _connect(self._path)
            _make_or_check(database, self._path)
            tender = _connect(self._path)
            tender.execute("SELECT count(*) FROM event").fetchone()  # only now it knows that there is a log
            counted = (
                "SELECT count(*), coalesce(sum(length(payload)), 0), coalesce(max(number), 0) FROM event"
            )
            rows, length, last = database.execute(counted).fetchone()
        except (sqlite3.Error, SinkError) as error:
            for connection in (database, tender):
                if connection is not None:
                    connection.close()
            os.close(self._claim)
            if isinstance(error, SinkError):
                raise
            cure = "make room on the disk, or move the file away if it is damaged"
            raise SinkError(f"spool {self._path} cannot be opened: {error}; {cure}") from error
        self._database: sqlite3.Connection | None = database
        self._tender = tender
        self._rows, self._row_bytes = int(rows), int(length + rows * _ROW_BYTES)
        self._next = last + 1
        if self._rows:
            _log.info("spool %s: %d events of an earlier run wait", self._path, self._rows)

    @property
    def waiting(self) -> int:
        """Events that were neither acknowledged nor lost."""
        return self._rows + len(self._memory)

    @property
    def lost(self) -> int:
        """Events dropped or refused because a limit was reached."""
        return self._lost

    @property
    def error(self) -> str:
        """What is wrong with the disk now; empty when all is well."""
        return self._error

    def append(self, event_id: str, payload: bytes) -> None:
        """Keep one event, after all others."""
        with self._lock:
            item = Spooled(self._next, event_id, payload)
            if self._memory_bytes + item.size > max(MEMORY_BYTES, item.size):
                self._lose(1, event_id, f"{MEMORY_BYTES // 2**20} MB wait in memory for the disk")
                return
            self._next += 1
            self._memory.append(item)
            self._memory_bytes += item.size
            if time.monotonic() >= self._retry_s:
                self._write_memory()

    def oldest(self) -> Spooled | None:
        """The event to deliver next; None when nothing waits or the disk cannot be read."""
        with self._lock:
            if self._rows and self._database is not None:
                try:
                    query = (
                        "SELECT number, event_id, payload FROM event WHERE number > ? ORDER BY number LIMIT 1"
                    )
                    row = self._database.execute(query, (self._acknowledged,)).fetchone()
                except sqlite3.Error as error:
                    self._fail(error)
                    return None
                if row is not None:
                    return Spooled(*row)
                self._rows = self._row_bytes = 0  # somebody else emptied the file
            return self._memory[0] if self._memory else None

    def acknowledge(self, item: Spooled) -> bool:
        """The event is delivered or given up: forget it and all before it.

        Returns:
            False when it had been dropped in the meantime, and so is counted as lost.
        """
        with self._lock:
            if self._memory and self._memory[0].number == item.number:
                self._memory_bytes -= self._memory.popleft().size
                return True
            was_there = item.number > max(self._dropped, self._acknowledged)
            self._acknowledged = max(self._acknowledged, item.number)
            if was_there:
                self._rows -= 1
                self._row_bytes -= item.size
            self._forget_acknowledged()
            return was_there

    def tend(self) -> None:
        """Write what waits in memory, and bring the log into the file. Call it about once a second."""
        with self._lock:
            if self._database is None:
                return
            self._write_memory()
            if self._undeleted:
                self._forget_acknowledged()
            changed, self._changed = self._changed, False
        if changed:
            try:
                # Passive, on a connection of its own: `append` never waits for its fsync.
                self._tender.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                self._fail(error)
                self._changed = True

    def close(self) -> int:
        """Write what waits in memory and close. Calling it again does nothing.

        Returns:
            Events that could not be kept.
        """
        with self._lock:
            if self._database is None:
                return 0
            self._write_memory()
            self._forget_acknowledged()
            self._lost += len(self._memory)
            self._tender.close()
            self._database.close()
            self._database = None
            os.close(self._claim)
            return len(self._memory)

    def _write_memory(self) -> None:
        """Move events from memory to the disk, oldest first, as far as there is room."""
        while self._memory and self._database is not None:
            batch = [self._memory[i] for i in range(min(_BATCH, len(self._memory)))]
            size = sum(item.size for item in batch)
            try:
                dropped = self._insert(self._database, batch, size)
            except sqlite3.Error as error:
                self._fail(error)
                self._retry_s = time.monotonic() + _RETRY_S
                return
            self._succeed()
            self._rows += len(batch) - len(dropped)
            self._row_bytes += size - sum(size for _, size in dropped)
            for item in batch:
                self._memory_bytes -= item.size
                self._memory.popleft()
            if dropped:
                self._dropped = dropped[-1][0]
                limit = f"more than {self._max_bytes / 2**20:g} MB wait, the oldest are dropped"
                self._lose(len(dropped), batch[-1].event_id, limit)

    def _insert(self, database: sqlite3.Connection, batch: list[Spooled], size: int) -> list[tuple[int, int]]:
        """Insert, and drop the oldest beyond the limit; gives their numbers and sizes."""
        with _transaction(database):
            rows = [(item.number, item.event_id, item.payload) for item in batch]
            database.executemany("INSERT INTO event VALUES (?, ?, ?)", rows)
            dropped: list[tuple[int, int]] = []
            excess = self._row_bytes + size - self._max_bytes
            if excess <= 0:
                return dropped
            query = "SELECT number, length(payload) FROM event WHERE number > ? ORDER BY number"
            for number, length in database.execute(query, (self._acknowledged,)):
                if excess <= 0:
                    break
                dropped.append((number, length + _ROW_BYTES))
                excess -= length + _ROW_BYTES
            database.execute("DELETE FROM event WHERE number <= ?", (dropped[-1][0],))
            return dropped

    def _forget_acknowledged(self) -> None:
        if self._database is None:
            return
        try:
            with _transaction(self._database):
                self._database.execute("DELETE FROM event WHERE number <= ?", (self._acknowledged,))
        except sqlite3.Error as error:  # the next one deletes it too; until then it is passed over
            self._fail(error)
            self._undeleted = True
        else:
            self._undeleted = False
            self._succeed()

    def _succeed(self) -> None:
        if self._error:
            _log.warning("spool %s: the disk takes events again", self._path)
        self._error = ""
        self._changed = True

    def _fail(self, error: sqlite3.Error) -> None:
        if not self._error:
            _log.warning("spool %s: %s; events wait in memory", self._path, error)
        self._error = f"spool: {error}"

    def _lose(self, count: int, event_id: str, reason: str) -> None:
        self._lost += count
        if reason not in self._told:
            self._told.add(reason)
            _log.error("spool %s: events are lost since %s: %s", self._path, event_id, reason)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA wal_autocheckpoint = 0")  # its fsync would be in `append`
    database.execute(f"PRAGMA journal_size_limit = {4 * 2**20}")
    return database


def _make_or_check(database: sqlite3.Connection, path: Path) -> None:
    mark = database.execute("PRAGMA application_id").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if mark != _APPLICATION_ID and (mark or tables):
        raise SinkError(
            f"spool {path}: the file is no spool of s3clip; give the path of a spool or a new file"
        )
    if not tables:
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(_SCHEMA)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
