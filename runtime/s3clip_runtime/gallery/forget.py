"""Erasing people from a gallery: which rows, how it is shown that they are gone, and the signed receipt."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.book import Book
from s3clip_runtime.gallery.database import Database
from s3clip_runtime.gallery.edits import Edits
from s3clip_runtime.gallery.records import Action

_NEEDLE_BYTES = 16
_NEEDLES = 8
"""Pieces of each erased value that are searched for afterwards: a page may hold a part of it."""

_CHUNK_BYTES = 16 * 2**20

_TIMES = (("prototype", "seen_s"), ("clip", "seen_s"), ("sighting", "told_s"))
"""Tables of what cameras saw, and the column that tells when."""

What = Literal["identity", "time", "camera", "retention"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Who is to be erased: one person, or what cameras saw.

    Attributes:
        identity: name of a person: all that there is of the person. With it nothing else is given.
        camera: what this camera saw; None: every camera.
        since_s, until_s: Unix seconds between which it was seen.
        collected: only what runs collected by themselves, not what somebody enrolled: for limits of storage.
    """

    identity: str | None = None
    camera: str | None = None
    since_s: float = 0.0
    until_s: float = float("inf")
    collected: bool = False

    @property
    def what(self) -> What:
        """The kind of the request."""
        if self.identity is not None:
            return "identity"
        if self.camera is not None:
            return "camera"
        return "retention" if self.collected else "time"


@dataclass(slots=True)
class Erased:
    """What one erasure did to one database.

    Attributes:
        counts: rows by table; `log` are entries whose details were emptied.
        identities: ids of those who are gone.
        needles: pieces of bytes that no file may hold afterwards.
    """

    counts: Counter[str] = field(default_factory=Counter)
    identities: list[str] = field(default_factory=list)
    needles: set[bytes] = field(default_factory=set)


def erase(book: Book, selection: Selection, action: Action = "forget") -> Erased:
    """Delete the rows, within a transaction of the caller's; who has no prototype left goes whole.

    Raises:
        GalleryError: there is no such person.
    """
    if selection.identity is not None:
        return erase_identities(book, [Edits(book).find(selection.identity).id], action)
    erased = Erased()
    touched: set[str] = set()
    for table, time_column in _TIMES:
        where, values = _where(selection, table, time_column)
        rows = book.database.rows(f"SELECT id, identity FROM {table} WHERE {where}", *values)
        touched.update(row[1] for row in rows)
        _delete(book, table, [row[0] for row in rows], erased)
    left = {one.identity for one in book.prototypes()}
    emptied = sorted(touched - left)
    erase_identities(book, emptied, action, erased)
    for id in sorted(touched & left):
        book.log.append(action, id)
    return erased


def foreseen(book: Book, selection: Selection) -> tuple[Counter[str], list[str]]:
    """What `erase` would delete now: rows by table, and the names of those whom they are about.

    Raises:
        GalleryError: there is no such person.
    """
    named = None if selection.identity is None else Edits(book).find(selection.identity)
    counts: Counter[str] = Counter()
    touched: set[str] = set()
    for table, time_column in _TIMES:
        where, values = ("identity = ?", [named.id]) if named else _where(selection, table, time_column)
        rows = book.database.rows(
            f"SELECT identity, count(*) FROM {table} WHERE {where} GROUP BY identity", *values
        )
        touched.update(id for id, _ in rows)
        counts[table] = sum(int(count) for _, count in rows)
    people = [named] if named else [one for one in book.identities() if one.id in touched]
    return counts, [one.name for one in people]


def erase_identities(book: Book, ids: Sequence[str], action: Action, erased: Erased | None = None) -> Erased:
    """Delete all that there is of some people, within a transaction of the caller's."""
    erased = erased or Erased()
    for id in ids:
        for table in ("prototype", "clip", "sighting"):
            rows = book.database.rows(f"SELECT id FROM {table} WHERE identity = ?", id)
            _delete(book, table, [row[0] for row in rows], erased)
        erased.counts["identity"] += book.database.run("DELETE FROM identity WHERE id = ?", id)
        erased.counts["log"] += sum(book.log.scrub(one) for one in book.log.merged_into(id))
        erased.identities.append(id)
        book.log.append(action, id)
    return erased


