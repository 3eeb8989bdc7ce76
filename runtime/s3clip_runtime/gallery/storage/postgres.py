"""A gallery on PostgreSQL with pgvector, for several boxes that know the same people."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.storage.database import COLUMNS, Halves
from s3clip_runtime.gallery.storage.postgres_connection import (
    LOCK_S,
    UPKEEP_S,
    Address,
    address,
    connect,
    explained,
    patience,
)

if TYPE_CHECKING:
    import psycopg

_RETRY_S = 1.0
_RETRY_TIMES = 4
"""After an attempt to connect of t seconds no other is made for max(1 s, 4 t): who asks often, such as a
recognition loop, spends at most a fifth of its time on a server that does not answer."""

_SNAPSHOTS_S = 60
_STILL_READ = (
    "the rows are deleted, but the server keeps their bytes for an older transaction of another session; "
    "scrub again when it has ended"
)
_PERSONAL = ("prototype", "clip", "sighting", "log", "identity")


class PostgresDatabase:
    """A `database.Database` on a server; `open` makes it.

    A lost connection fails the call that meets it, and the next call connects again. What was within a
    transaction then is undone by the server, and its `with` block fails.
    """

    def __init__(self, place: Address, connection: psycopg.Connection[Any]) -> None:
        """Take over an open connection; `open` is the way in."""
        self._place = place
        self._connection = connection
        self._closed = False
        self._inside = False
        self._next_attempt = 0.0

    @staticmethod
    def open(dsn: str) -> PostgresDatabase:
        """Connect, and make the tables if the schema is empty; several boxes may do so at once.

        Args:
            dsn: see `postgres_connection.address`.

        Raises:
            ConfigError: the DSN cannot be read, or the extra `postgres` is not installed.
            GalleryUnavailable: the server is away or refuses.
            GalleryError: it lacks pgvector, or the schema holds something else.
        """
        place = address(dsn)
        return PostgresDatabase(place, connect(place))

    @property
    def name(self) -> str:
        """Database, host and port."""
        return self._place.name

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement and read what it gives."""
        with self._live() as connection:
            return connection.execute(_native(statement), values, binary=True).fetchall()

    def run(self, statement: str, *values: object) -> int:
        """Run one statement; how many rows it changed."""
        with self._live() as connection:
            return connection.execute(_native(statement), values).rowcount

    def run_many(self, statement: str, values: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of values, without waiting for each answer."""
        with self._live() as connection, connection.cursor() as cursor:
            cursor.executemany(_native(statement), values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, one at a time among all boxes: an advisory lock of the gallery is held."""
        with self._block(b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"):
            # Each statement after the lock sees all that was committed before it: nobody else can commit now.
            self.rows("SELECT pg_advisory_xact_lock(?)", self._place.lock)
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """For reading only: all statements in it see one state. Writers do not wait for it."""
        if self._inside:  # nobody else can write: the transaction is one state
            yield
            return
        with self._block(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            yield

    def packed(self, vector: Halves) -> object:
        """The value for a `vector` column of one float16 vector (dim,) of finite numbers."""
        from pgvector import HalfVector

        return HalfVector(vector)

    def unpacked(self, values: Sequence[object], dim: int) -> Halves:
        """Float16 (n, dim) of what `vector` columns gave; GalleryError if one has another length."""
        size = 4 + 2 * dim  # two numbers of 16 bits, dim and 0, then the float16 numbers, all big-endian
        parts: list[bytes] = []
        for value in values:
            if not isinstance(value, bytes) or len(value) != size:
                found = f"{(len(value) - 4) // 2} numbers" if isinstance(value, bytes) else repr(value)
                raise GalleryError(
                    f"{self.name}: a stored vector must have {dim} numbers, found {found}; restore a backup"
                )
            parts.append(value)
        table = np.frombuffer(b"".join(parts), ">f2").reshape(-1, size // 2)
        return table[:, 2:].astype(np.float16)

    def maintain(self, statement: str, *, lock_s: float = LOCK_S) -> list[str]:
        """Run one statement of upkeep outside of transactions, as it is written; it may take an hour.

        Args:
            lock_s: wait for locks so long. Others wait behind one who waits to lock a whole table.

        Returns:
            Details that the server tells, such as those of VACUUM VERBOSE.

        Raises:
            GalleryError: the server only warned that it did not do it, for want of rights.
        """
        warnings: list[str] = []
        details: list[str] = []

        def listen(notice: psycopg.errors.Diagnostic) -> None:  # which says nothing any more later
            if notice.severity_nonlocalized == "WARNING":
                warnings.append(notice.message_primary or "")
            if notice.message_detail:
                details.append(notice.message_detail)

        with self._live() as connection:
            connection.add_notice_handler(listen)
            try:
                with patience(connection, lock_s):
                    connection.execute(statement.encode())
            finally:
                connection.remove_notice_handler(listen)
        if warnings:
            raise GalleryError(f"{self.name}: {warnings[0]}; let the tables' owner do it")
        return details

    def renumber(self) -> None:
        """New rows get numbers above all that are there."""
        for table, (key, *_) in COLUMNS.items():
            if key in ("id", "seq") and table != "identity":
                query = f"SELECT setval(pg_get_serial_sequence(?, ?), max({key})) FROM {table}"
                self.rows(query, table, key)

    @property
    def scrubbing(self) -> str:
        """Of PostgreSQL."""
        return "the tables were written anew without the erased rows (VACUUM FULL)"

    def files(self) -> list[Path]:
        """None: they are the server's."""
        return []

    def scrub(self) -> None:
        """Write the tables of people anew without the deleted rows, and drop the old files.

        Waits up to a minute for readers in other sessions that may still see the deleted rows. HNSW
        indexes are dropped before and built again after it, so that the tables are locked for seconds, not
        for the minutes that building takes; searches are exact meanwhile. Out of reach are blocks that the
        file system or an SSD keeps of deleted files, WAL segments until the server reuses them, archived
        WAL, replicas and base backups: what is there is unreadable only if the gallery is encrypted.

        Raises:
            GalleryUnavailable: a session still sees the deleted rows, or a table is in use for too long.
            GalleryError: the role does not own the tables.
        """
        self._await_readers()
        found = self.rows(
            "SELECT c.relname, pg_get_indexdef(c.oid) FROM pg_class c JOIN pg_am a ON a.oid = c.relam "
            "WHERE c.relnamespace = ?::regnamespace AND a.amname = 'hnsw'",
            self._place.schema,
        )
        for index, _ in found:
            self.maintain(f"DROP INDEX {index}")
        try:
            for table in _PERSONAL:
                self._rewrite(table)
            self._checkpoint()
        finally:
            for index, definition in found:
                self.build_index(index, definition)

    def build_index(self, index: str, definition: str) -> None:
        """Build an index by `CREATE INDEX ...`, without keeping others from writing; may take minutes."""
        concurrently = definition.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1)
        self.maintain(concurrently, lock_s=UPKEEP_S)  # it waits for old transactions, nobody waits for it
        self.run(f"ALTER INDEX {index} ALTER COLUMN 1 SET STATISTICS 0")  # as for all vectors: no samples

    def close(self) -> None:
        """Close it. A second call does nothing."""
        self._closed = True
        self._connection.close()

    @contextmanager
    def _live(self) -> Iterator[psycopg.Connection[Any]]:
        connection = self._connected()
        with explained(self.name):
            yield connection

    def _connected(self) -> psycopg.Connection[Any]:
        if self._closed:
            raise GalleryError(f"{self.name} was closed; open it again")
        if not self._connection.closed:
            return self._connection
        if self._inside:
            cure = "nothing of it was kept; do it again"
            raise GalleryUnavailable(f"{self.name}: the connection was lost within a transaction; {cure}")
        start = time.monotonic()
        if start < self._next_attempt:
            wait = self._next_attempt - start
            cure = f"the next attempt to connect is made in {wait:.1f} s"
            raise GalleryUnavailable(f"{self.name}: the server is away; {cure}")
        try:
            self._connection = connect(self._place)
        finally:
            end = time.monotonic()
            self._next_attempt = end + max(_RETRY_S, _RETRY_TIMES * (end - start))
        return self._connection

    @contextmanager
    def _block(self, begin: bytes) -> Iterator[None]:
        with self._live() as connection:
            connection.execute(begin)
        self._inside = True
        try:
            yield
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._inside = False

    def _commit(self) -> None:
        with self._live() as connection:
            done = connection.execute("COMMIT").statusmessage
        if done != "COMMIT":  # the server answers ROLLBACK if a statement failed and nobody minded
            raise GalleryError(
                f"{self.name}: a statement of the transaction failed; nothing was kept, do it again"
            )

    def _roll_back(self) -> None:
        import psycopg

        try:
            status = self._connection.info.transaction_status
            if status in (psycopg.pq.TransactionStatus.INTRANS, psycopg.pq.TransactionStatus.INERROR):
                self._connection.execute("ROLLBACK")
        except psycopg.Error:
            self._connection.close()  # then the server rolls back

    def _await_readers(self) -> None:
        """Wait until no transaction is left from before now: VACUUM keeps what such a one may see."""
        now = self.rows("SELECT pg_current_xact_id()::xid::text")[0][0]
        query = (
            "SELECT count(*) FROM ("
            "SELECT backend_xmin AS xid FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND coalesce(datname, current_database()) = current_database() "
            "UNION ALL SELECT backend_xid FROM pg_stat_activity WHERE datname = current_database() "
            "UNION ALL SELECT xmin FROM pg_replication_slots "
            "UNION ALL SELECT transaction FROM pg_prepared_xacts WHERE database = current_database()) held "
            "WHERE age(xid) >= age(?::text::xid)"
        )
        end = time.monotonic() + _SNAPSHOTS_S
        while self.rows(query, now)[0][0]:
            if time.monotonic() > end:
                raise GalleryUnavailable(f"{self.name}: {_STILL_READ}")
            time.sleep(0.1)

    def _rewrite(self, table: str) -> None:
        for detail in self.maintain(f"VACUUM (FULL, VERBOSE) {table}"):
            kept = re.match(r"\d+", detail)  # "N dead row versions cannot be removed yet."
            if kept and int(kept[0]):
                raise GalleryUnavailable(f"{self.name}: {_STILL_READ}")

    def _checkpoint(self) -> None:
        import psycopg

        try:  # the files of the old tables are empty already; now their names go too
            with self._live() as connection, patience(connection, LOCK_S):
                connection.execute("CHECKPOINT")
        except GalleryError as error:
            if not isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
                raise


def _native(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()
