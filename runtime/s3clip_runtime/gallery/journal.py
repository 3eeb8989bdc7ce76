"""The gallery's file: one SQLite database, written so that it survives crashes and really forgets.

Journal mode is SQLite's default (a rollback journal, deleted at commit), not WAL: a WAL file keeps the
bytes of erased rows until a checkpoint, and a gallery shall be one file that can be copied. Erased rows are
overwritten with zeros (`secure_delete`). Blocks that the file system or an SSD keeps of deleted files, and
backups, are out of reach.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x53334347  # "S3CG": tells our files from other SQLite files
_BUSY_S = 10.0
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prototype (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,
    platform TEXT,
    source TEXT NOT NULL,
    enrolled_s REAL NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX prototype_identity ON prototype (identity);
"""

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class IdentitySummary:
    """One identity of the gallery. `enrolled_s` is the Unix time of the last enrolment in seconds."""

    identity: str
    prototypes: int
    platforms: tuple[str, ...]
    sources: tuple[str, ...]
    enrolled_s: float


@dataclass(frozen=True, slots=True)
class GalleryInfo:
    """What a gallery file says of itself."""

    embedding_space: str
    dim: int
    identities: int
    prototypes: int


class Journal:
    """The open database. Every write is committed and on the disk when its method returns.

    Raises (constructor and all methods):
        GalleryError: the file is foreign, damaged, of another embedding space, locked or not writable.
    """

    def __init__(self, path: Path | None, *, embedding_space: str, dim: int) -> None:
        if path is not None and path.exists() and path.stat().st_size > 0:
            _check_header(path)
        self._name = _name(path)
        self._dim = dim
        self._database = _connect(path)
        try:
            with _explained(self._name):
                _create_if_empty(self._database, embedding_space, dim)
            self._verify(embedding_space)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database. A second call does nothing."""
        self._database.close()

    def version(self) -> int:
        """A number that changes whenever another connection has changed the file."""
        with _explained(self._name):
            return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def load(self) -> Iterator[tuple[str, Vectors]]:
        """Every identity with its prototypes, float32 (n, dim) in order of enrolment."""
        with _explained(self._name):
            rows = self._database.execute("SELECT identity, vector FROM prototype ORDER BY identity, id")
            for identity, group in groupby(rows, key=lambda row: str(row[0])):
                yield identity, self._vectors(identity, [blob for _, blob in group])

    def enrol(
        self,
        identity: str,
        new: Vectors,
        *,
        platform: str | None,
        source: str,
        time_s: float,
        keep: Callable[[Vectors], list[int]],
    ) -> Vectors:
        """Add prototypes. Of the old and new ones together only the rows that `keep` names stay.

        Returns:
            The prototypes that the identity has now, float32 (n, dim).
        """
        with self._transaction():
            query = "SELECT id, vector FROM prototype WHERE identity = ? ORDER BY id"
            old = self._database.execute(query, (identity,)).fetchall()
            both = np.concatenate([self._vectors(identity, [blob for _, blob in old]), new])
            kept = sorted(keep(both))
            gone = set(range(len(old))) - set(kept)
            self._database.executemany("DELETE FROM prototype WHERE id = ?", [(old[i][0],) for i in gone])
            self._database.executemany(
                "INSERT INTO prototype (identity, platform, source, enrolled_s, vector) "
                "VALUES (?, ?, ?, ?, ?)",
                [(identity, platform, source, time_s, _blob(both[i])) for i in kept if i >= len(old)],
            )
        return both[kept]

    def forget(self, identity: str) -> int:
        """Erase all rows of an identity and overwrite them with zeros; returns how many there were."""
        with self._transaction():
            return self._database.execute("DELETE FROM prototype WHERE identity = ?", (identity,)).rowcount

    def compact(self) -> None:
        """Give the space of erased rows back to the file system."""
        with _explained(f"{self._name}: the rows are erased, but compacting the file failed"):
            self._database.execute("VACUUM")

    def summaries(self) -> list[IdentitySummary]:
        """One line for each identity, by name."""
        with _explained(self._name):
            rows = self._database.execute(
                "SELECT identity, platform, source, enrolled_s FROM prototype ORDER BY identity, id"
            ).fetchall()
        return [
            _summary(identity, list(group)) for identity, group in groupby(rows, key=lambda row: str(row[0]))
        ]

    def _verify(self, embedding_space: str) -> None:
        with _explained(self._name):
            faults = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if faults != "ok":
                raise GalleryError(f"{self._name} is damaged ({faults}); restore it from a backup")
            found_space, found_dim = _read_meta(self._database, self._name)
        if (found_space, found_dim) != (embedding_space, self._dim):
            raise GalleryError(
                f"{self._name} holds embeddings of space {found_space} with {found_dim} numbers, the bundle "
                f"gives space {embedding_space} with {self._dim}; use the bundle it was made with, or enrol "
                "everyone again into a new gallery"
            )

    def _vectors(self, identity: str, blobs: list[bytes]) -> Vectors:
        for blob in blobs:
            if not isinstance(blob, bytes) or len(blob) != 4 * self._dim:
                raise GalleryError(
                    f"{self._name} is damaged: a prototype of {identity!r} is not {4 * self._dim} bytes; "
                    "restore it from a backup"
                )
        return np.frombuffer(b"".join(blobs), "<f4").reshape(-1, self._dim).astype(np.float32)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _explained(self._name):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def describe(path: Path) -> GalleryInfo:
    """Read what a gallery file says of itself, without knowing its embedding space.

    Raises:
        GalleryError: there is no such file, or it is foreign or damaged.
    """
    if not path.is_file():
        raise GalleryError(f"gallery {path}: there is no such file; make one with s3clip-gallery enrol")
    _check_header(path)
    database = _connect(path)
    try:
        with _explained(_name(path)):
            space, dim = _read_meta(database, _name(path))
            count = "SELECT count(DISTINCT identity), count(*) FROM prototype"
            identities, prototypes = database.execute(count).fetchone()
    finally:
        database.close()
    return GalleryInfo(space, dim, identities, prototypes)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn errors of SQLite into GalleryErrors with a cure."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # such as use after close: a bug, not a fault of the file
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_BUSY:
            cure = f"another process has been writing for {_BUSY_S:g} s; try again when it is done"
        elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            cure = "the file is damaged; restore it from a backup"
        else:
            cure = "check the path, its permissions and the free space"
        raise GalleryError(f"{name}: {error}; {cure}") from error


def _name(path: Path | None) -> str:
    return f"gallery {path}" if path else "the gallery in memory"


def _connect(path: Path | None) -> sqlite3.Connection:
    with _explained(_name(path)):
        # Transactions are opened by hand; the gallery above holds the lock that makes threads safe.
        database = sqlite3.connect(
            str(path) if path else ":memory:", timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        database.execute("PRAGMA secure_delete = ON")
        database.execute("PRAGMA synchronous = EXTRA")  # a commit outlives a power cut in this journal mode
        return database


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


def _create_if_empty(database: sqlite3.Connection, embedding_space: str, dim: int) -> None:
    if _has_tables(database):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        if not _has_tables(database):  # another process may have been faster
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            meta = {"schema_version": SCHEMA_VERSION, "embedding_space": embedding_space, "dim": dim}
            database.executemany("INSERT INTO meta VALUES (?, ?)", [(k, str(v)) for k, v in meta.items()])
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _has_tables(database: sqlite3.Connection) -> bool:
    return bool(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _read_meta(database: sqlite3.Connection, name: str) -> tuple[str, int]:
    meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
    if meta.get("schema_version") != str(SCHEMA_VERSION):
        raise GalleryError(
            f"{name}: schema_version must be {SCHEMA_VERSION}, found {meta.get('schema_version')}; "
            "use the version of s3clip that made it"
        )
    if not meta.get("embedding_space") or not meta.get("dim", "").isdecimal():
        raise GalleryError(f"{name} is damaged: its embedding space or dim is lost; restore it from a backup")
    return meta["embedding_space"], int(meta["dim"])


def _blob(vector: Vectors) -> bytes:
    return vector.astype("<f4").tobytes()


def _summary(identity: str, rows: list[tuple[str, str | None, str, float]]) -> IdentitySummary:
    platforms = tuple(sorted({row[1] for row in rows if row[1] is not None}))
    sources = tuple(sorted({row[2] for row in rows}))
    return IdentitySummary(identity, len(rows), platforms, sources, max(row[3] for row in rows))
