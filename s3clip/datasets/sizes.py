"""Native sizes of images, read once from the image headers and remembered in one SQLite file.

Training and evaluation need the size of every frame before the first batch (a tracklet is HR or LR by
its frames, method.md A8). Reading the headers of millions of files takes minutes to hours; looking them
up takes seconds.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from PIL import Image
from tqdm import tqdm

from s3clip.datasets.problems import Problems
from s3clip_runtime.errors import ConfigError

Size = tuple[int, int]
"""(height, width)."""

_APPLICATION_ID = 0x53335358  # "S3SX": marks the file as a size cache of s3clip
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE folder (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE image (
    folder INTEGER NOT NULL, name TEXT NOT NULL,
    bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    height INTEGER NOT NULL, width INTEGER NOT NULL,
    PRIMARY KEY (folder, name)
) WITHOUT ROWID
"""
_BUSY_S = 60.0
_FLUSH_ROWS = 10_000
"""New sizes in one transaction: few enough that another process never waits long for the lock."""

_Row = tuple[str, int, int, int, int]
"""name, bytes, mtime_ns, height, width."""


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/s3clip`, else `~/.cache/s3clip`.

    As the XDG specification demands, a relative `$XDG_CACHE_HOME` is ignored.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "s3clip"


def default_cache_path(root: Path) -> Path:
    """Where the sizes of the data set at `root` are kept unless the settings name another file.

    `sizes/HASH.sqlite` below `cache_home`, with a hash of the resolved root.
    """
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_home() / "sizes" / f"{digest}.sqlite"


class SizeCache:
    """Image sizes by path, file size and modification time; a changed file is read anew.

    A context manager: whoever opens it closes it. Several processes may use one file at a time. What was
    read is stored in batches, also when the reading ends with an error.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and create it with its folders where it is missing.

        Raises:
            ConfigError: it cannot be written, is damaged, or is no size cache.
        """
        self._path = path
        self._pending: dict[str, list[_Row]] = {}
        self._pending_rows = 0
        # One tuple for each size: a data set has millions of frames and few thousands of sizes.
        self._interned: dict[Size, Size] = {}
        self._database = _open(path)
        self._bar = tqdm(desc="index images", unit="image", unit_scale=True, delay=3, disable=None)

    def __enter__(self) -> SizeCache:
        """The cache itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Store what is new and release the file.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            self._flush()
        finally:
            self._database.close()
            self._bar.close()

    def sizes(self, folder: Path, files: Sequence[str], problems: Problems) -> dict[str, Size]:
        """Native (height, width) of images in one folder, by name.

        One look-up serves the whole folder, so ask for all of its files at once.

        Args:
            folder: the folder.
            files: names below it.
            problems: takes one problem for each missing or unreadable image; the result lacks that name.

        Raises:
            ConfigError: the cache file cannot be read or written.
        """
        real = os.path.realpath(folder)
        known = self._known(real)
        found: dict[str, Size] = {}
        for name in files:
            path = f"{real}{os.sep}{name}"
            try:
                stat = os.stat(path)
            except OSError as error:
                problems.add(f"{folder / name}: a frame must exist ({error.strerror}); restore or remove it")
                continue
            row = known.get(name)
            if row is not None and row[0] == stat.st_size and row[1] == stat.st_mtime_ns:
                size = (row[2], row[3])
            else:
                try:
                    size = _read_header(path)
                except (OSError, ValueError, Image.DecompressionBombError) as error:
                    problems.add(
                        f"{folder / name}: a frame must be a readable image ({error}); restore or remove it"
                    )
                    continue
                self._remember(real, (name, stat.st_size, stat.st_mtime_ns, *size))
            found[name] = self._interned.setdefault(size, size)
            self._bar.update()
        return found

    def _known(self, folder: str) -> dict[str, tuple[int, int, int, int]]:
        """name -> (bytes, mtime_ns, height, width) of all the images known in a folder."""
        with _explained(self._path):
            rows = self._database.execute(
                "SELECT name, bytes, mtime_ns, height, width FROM image"
                " WHERE folder = (SELECT id FROM folder WHERE path = ?)",
                (folder,),
            ).fetchall()
        return {name: (size, mtime_ns, height, width) for name, size, mtime_ns, height, width in rows}

    def _remember(self, folder: str, row: _Row) -> None:
        self._pending.setdefault(folder, []).append(row)
        self._pending_rows += 1
        if self._pending_rows >= _FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Store the new sizes in one transaction."""
        if not self._pending:
            return
        with _transaction(self._path, self._database) as database:
            for folder, rows in self._pending.items():
                database.execute("INSERT OR IGNORE INTO folder (path) VALUES (?)", (folder,))
                (key,) = database.execute("SELECT id FROM folder WHERE path = ?", (folder,)).fetchone()
                database.executemany(
                    "INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?, ?, ?)", ((key, *row) for row in rows)
                )
        self._pending.clear()
        self._pending_rows = 0


def _read_header(path: str) -> Size:
    """(height, width) of an image; its pixels are not decoded."""
    with Image.open(path) as image:
        return image.height, image.width


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"size cache {path}: its folder cannot be created ({error.strerror}); "
            "set data.size_cache to a file in a folder that can be written"
        ) from error
    with _explained(path):
        # Transactions are opened by hand.
        database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        _create_or_check(path, database)
    except BaseException:
        database.close()
        raise
    return database


def _create_or_check(path: Path, database: sqlite3.Connection) -> None:
    """Make the tables of an empty file; refuse a database that is no size cache of this version."""
    # The lock comes first: of two processes that start together one creates, the other waits and sees.
    with _transaction(path, database):
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if tables == 0:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
        elif (application, version) != (_APPLICATION_ID, _SCHEMA_VERSION):
            raise ConfigError(
                f"size cache {path}: the file is no size cache of this version of s3clip; "
                "delete it or set data.size_cache to another file"
            )
        # Written each time: a read-only file must be refused now and not after an hour of reading.
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


@contextmanager
def _transaction(path: Path, database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    with _explained(path):
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into ConfigErrors with a cure."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # such as use after close: a bug, not a fault of the file
    except sqlite3.Error as error:
        raise ConfigError(f"size cache {path}: {error}; {_cure(error)}") from error


def _cure(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without the extension
    if code == sqlite3.SQLITE_BUSY:
        return f"another process has been writing for {_BUSY_S:g} s; try again when it is done"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return "set data.size_cache to a file in a folder that can be written"
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return "check the disk and its free space, or set data.size_cache to a file on another one"
    return "the file is damaged; delete it"
