"""Copies of a gallery while it is in use. A backup is itself a gallery, in one SQLite file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.book import Book
from s3clip_runtime.gallery.database import COLUMNS, Database
from s3clip_runtime.gallery.forget import erase_identities
from s3clip_runtime.gallery.sqlite import SqliteDatabase

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
    # Noted first: a backup that is not known of could never be cleaned.
    with book.database.transaction():
        note = "INSERT INTO backup (path, box, made_s) VALUES (?, ?, ?)"
        book.database.run("DELETE FROM backup WHERE path = ? AND box = ?", str(path), book.log.author.box)
        book.database.run(note, str(path), book.log.author.box, time.time())
        book.log.append("backup")
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        target = SqliteDatabase(part)
        try:
            with book.database.snapshot(), target.transaction():
                _copy(book.database, target)
        finally:
            target.close()
        os.replace(part, path)
    except OSError as error:
        raise GalleryError(f"backup {path}: cannot be written ({error.strerror}); check the path") from error
    finally:
        part.unlink(missing_ok=True)


def restore(backup: Database, book: Book) -> list[str]:
    """Put a backup in the place of all that a gallery holds, in one step; running programs follow.

    People who were forgotten since the backup stay forgotten.

    Args:
        backup: an open backup of this or of another gallery.
        book: of the gallery that is replaced.

    Returns:
        Ids of people of the backup who stay forgotten.
    """
    with backup.snapshot(), book.database.transaction():
        erasures = (one.identity for one in book.log.entries() if one.action in ("forget", "expire"))
        gone = {id for id in erasures if id is not None} - {one.id for one in book.identities()}
        for table in _COPIED:
            book.database.run(f"DELETE FROM {table}")
        _copy(backup, book.database)
        book.database.renumber()
        book.new_generation()
        book.log.append("restore")
        back = sorted(gone.intersection(one.id for one in book.identities()))
        return _forget_again(book, back, sorted(gone))


def _forget_again(book: Book, back: list[str], gone: list[str]) -> list[str]:
    erase_identities(book, back, "forget")
    for id in set(gone) - set(back):
        book.log.append("forget", id)  # so that the next restore knows too
    return back


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
