"""Copies of a gallery while it is in use. A backup is itself a gallery, in one SQLite file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.erasure.forget import forget_again, forgotten
from s3clip_runtime.gallery.storage.book import Book
from s3clip_runtime.gallery.storage.database import COLUMNS, Database
from s3clip_runtime.gallery.storage.folders import sync_folder
from s3clip_runtime.gallery.storage.sqlite import SqliteDatabase

_ROWS = 1000
"""Read at a time: 2.6 MB of vectors."""

_COPIED = tuple(table for table in COLUMNS if table != "backup")


def back_up(book: Book, path: Path) -> None:
    """Write all of a gallery as of one moment to a new file, and note where, for `forget`.

    Raises:
        GalleryError: the file is there, or cannot be written.
    """
    path = path.absolute()
    if path.exists():
        raise GalleryError(f"backup {path}: there is a file already; name a new one")
    _note(book, path)
    try:
        _discard_part(path)
        target = SqliteDatabase(_part(path))
        try:
            # Writers wait for the snapshot, so it ends before the copy is forced to the disk.
            with target.transaction(), book.database.snapshot():
                _copy(book.database, target)
        finally:
            target.close()
        os.replace(_part(path), path)
        sync_folder(path.parent)
    except OSError as error:
        raise GalleryError(f"backup {path}: cannot be written ({error.strerror}); check the path") from error
    finally:
        with contextlib.suppress(OSError):
            _discard_part(path)
        if not path.exists():
            with contextlib.suppress(GalleryUnavailable), book.database.transaction():
                _forget_note(book, path)


def discard_unfinished(path: Path) -> bool:
    """Wait for a backup that is being written; delete what is left of one that was killed.

    Returns:
        Whether something was deleted.

    Raises:
        GalleryUnavailable: it is still being written.
        OSError: it cannot be deleted.
    """
    if not _part(path).exists():
        return False
    try:
        part = SqliteDatabase(_part(path))
        try:
            with part.transaction():
                pass  # who writes a backup holds its transaction all the time
        finally:
            part.close()
    except GalleryUnavailable:
        raise
    except GalleryError:
        pass  # damaged: nobody writes to it
    if path.exists():
        return False
    _discard_part(path)
    return True


def open_backup(book: Book, path: Path) -> SqliteDatabase:
    """Open a backup for `restore`; the caller closes it.

    Raises:
        GalleryError: it is no gallery, is empty or the gallery itself, or has another key than the gallery.
    """
    if not path.is_file() or not path.stat().st_size:
        raise GalleryError(f"backup {path}: there is no such file, or it is empty; give the path of a backup")
    if any(path.samefile(one) for one in book.database.files()):
        raise GalleryError(f"backup {path}: it is the gallery itself; give the path of a backup")
    backup = SqliteDatabase(path)
    try:
        copy = book.of(backup)
        if copy.value("schema_version") is None:
            raise GalleryError(f"backup {path}: nothing was ever written to it; give the path of a backup")
        copy.begin()
    except BaseException:
        backup.close()
        raise
    return backup


def restore(backup: Database, book: Book) -> list[str]:
    """Put a backup in the place of all that a gallery holds, in one step; running programs follow.

    What was forgotten since the backup stays forgotten.

    Args:
        backup: an open backup of this or of another gallery, see `open_backup`.
        book: of the gallery that is replaced.

    Returns:
        Ids of people of the backup who stay forgotten.
    """
    with backup.snapshot(), book.database.transaction():
        earlier = forgotten(book)
        for table in _COPIED:
            book.database.run(f"DELETE FROM {table}")
        _copy(backup, book.database)
        book.database.renumber()
        book.new_generation()
        book.log.append("restore")
        back = forget_again(book, earlier)
    if back:
        book.database.scrub()
    return back


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _discard_part(path: Path) -> None:
    part = _part(path)
    for one in (part, part.with_name(f"{part.name}-journal")):
        one.unlink(missing_ok=True)


def _note(book: Book, path: Path) -> None:
    """Before it is made: a backup that is not known of could never be cleaned."""
    with book.database.transaction():
        query = "SELECT made_s FROM backup WHERE path = ? AND box = ?"
        for (made_s,) in book.database.rows(query, str(path), book.log.author.box):
            # The file that was there was moved or deleted, and receipts go on telling so.
            moved = f"{path} as of {datetime.fromtimestamp(made_s, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
            book.database.run("UPDATE backup SET path = ? WHERE path = ? AND box = ?", moved, str(path),
                              book.log.author.box)  # fmt: skip
        note = "INSERT INTO backup (path, box, made_s) VALUES (?, ?, ?)"
        book.database.run(note, str(path), book.log.author.box, time.time())
        book.log.append("backup")


def _forget_note(book: Book, path: Path) -> None:
    book.database.run("DELETE FROM backup WHERE path = ? AND box = ?", str(path), book.log.author.box)


def _copy(source: Database, target: Database) -> None:
    dims = dict(source.rows("SELECT space, dim FROM space"))
    for table in _COPIED:
        columns = COLUMNS[table]
        insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        for rows in _chunks(source, table):
            target.run_many(insert, rows if table != "prototype" else _repacked(source, target, rows, dims))


def _repacked(
    source: Database, target: Database, rows: list[tuple[object, ...]], dims: dict[str, int]
) -> Iterator[tuple[object, ...]]:
    """Vectors in the target's form."""
    for row in rows:
        named = dict(zip(COLUMNS["prototype"], row, strict=True))
        if named["vector"] is not None:
            halves = source.unpacked([named["vector"]], dims[str(named["space"])])
            named["vector"] = target.packed(halves[0])
        yield tuple(named.values())


def _chunks(source: Database, table: str) -> Iterator[list[tuple[object, ...]]]:
    columns, key = ", ".join(COLUMNS[table]), COLUMNS[table][0]
    query = f"SELECT {columns} FROM {table} ORDER BY {key} LIMIT ?"
    rows = source.rows(query, _ROWS)
    while rows:
        yield rows
        query = f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?"
        rows = source.rows(query, rows[-1][0], _ROWS)