def expire(book: Book, *, candidates_s: float, unknowns_s: float, keep_s: float | None) -> Erased:
    """Erase unknown people who were not seen for long, and all that runs collected before `keep_s`.

    Args:
        candidates_s, unknowns_s: seconds since the last sighting of either kind.
        keep_s: seconds that anything collected is kept; None: no limit.
    """
    now_s = time.time()
    limits = {"candidate": now_s - candidates_s, "unknown": now_s - unknowns_s}
    old = [
        one.id
        for one in book.identities()
        if one.kind in limits and max(one.added_s, one.seen_s or 0.0) < limits[one.kind]
    ]
    erased = erase_identities(book, old, "expire")
    # One entry a sighting: by then nobody is left whom they are about.
    stale = "DELETE FROM log WHERE action IN ('meet', 'promote') AND time_s < ?"
    book.database.run(stale, min(limits.values()))
    if keep_s is None:
        return erased
    rest = erase(book, Selection(until_s=now_s - keep_s, collected=True), "expire")
    return Erased(erased.counts + rest.counts, erased.identities + rest.identities)


def still_there(database: Database, needles: Iterable[bytes]) -> int:
    """How many of these pieces of bytes the files of a database hold."""
    wanted = set(needles)
    found: set[bytes] = set()
    for path in database.files():
        found |= _found(path, wanted)
    return len(found)


def _where(selection: Selection, table: str, time_column: str) -> tuple[str, list[object]]:
    conditions, values = ["camera IS NOT NULL"], list[object]()
    if selection.camera is not None:
        conditions, values = ["camera = ?"], [selection.camera]
    conditions.append(f"{time_column} >= ?")
    values.append(selection.since_s)
    if selection.until_s != float("inf"):
        conditions.append(f"{time_column} <= ?")
        values.append(selection.until_s)
    if selection.collected and table == "prototype":
        conditions.append("origin <> 'enrolled'")
    if selection.collected and table == "clip":
        conditions.append(
            "id NOT IN (SELECT clip FROM prototype WHERE clip IS NOT NULL AND origin = 'enrolled')"
        )
    return " AND ".join(conditions), values


def _delete(book: Book, table: str, ids: Sequence[int], erased: Erased) -> None:
    values = {"prototype": "vector, sealed", "clip": "pictures"}.get(table)
    for id in ids if values and book.database.files() else ():
        for value in book.database.rows(f"SELECT {values} FROM {table} WHERE id = ?", id)[0]:
            if isinstance(value, bytes) and not _kept_elsewhere(book, table, id, value):
                erased.needles |= _needles(value)
    book.database.run_many(f"DELETE FROM {table} WHERE id = ?", [(id,) for id in ids])
    erased.counts[table] += len(ids)


def _kept_elsewhere(book: Book, table: str, id: int, value: bytes) -> bool:
    """The same picture may have been enrolled for somebody else, who stays."""
    column = "pictures" if table == "clip" else "vector"
    return bool(book.database.rows(f"SELECT id FROM {table} WHERE {column} = ? AND id <> ?", value, id))


def _needles(value: bytes) -> set[bytes]:
    step = max(len(value) // _NEEDLES, _NEEDLE_BYTES)
    pieces = {value[at : at + _NEEDLE_BYTES] for at in range(0, len(value) - _NEEDLE_BYTES + 1, step)}
    return {piece for piece in pieces if len(set(piece)) > _NEEDLE_BYTES // 2}  # zeros stand everywhere


def _found(path: Path, wanted: set[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    try:
        with path.open("rb") as file:
            before = b""
            while data := file.read(_CHUNK_BYTES):
                window = before + data
                found |= {piece for piece in wanted - found if piece in window}
                before = window[-_NEEDLE_BYTES:]
    except FileNotFoundError:
        pass  # a journal that is gone by now
    except OSError as error:
        raise GalleryError(f"{path} cannot be searched ({os.strerror(error.errno or 0)})") from error
    return found
