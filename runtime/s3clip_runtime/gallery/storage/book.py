"""Everything a gallery keeps, as typed rows: the one place that knows the columns of the tables."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import (
    GalleryInfo,
    Identity,
    IdentitySummary,
    Kind,
    Origin,
    Prototype,
    Sighting,
    Space,
)
from s3clip_runtime.gallery.storage.database import COLUMNS, SCHEMA_VERSION, Database, Halves
from s3clip_runtime.gallery.storage.log import Author, Log
from s3clip_runtime.gallery.storage.vault import Vault

_IDENTITY = ", ".join(COLUMNS["identity"])
_PROTOTYPE = ", ".join(COLUMNS["prototype"][:-2])  # without its numbers
_SIGHTING = ", ".join(COLUMNS["sighting"][1:])
_READ_PEOPLE = 256
_VECTOR = b"vector"
_PICTURES = b"pictures"
"""What encrypted bytes are bound to: a vector cannot be passed off as pictures."""


@dataclass(frozen=True, slots=True)
class Views:
    """New prototypes of one identity from one place.

    Attributes:
        vectors: float16 (n, dim), n >= 1.
        seen_s: Unix seconds when the crops were taken.
        pictures: the crops of the one vector, as `clips.pack` gives them, and whether they are HR; None: not
            kept.
        clip: id of crops that are kept already.
    """

    space: str
    vectors: Halves
    origin: Origin
    platform: str | None
    camera: str | None
    source: str
    quality: float | None
    seen_s: float
    pictures: tuple[bytes, bool] | None = None
    clip: int | None = None


class Book:
    """Rows of an open database. Raises what `database.Database` does.

    Args:
        database: stays the caller's.
        author: of what is written to the log.
        vault: seals vectors and crops; None writes them as they are.
    """

    def __init__(self, database: Database, author: Author, vault: Vault | None = None) -> None:
        self.database = database
        self.log = Log(database, author)
        self._vault = vault

    def of(self, database: Database) -> Book:
        """A book by the same author and with the same key on another database, such as a backup."""
        return Book(database, self.log.author, self._vault)

    def begin(self) -> None:
        """Fill the tables of a new gallery, and check that an old one is of our version and our key.

        Raises:
            GalleryError: another version, or another key file.
        """
        if self.value("schema_version") is None:
            with self.database.transaction():
                if self.value("schema_version") is None:
                    self._begin_new()
        version, name = self.value("schema_version"), self.database.name
        if version != str(SCHEMA_VERSION):
            later = str(version).isdecimal() and int(str(version)) > SCHEMA_VERSION
            cure = "use a newer s3clip" if later else "restore it from a backup"
            raise GalleryError(f"{name}: schema_version must be {SCHEMA_VERSION}, found {version}; {cure}")
        ours = "" if self._vault is None else self._vault.fingerprint
        if self.value("key") != ours:
            cure = (
                "give the key file that it was made with" if self.value("key") else "leave the key file out"
            )
            raise GalleryError(f"{name}: the key file does not fit: {cure}")

    def value(self, key: str) -> str | None:
        """What the gallery says of itself."""
        rows = self.database.rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def set_value(self, key: str, value: str) -> None:
        """Change what it says of itself."""
        self.database.run("DELETE FROM meta WHERE key = ?", key)
        self.database.run("INSERT INTO meta (key, value) VALUES (?, ?)", key, value)

    def info(self) -> GalleryInfo:
        """What it says of itself."""
        counts = dict(self.database.rows("SELECT space, count(*) FROM prototype GROUP BY space"))
        kinds = dict(self.database.rows("SELECT kind, count(*) FROM identity GROUP BY kind"))
        return GalleryInfo(
            gallery=self.value("gallery") or "",
            spaces=tuple((space, int(counts.get(space.hash, 0))) for space in self.spaces()),
            encrypted=bool(self.value("key")),
            people={kind: int(count) for kind, count in kinds.items()},
        )

    def state(self) -> tuple[str, int]:
        """What changes with everything that is kept: the generation, and the newest number of the log."""
        query = "SELECT value, (SELECT coalesce(max(seq), 0) FROM log) FROM meta WHERE key = 'generation'"
        generation, newest = self.database.rows(query)[0]
        return str(generation), int(newest)

    def new_generation(self) -> None:
        """Everything may be another thing now: whoever remembers the gallery reads it anew."""
        self.set_value("generation", secrets.token_hex(8))

    # Embedding spaces

    def spaces(self) -> list[Space]:
        """All of them, the oldest first."""
        rows = self.database.rows("SELECT space, dim FROM space ORDER BY added_s, space")
        return [Space(hash, dim) for hash, dim in rows]

    def add_space(self, space: Space) -> None:
        """Make room for another model's embeddings."""
        self.database.run(
            "INSERT INTO space (space, dim, added_s) VALUES (?, ?, ?)", space.hash, space.dim, time.time()
        )

    def remove_space(self, space: str) -> int:
        """Erase a space with its prototypes; how many there were."""
        erased = self.database.run("DELETE FROM prototype WHERE space = ?", space)
        self.database.run("DELETE FROM space WHERE space = ?", space)
        return erased

    def open_set(self, space: str) -> str | None:
        """The calibration of a space, as JSON."""
        rows = self.database.rows("SELECT open_set FROM space WHERE space = ?", space)
        return rows[0][0] if rows else None

    def set_open_set(self, space: str, text: str) -> None:
        """Store the calibration of a space."""
        self.database.run("UPDATE space SET open_set = ? WHERE space = ?", text, space)

    # Identities

    def identities(self) -> list[Identity]:
        """All, by name."""
        return [
            Identity(*row) for row in self.database.rows(f"SELECT {_IDENTITY} FROM identity ORDER BY name")
        ]

    def identity(self, id: str) -> Identity | None:
        """The one with this id."""
        return _first(self.database.rows(f"SELECT {_IDENTITY} FROM identity WHERE id = ?", id))

    def named(self, name: str) -> Identity | None:
        """The one with this name."""
        return _first(self.database.rows(f"SELECT {_IDENTITY} FROM identity WHERE name = ?", name))

    def summaries(self) -> list[IdentitySummary]:
        """All, by name, with what there is of each."""
        prototypes = defaultdict[str, list[Prototype]](list)
        for one in self.prototypes():
            prototypes[one.identity].append(one)
        counts = dict(self.database.rows("SELECT identity, count(*) FROM sighting GROUP BY identity"))
        return [
            IdentitySummary.of(identity, prototypes[identity.id], int(counts.get(identity.id, 0)))
            for identity in self.identities()
        ]

    def add_identity(self, name: str, kind: Kind) -> Identity:
        """A new one, with an id of its own."""
        made = Identity(secrets.token_hex(8), name, kind, "", time.time(), None)
        self.put_identity(made)
        return made

    def put_identity(self, identity: Identity) -> None:
        """Write one, new or changed."""
        columns = COLUMNS["identity"]
        changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
        self.database.run(
            f"INSERT INTO identity ({_IDENTITY}) VALUES ({', '.join('?' * len(columns))}) "
            f"ON CONFLICT (id) DO UPDATE SET {changes}",
            *astuple(identity),
        )

    def remove_identity(self, id: str) -> None:
        """Erase the row; not its prototypes, clips and sightings."""
        self.database.run("DELETE FROM identity WHERE id = ?", id)

    # Prototypes

    def add_prototypes(self, identity: str, views: Views) -> list[int]:
        """Add them to an identity; their ids."""
        clip = views.clip
        if views.pictures is not None and views.platform is not None:
            clip = self._add_clip(identity, views, *views.pictures)
        return [self._add_prototype(identity, views, vector, clip) for vector in views.vectors]

    def prototypes(self, identity: str | None = None) -> list[Prototype]:
        """Of one identity or of all, in order of their ids."""
        where, values = ("", ()) if identity is None else ("WHERE identity = ? ", (identity,))
        rows = self.database.rows(f"SELECT {_PROTOTYPE} FROM prototype {where}ORDER BY id", *values)
        return [Prototype(*row) for row in rows]

    def vectors(self, identity: str, space: Space) -> tuple[list[Prototype], Halves]:
        """Prototypes of an identity in a space, float16 (n, dim) in the same order."""
        rows = self.database.rows(
            f"SELECT {_PROTOTYPE}, vector, sealed FROM prototype "
            "WHERE identity = ? AND space = ? ORDER BY id",
            identity,
            space.hash,
        )
        return [Prototype(*row[:-2]) for row in rows], self._unsealed(rows, space.dim)

    def all_vectors(self, space: Space) -> Iterator[tuple[str, list[str | None], Halves]]:
        """Every identity that has any: id, the platform of each prototype, float16 (n, dim).

        Some hundred people are read at a time: all at once would need the memory of all vectors twice.
        """
        listed = "SELECT DISTINCT identity FROM prototype WHERE space = ? ORDER BY identity"
        ids = [str(row[0]) for row in self.database.rows(listed, space.hash)]
        query = (
            "SELECT identity, platform, vector, sealed FROM prototype "
            "WHERE space = ? AND identity >= ? AND identity <= ? ORDER BY identity, id"
        )
        for low in range(0, len(ids), _READ_PEOPLE):
            some = ids[low : low + _READ_PEOPLE]
            rows = self.database.rows(query, space.hash, some[0], some[-1])
            for id, group in groupby(rows, key=lambda row: str(row[0])):
                own = list(group)
                yield id, [row[1] for row in own], self._unsealed(own, space.dim)

    def move_prototypes(self, ids: Iterable[int], to: str) -> None:
        """Give prototypes, and the crops they were made of, to another identity."""
        moved = [(to, id) for id in ids]
        self.database.run_many("UPDATE prototype SET identity = ? WHERE id = ?", moved)
        self.database.run_many(
            "UPDATE clip SET identity = ? WHERE id = (SELECT clip FROM prototype WHERE id = ?)", moved
        )

    def adopt(self, identity: str) -> list[int]:
        """What the run collected of an unknown person counts as enrolled from now on; its prototypes' ids."""
        rows = self.database.rows(
            "UPDATE prototype SET origin = 'enrolled' WHERE identity = ? AND origin = 'unknown' RETURNING id",
            identity,
        )
        return sorted(row[0] for row in rows)

    def disown(self, ids: Sequence[int]) -> None:
        """The reverse of `adopt`."""
        self.database.run_many("UPDATE prototype SET origin = 'unknown' WHERE id = ?", [(id,) for id in ids])

    def remove_prototypes(self, ids: Iterable[int]) -> None:
        """Erase prototypes, and crops that no other one was made of."""
        erased = [(id,) for id in ids]
        clips = [
            row
            for one in erased
            for row in self.database.rows("SELECT clip FROM prototype WHERE id = ?", *one)
        ]
        self.database.run_many("DELETE FROM prototype WHERE id = ?", erased)
        lonely = "DELETE FROM clip WHERE id = ? AND NOT EXISTS (SELECT 1 FROM prototype WHERE clip = clip.id)"
        self.database.run_many(lonely, [row for row in clips if row[0] is not None])

    # Crops

    def clip(self, id: int) -> tuple[bytes, bool, str]:
        """The packed crops of a clip, whether it is HR, and its platform."""
        pictures, hr, platform = self.database.rows(
            "SELECT pictures, hr, platform FROM clip WHERE id = ?", id
        )[0]
        plain = pictures if self._vault is None else self._vault.unseal(pictures, context=_PICTURES)
        return plain, bool(hr), platform

    # Sightings

    def add_sighting(self, sighting: Sighting) -> None:
        """Note one, and when its identity was seen last."""
        marks = ", ".join("?" * 11)
        self.database.run(f"INSERT INTO sighting ({_SIGHTING}) VALUES ({marks})", *astuple(sighting))
        self.database.run(
            "UPDATE identity SET seen_s = ? WHERE id = ? AND coalesce(seen_s, 0) < ?",
            sighting.told_s, sighting.identity, sighting.told_s,
        )  # fmt: skip

    def sightings(self, identity: str, *, since_s: float = 0.0) -> list[Sighting]:
        """Of one identity, told at or after `since_s`, in the order in which they were told."""
        rows = self.database.rows(
            f"SELECT {_SIGHTING} FROM sighting WHERE identity = ? AND told_s >= ? ORDER BY id",
            identity, since_s,
        )  # fmt: skip
        return [Sighting(*row) for row in rows]

    def tracks(self, identity: str) -> int:
        """How many tracks its sightings are of."""
        query = "SELECT count(*) FROM (SELECT DISTINCT run, track FROM sighting WHERE identity = ?) AS tracks"
        return int(self.database.rows(query, identity)[0][0])

    def move_sightings(self, identity: str, to: str) -> list[int]:
        """Give all sightings of an identity to another one; their ids."""
        rows = self.database.rows(
            "UPDATE sighting SET identity = ? WHERE identity = ? RETURNING id", to, identity
        )
        return sorted(row[0] for row in rows)

    def move_sightings_back(self, ids: Sequence[int], to: str) -> None:
        """Give these sightings to an identity, as far as they are still there."""
        self.database.run_many("UPDATE sighting SET identity = ? WHERE id = ?", [(to, id) for id in ids])

    def remove_sightings(self, identity: str) -> int:
        """Erase all of an identity; how many."""
        return self.database.run("DELETE FROM sighting WHERE identity = ?", identity)

    def _begin_new(self) -> None:
        self.set_value("schema_version", str(SCHEMA_VERSION))
        self.set_value("gallery", secrets.token_hex(8))
        self.new_generation()
        self.set_value("key", "" if self._vault is None else self._vault.fingerprint)

    def _add_clip(self, identity: str, views: Views, pictures: bytes, hr: bool) -> int:
        kept = pictures if self._vault is None else self._vault.seal(pictures, context=_PICTURES)
        rows = self.database.rows(
            "INSERT INTO clip (identity, platform, camera, seen_s, hr, pictures) "
            "VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            identity, views.platform, views.camera, views.seen_s, int(hr), kept,
        )  # fmt: skip
        return int(rows[0][0])

    def _add_prototype(self, identity: str, views: Views, vector: Halves, clip: int | None) -> int:
        plain, sealed = self.database.packed(vector), None
        if self._vault is not None:
            plain, sealed = None, self._vault.seal(vector.astype("<f2").tobytes(), context=_VECTOR)
        columns = COLUMNS["prototype"][1:]
        marks = ", ".join("?" * len(columns))
        rows = self.database.rows(
            f"INSERT INTO prototype ({', '.join(columns)}) VALUES ({marks}) RETURNING id",
            identity, views.space, views.origin, views.platform, views.camera, views.source, views.quality,
            views.seen_s, time.time(), clip, plain, sealed,
        )  # fmt: skip
        return int(rows[0][0])

    def _unsealed(self, rows: Sequence[tuple[Any, ...]], dim: int) -> Halves:
        """Of rows whose last two columns are `vector` and `sealed`."""
        if self._vault is None:
            return self.database.unpacked([row[-2] for row in rows], dim)
        plain = [self._vault.unseal(bytes(row[-1]), context=_VECTOR) for row in rows]
        return np.frombuffer(b"".join(plain), "<f2").reshape(-1, dim).astype(np.float16)


def _first(rows: Sequence[tuple[Any, ...]]) -> Identity | None:
    return Identity(*rows[0]) if rows else None
