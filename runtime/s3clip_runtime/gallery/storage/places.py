"""Where a gallery lies: a path is a SQLite file, postgresql:// a server."""

from __future__ import annotations

from pathlib import Path

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.storage.database import Database
from s3clip_runtime.gallery.storage.sqlite import SqliteDatabase

_SERVER = ("postgresql://", "postgres://")


def is_server(address: str | Path) -> bool:
    """The address is a PostgreSQL server's."""
    return str(address).startswith(_SERVER)


def open_database(address: str | Path | None) -> Database:
    """Open the database of a gallery, or make it with empty tables.

    Args:
        address: path, postgresql:// address, or None for one in memory.
    """
    if address is None:
        return SqliteDatabase(None)
    if is_server(address):
        from s3clip_runtime.gallery.storage.postgres import PostgresDatabase  # needs the extra `postgres`

        return PostgresDatabase.open(str(address))
    return SqliteDatabase(Path(address))


def must_exist(address: str | Path) -> None:
    """Refuse a file that is not there: opening would make it, and everybody be unknown.

    Raises:
        GalleryError: there is no such file.
    """
    if not is_server(address) and not Path(address).is_file():
        raise GalleryError(
            f"gallery {address}: there is no such file; make one with s3clip-gallery create or enrol"
        )
