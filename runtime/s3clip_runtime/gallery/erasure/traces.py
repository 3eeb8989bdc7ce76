"""Whether erased values are really gone: a search for pieces of them in the bytes of a database's files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.erasure.forget import Chosen
from s3clip_runtime.gallery.storage.book import Book
from s3clip_runtime.gallery.storage.database import Database

_PIECE_BYTES = 16
_HEAD_BYTES = 8
_TABLE = 2**22
_PIECES = 8
"""Pieces of each erased value that are searched for: a page may hold a part of it."""

_CHUNK_BYTES = 16 * 2**20
_ROWS = 1000

_VALUES = {"prototype": ("vector", "sealed"), "clip": ("pictures",)}


def traces(book: Book, chosen: Chosen) -> set[bytes]:
    """Pieces of the vectors and pictures that were chosen, before they are removed; none of a server's."""
    found: set[bytes] = set()
    if not book.database.files():
        return found
    for table, columns in _VALUES.items():
        query = f"SELECT {', '.join(columns)} FROM {table} WHERE id = ?"
        for id in chosen.rows.get(table, ()):
            for value in book.database.rows(query, id)[0]:
                if isinstance(value, bytes):
                    found |= _pieces(value)
    return found


def still_there(database: Database, wanted: set[bytes]) -> int:
    """How many of these pieces the files of a database hold, other than in rows that stay.

    The same picture may have been enrolled for somebody else, who stays.

    Raises:
        GalleryError: a file cannot be searched.
    """
    found: set[bytes] = set()
    for path in database.files():
        found |= _found(path, wanted - found)
    if not found:
        return 0
    search = _Search(found)
    for value in _kept(database):
        found -= search.found(value)
    return len(found)


def _pieces(value: bytes) -> set[bytes]:
    step = max(len(value) // _PIECES, _PIECE_BYTES)
    pieces = {value[at : at + _PIECE_BYTES] for at in range(0, len(value) - _PIECE_BYTES + 1, step)}
    return {
        piece for piece in pieces if _is_telling(piece[:_HEAD_BYTES]) and _is_telling(piece[_HEAD_BYTES:])
    }


def _is_telling(half: bytes) -> bool:
    return len(set(half)) > _HEAD_BYTES // 2  # zeros stand everywhere


def _kept(database: Database) -> Iterator[bytes]:
    for table, columns in _VALUES.items():
        query = f"SELECT id, {', '.join(columns)} FROM {table} WHERE id > ? ORDER BY id LIMIT ?"
        rows = database.rows(query, 0, _ROWS)
        while rows:
            yield from (value for row in rows for value in row[1:] if isinstance(value, bytes))
            rows = database.rows(query, rows[-1][0], _ROWS)


def _found(path: Path, wanted: set[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    search = _Search(wanted)
    try:
        with path.open("rb") as file:
            before = b""
            while data := file.read(_CHUNK_BYTES):
                window = before + data
                found |= search.found(window)
                before = window[-_PIECE_BYTES:]
    except FileNotFoundError:
        pass  # a journal that is gone by now
    except OSError as error:
        raise GalleryError(f"{path} cannot be searched ({os.strerror(error.errno or 0)})") from error
    return found


class _Search:
    """Looks for all pieces at once: a camera's people have 100,000 of them, too many to look for in turn."""

    def __init__(self, wanted: set[bytes]) -> None:
        self._wanted = wanted
        self._heads = np.unique(np.frombuffer(b"".join(piece[:_HEAD_BYTES] for piece in wanted), "<u8"))
        self._may_be = np.zeros(_TABLE, bool)  # by some bits of a head: most words are told apart by these
        self._may_be[_bits(self._heads)] = True

    def found(self, window: bytes) -> set[bytes]:
        """Those of the pieces that stand anywhere in these bytes."""
        found: set[bytes] = set()
        for shift in range(_HEAD_BYTES):
            words = np.frombuffer(window, "<u8", max(len(window) - shift, 0) // _HEAD_BYTES, shift)
            places = np.flatnonzero(self._may_be[_bits(words)])
            places = places[np.isin(words[places], self._heads)]
            for at in (_HEAD_BYTES * places + shift).tolist():
                found.add(window[at : at + _PIECE_BYTES])
        return found & self._wanted


def _bits(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    return ((words >> np.uint64(17)) & np.uint64(_TABLE - 1)).astype(np.int64)
