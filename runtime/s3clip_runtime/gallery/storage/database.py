"""What a gallery needs of a database, and its tables: the same statements run on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 2

Halves = NDArray[np.float16]
"""Stored vectors, (n, dim): half the memory of float32; a cosine changes by some 1e-4 at most."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "meta": ("key", "value"),
    "space": ("space", "dim", "added_s", "open_set"),
    "identity": ("id", "name", "kind", "note", "added_s", "seen_s"),
    "clip": ("id", "identity", "platform", "camera", "seen_s", "hr", "pictures"),
    "prototype": (
        "id", "identity", "space", "origin", "platform", "camera", "source", "quality", "seen_s", "added_s",
        "clip", "vector", "sealed",
    ),
    "sighting": (
        "id", "identity", "camera", "platform", "tracklet", "run", "track", "clock", "first_s", "last_s",
        "told_s", "score",
    ),
    "log": ("seq", "time_s", "box", "actor", "action", "identity", "other", "detail", "undone"),
    "backup": ("path", "box", "made_s"),
}  # fmt: skip
"""Tables and their columns; those with a growing number have it first."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """Words of a data definition in which the databases differ.

    Attributes:
        key: of a column of growing numbers that are never given twice.
        text: text that is ordered by code points.
        blob: bytes.
        vector: float16 numbers.
    """

    key: str
    text: str
    blob: str
    vector: str


class Database(Protocol):
    """One open gallery database. Not for several threads at once: `gallery.Gallery` holds a lock.

    Statements are portable SQL with `?` for each value, and hold neither `?` nor `%` elsewhere. Values are
    None, int, float, str, bytes, and what `packed` gives.

    Raises (all methods):
        GalleryUnavailable: it cannot be read or written now: locked, full, read-only, the server is away.
        GalleryError: it is foreign or damaged.
    """

    @property
    def name(self) -> str:
        """Names it in messages, such as `gallery people.sqlite`; never with a password."""

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement and read what it gives: a SELECT, or a change with RETURNING."""

    def run(self, statement: str, *values: object) -> int:
        """Run one statement; how many rows it changed."""

    def run_many(self, statement: str, values: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of values."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing. One at a time among all processes that have this gallery open, so that what is
        read in it stays true until it ends. On the disk when it has ended without an error."""

    def snapshot(self) -> AbstractContextManager[None]:
        """For reading only: all statements in it see one state. Writers may have to wait for it.
        Within a transaction it is a part of that."""

    def packed(self, vector: Halves) -> object:
        """The value for a `vector` column of one float16 vector (dim,)."""

    def unpacked(self, values: Sequence[object], dim: int) -> Halves:
        """Float16 (n, dim) of what `vector` columns gave; GalleryError if one has another length."""

    def renumber(self) -> None:
        """New rows get numbers above all that are there: after rows were written with theirs."""

    def scrub(self) -> None:
        """Overwrite the place of rows that were deleted, and give it back, so that no page holds them."""

    @property
    def scrubbing(self) -> str:
        """What `scrub` does, for receipts."""

    def files(self) -> list[Path]:
        """The files that hold it, where this process can read them."""

    def close(self) -> None:
        """Close it. A second call does nothing."""


_SCHEMA = """
CREATE TABLE meta (key {text} PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE space (
    space {text} PRIMARY KEY,
    dim INTEGER NOT NULL,
    added_s DOUBLE PRECISION NOT NULL,
    open_set TEXT
);

CREATE TABLE identity (
    id {text} PRIMARY KEY,
    name {text} NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    note TEXT NOT NULL,
    added_s DOUBLE PRECISION NOT NULL,
    seen_s DOUBLE PRECISION
);

CREATE TABLE clip (
    id {key},
    identity {text} NOT NULL,
    platform TEXT NOT NULL,
    camera TEXT,
    seen_s DOUBLE PRECISION NOT NULL,
    hr INTEGER NOT NULL,
    pictures {blob} NOT NULL
);
CREATE INDEX clip_identity ON clip (identity);

CREATE TABLE prototype (
    id {key},
    identity {text} NOT NULL,
    space {text} NOT NULL,
    origin TEXT NOT NULL,
    platform TEXT,
    camera TEXT,
    source TEXT NOT NULL,
    quality DOUBLE PRECISION,
    seen_s DOUBLE PRECISION NOT NULL,
    added_s DOUBLE PRECISION NOT NULL,
    clip BIGINT,
    vector {vector},
    sealed {blob}
);
CREATE INDEX prototype_identity ON prototype (identity);
CREATE INDEX prototype_clip ON prototype (clip);

CREATE TABLE sighting (
    id {key},
    identity {text} NOT NULL,
    camera TEXT NOT NULL,
    platform TEXT NOT NULL,
    tracklet TEXT NOT NULL,
    run TEXT NOT NULL,
    track TEXT NOT NULL,
    clock TEXT NOT NULL,
    first_s DOUBLE PRECISION NOT NULL,
    last_s DOUBLE PRECISION NOT NULL,
    told_s DOUBLE PRECISION NOT NULL,
    score DOUBLE PRECISION
);
CREATE INDEX sighting_identity ON sighting (identity, last_s);
CREATE INDEX sighting_last ON sighting (last_s);

CREATE TABLE log (
    seq {key},
    time_s DOUBLE PRECISION NOT NULL,
    box TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    identity {text},
    other {text},
    detail TEXT NOT NULL,
    undone BIGINT
);
CREATE INDEX log_identity ON log (identity);
CREATE INDEX log_other ON log (other);

CREATE TABLE backup (
    path {text} NOT NULL,
    box {text} NOT NULL,
    made_s DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (box, path)
);
"""


def statements(dialect: Dialect) -> list[str]:
    """The statements that make the tables.

    `space`: embedding spaces; `open_set` is the calibration of `decision.OpenSet` as JSON. `identity`: id is
    random and tells nothing, so that the log may go on naming it after the person was forgotten.
    `prototype`: exactly one of `vector` and `sealed` (encrypted) is there; `clip` names the crops it was made
    of, where they were kept. `clip`: pictures as of `clips.pack`, encrypted if vectors are. `sighting`: final
    looks that were recognised. `log`: every decision, with what undoing it needs. `backup`: copies that were
    made of the gallery.
    """
    words = {"key": dialect.key, "text": dialect.text, "blob": dialect.blob, "vector": dialect.vector}
    return [statement for text in _SCHEMA.format(**words).split(";") if (statement := text.strip())]
