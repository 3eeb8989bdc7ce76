"""Galleries of the first schema: one table of prototypes with names, float32, one model. In place, once."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterator

import numpy as np

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.storage.database import SCHEMA_VERSION

_OLD_TABLES = ("meta", "prototype")


def is_old(connection: sqlite3.Connection) -> bool:
    """The file is a gallery of schema version 1."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables.issuperset(_OLD_TABLES) or "identity" in tables:
        return False
    version = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
    return version == [("1",)]


def upgrade(connection: sqlite3.Connection, statements: list[str], name: str) -> None:
    """Bring a gallery of version 1 to ours, within a transaction of the caller's.

    Names become known people, vectors float16. What was overwritten is zeros where `secure_delete` is on.

    Args:
        connection: to the file.
        statements: that make our tables.
        name: names it in messages.

    Raises:
        GalleryError: it is damaged.
    """
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    space, dim = meta.get("embedding_space"), meta.get("dim", "")
    if not space or not dim.isdecimal():
        raise GalleryError(f"{name} is damaged: its embedding space or dim is lost; restore it from a backup")
    connection.execute("DROP INDEX IF EXISTS prototype_identity")
    for table in _OLD_TABLES:
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for statement in statements:
        connection.execute(statement)
    now_s = time.time()
    connection.execute("INSERT INTO space (space, dim, added_s) VALUES (?, ?, ?)", (space, int(dim), now_s))
    query = "SELECT identity, min(enrolled_s) FROM old_prototype GROUP BY identity ORDER BY identity"
    people = {person: (secrets.token_hex(8), added_s) for person, added_s in connection.execute(query)}
    connection.executemany(
        "INSERT INTO identity (id, name, kind, note, added_s) VALUES (?, ?, 'known', '', ?)",
        [(id, person, added_s) for person, (id, added_s) in people.items()],
    )
    connection.executemany(
        "INSERT INTO prototype (id, identity, space, origin, platform, source, seen_s, added_s, vector) "
        "VALUES (?, ?, ?, 'enrolled', ?, ?, ?, ?, ?)",
        _prototypes(connection, {person: id for person, (id, _) in people.items()}, space, int(dim), name),
    )
    for table in _OLD_TABLES:
        connection.execute(f"DROP TABLE old_{table}")
    new_meta = {
        "schema_version": str(SCHEMA_VERSION),
        "gallery": secrets.token_hex(8),
        "generation": secrets.token_hex(8),
        "key": "",  # it was never encrypted
    }
    connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", new_meta.items())


def _prototypes(
    connection: sqlite3.Connection, ids: dict[str, str], space: str, dim: int, name: str
) -> Iterator[tuple[object, ...]]:
    query = "SELECT id, identity, platform, source, enrolled_s, vector FROM old_prototype ORDER BY id"
    for id, person, platform, source, enrolled_s, blob in connection.execute(query):
        if not isinstance(blob, bytes) or len(blob) != 4 * dim:
            raise GalleryError(
                f"{name} is damaged: a prototype of {person!r} is not {4 * dim} bytes; "
                "restore it from a backup"
            )
        vector = np.frombuffer(blob, "<f4")
        if not np.isfinite(vector).all() or np.abs(vector).max(initial=0) > 2:
            raise GalleryError(
                f"{name} is damaged: a prototype of {person!r} has numbers that no vector of length 1 has; "
                "restore it from a backup"
            )
        halves = vector.astype("<f2").tobytes()
        yield id, ids[person], space, platform, source, enrolled_s, enrolled_s, halves
