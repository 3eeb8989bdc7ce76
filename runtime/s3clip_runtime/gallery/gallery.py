"""The gallery: identities with their prototypes, in a database for keeps, in memory for search.

The database is the truth. Memory follows its log, so a person who is forgotten by a command is at once
unknown to a running pipeline too, and boxes that share a database see each other's decisions.
"""

from __future__ import annotations

import builtins
import getpass
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.backup import back_up, open_backup, restore
from s3clip_runtime.gallery.edits import Edits
from s3clip_runtime.gallery.erasure import request
from s3clip_runtime.gallery.erasure.forget import Selection, expire
from s3clip_runtime.gallery.erasure.receipts import Receipt
from s3clip_runtime.gallery.models import Carried, Embed, add_model, retire_model
from s3clip_runtime.gallery.open_set.decision import Decision, OpenSet, decide
from s3clip_runtime.gallery.records import (
    GalleryInfo,
    Identity,
    IdentitySummary,
    LogEntry,
    Match,
    Prototype,
    Space,
)
from s3clip_runtime.gallery.search.memory import Memory, unit_fault
from s3clip_runtime.gallery.search.server import server_search
from s3clip_runtime.gallery.storage.book import Book, Views
from s3clip_runtime.gallery.storage.database import Database
from s3clip_runtime.gallery.storage.log import Author
from s3clip_runtime.gallery.storage.places import open_database
from s3clip_runtime.gallery.storage.vault import Vault
from s3clip_runtime.inference.spec import platform_id

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decisions:
    """What may be used while no other box can change the gallery; see `Gallery.deciding`.

    Attributes:
        memory: as of the last decision of any box.
        book: to write to.
    """

    memory: Memory
    book: Book


class Gallery:
    """One open gallery. It may be shared by threads. Use it as a context manager or close it.

    Raises (all methods):
        GalleryUnavailable: its database cannot be read or written now.
        GalleryError: it is damaged, or what was asked does not do; the message says what.
    """

    def __init__(self, book: Book, space: Space | None) -> None:
        """Take over the book's open database; `open` is the way in."""
        self._book = book
        self._space = space
        self._lock = threading.RLock()
        server = None if space is None else server_search(book.database, space)
        self._memory = None if space is None else Memory(book, space, server)

    @staticmethod
    def open(
        address: str | Path | None,
        space: Space | None,
        *,
        key_file: Path | None = None,
        actor: str | None = None,
    ) -> Gallery:
        """Open a gallery, or make it if there is none.

        Args:
            address: path of the SQLite file, whose folder must exist, or a postgresql:// address; None keeps
                everything in memory only.
            space: of the bundle whose embeddings are searched and enrolled; None: no vector comes in.
            key_file: of a gallery whose vectors and crops are encrypted, see `vault`.
            actor: who writes, for the log; the user by default.

        Raises:
            GalleryError: it is foreign, damaged, has another key, or holds no embeddings of that space.
        """
        database = open_database(address)
        try:
            author = Author(socket.gethostname(), actor or _user())
            book = Book(database, author, None if key_file is None else Vault.open(key_file))
            book.begin()
            if space is not None:
                _check_space(book, space)
            return Gallery(book, space)
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. A second call does nothing."""
        with self._lock:
            self._book.database.close()

    @property
    def public_key(self) -> str:
        """64 hex digits that check this gallery's receipts."""
        with self._lock:
            return request.public_key(self._book)

    @property
    def database(self) -> Database:
        """What holds it."""
        return self._book.database

    @contextmanager
    def deciding(self) -> Iterator[Decisions]:
        """Decide and write as one: what other boxes decided is known, and they wait for this one."""
        with self._lock:
            memory = self._followed()
            with self._book.database.transaction():
                memory.refresh()
                yield Decisions(memory, self._book)
            self._follow()

    def enrol(
        self,
        name: str,
        embeddings: Vectors,
        *,
        platform: str | None,
        source: str,
        camera: str | None = None,
        quality: float | None = None,
        seen_s: float | None = None,
        pictures: tuple[bytes, bool] | None = None,
    ) -> None:
        """Add prototypes to a person, who is made if new. On the disk when this returns.

        Above `edits.MAX_PROTOTYPES`, and `edits.MAX_OF_CAMERA` of one camera, those that cover the person's
        looks best stay, not the newest. The price: a wrong crop that was enrolled stays too, because it looks
        like nothing else.

        Args:
            name: printable, without surrounding blanks.
            embeddings: float32 (n, dim), n >= 1, rows of length 1.
            platform: one of `spec.PLATFORMS`, or None if unknown.
            source: where they come from (camera, file), for people to read.
            camera: that saw the person; None for pictures from elsewhere.
            quality: of the crops, in [0, 1].
            seen_s: Unix seconds when the crops were taken; now by default.
            pictures: packed crops (`clips.pack`) of the one embedding, and whether they are HR, to keep.

        Raises:
            ConfigError: the platform is unknown.
        """
        if platform is not None:
            platform_id(platform)
        halves = self.checked(embeddings).astype(np.float16)
        if not len(halves):
            raise GalleryError(f"identity {name!r}: no embeddings to enrol; give at least one")
        now_s = time.time()
        space = self._known_space()
        views = Views(
            space.hash, halves, "enrolled", platform, camera, source, quality,
            now_s if seen_s is None else seen_s, pictures,
        )  # fmt: skip
        with self._changing() as edits:
            edits.enrol(name, [views])

    def search(self, embeddings: Vectors, k: int = 5) -> builtins.list[builtins.list[Match]]:
        """The k nearest identities of each query, best first; equal scores are ordered by name.

        Args:
            embeddings: float32 (n, dim), rows of length 1.
            k: matches of one query, >= 1; fewer are given if the gallery has fewer identities.
        """
        if k < 1:
            raise GalleryError(f"k must be at least 1, found {k}; ask for one match or more")
        queries = self.checked(embeddings)
        with self._lock:
            memory = self._followed()
            memory.refresh()
            return memory.search(queries, k)

    def search_for_person(
        self, embedding: Vectors, k: int, *, platform: str, height_px: float, threshold: float | None = None
    ) -> tuple[builtins.list[Match], Decision]:
        """Search for one person because somebody asks who it is, and tell the log who was found.

        Args:
            embedding: float32 (dim,) of length 1.
            k: identities to find, >= 1; two at least are looked at, for the runner-up.
            platform, height_px, threshold: as of `decision.decide`.
        """
        query = self.checked(embedding[None])
        with self.deciding() as decisions:
            memory = decisions.memory
            matches = memory.search(query, max(k, 2))[0]
            decision = decide(matches, memory.open_set, threshold, platform=platform, height_px=height_px)
            found = [memory.identities[match.identity].id for match in matches]
            who = None if decision.identity is None else memory.identities[decision.identity].id
            decisions.book.log.append("search", who, found=found, verdict=decision.verdict)
        return matches[:k], decision

    @contextmanager
    def reading(self) -> Iterator[Book]:
        """All rows as of one moment, to be read and not changed."""
        with self._lock, self._book.database.snapshot():
            yield self._book

    def refresh(self) -> None:
        """Learn what other boxes and commands decided."""
        with self._lock:
            self._followed().refresh()

    @contextmanager
    def remembering(self) -> Iterator[Memory]:
        """What is known as of the last `refresh`, also while the database cannot be reached."""
        with self._lock:
            yield self._followed()

    @property
    def identities(self) -> int:
        """How many there are, as of the last search."""
        with self._lock:
            return 0 if self._memory is None else len(self._memory.identities)

    @property
    def open_set(self) -> OpenSet | None:
        """The calibration of its thresholds, as of the last search; None: it is uncalibrated."""
        with self._lock:
            return None if self._memory is None else self._memory.open_set

    def calibrate(self, open_set: OpenSet) -> None:
        """Decide by these thresholds from now on, on every box."""
        with self._changing() as edits:
            edits.calibrate(self._known_space(), open_set.model_dump_json())

    def info(self) -> GalleryInfo:
        """What the gallery says of itself."""
        with self._lock, self._book.database.snapshot():
            return self._book.info()

    def list(self) -> builtins.list[IdentitySummary]:
        """All identities, by name."""
        with self._lock, self._book.database.snapshot():
            return self._book.summaries()

    def show(self, name: str) -> tuple[Identity, builtins.list[Prototype], builtins.list[LogEntry]]:
        """A person with the prototypes and the log entries of the person."""
        with self._lock, self._book.database.snapshot():
            identity = Edits(self._book).find(name)
            return identity, self._book.prototypes(identity.id), self._book.log.entries(identity=identity.id)

    def log(self, last: int | None = None) -> builtins.list[LogEntry]:
        """The decisions, oldest first; the last so many."""
        with self._lock:
            return self._book.log.entries(last=last)

    def name(self, old: str, new: str) -> None:
        """`Edits.name`."""
        with self._changing() as edits:
            edits.name(old, new)

    def note(self, name: str, text: str) -> None:
        """`Edits.note`."""
        with self._changing() as edits:
            edits.note(name, text)

    def merge(self, into: str, other: str) -> None:
        """`Edits.merge`."""
        with self._changing() as edits:
            edits.merge(into, other)

    def split(self, name: str, prototypes: Sequence[int], new: str) -> None:
        """`Edits.split`."""
        with self._changing() as edits:
            edits.split(name, prototypes, new)

    def undo(self, seq: int | None = None) -> LogEntry:
        """`Edits.undo`."""
        with self._changing() as edits:
            return edits.undo(seq)

    def forget(self, selection: Selection, asked: str, *, pictures: int = 0) -> tuple[Receipt, str]:
        """Erase people; the receipt and the text of its signed file. See `request.forget`."""
        with self._lock:
            done = request.forget(self._book, selection, asked, pictures)
            self._follow()
            return done

    def expire(self, *, candidates_s: float, unknowns_s: float, keep_s: float | None) -> int:
        """Erase what is older than the limits of storage (`forget.expire`); how many people are gone."""
        with self._changing() as edits:
            counts = expire(edits.book, candidates_s=candidates_s, unknowns_s=unknowns_s, keep_s=keep_s)
            return counts["identity"]

    def back_up(self, path: Path) -> None:
        """Write a copy while the gallery is in use; see `backup.back_up`."""
        with self._lock:
            back_up(self._book, path)

    def restore(self, path: Path) -> builtins.list[str]:
        """Put a backup in the place of all that is here; see `backup.restore`."""
        with self._lock:
            source = open_backup(self._book, path)
            try:
                return restore(source, self._book)
            finally:
                source.close()

    def add_model(self, space: Space, embed: Embed, tick: Callable[[int, int], None]) -> Carried:
        """Make room for another model, and embed all kept crops by it; see `models.add_model`."""
        with self._lock:
            return add_model(self._book, space, embed, tick)

    def retire_model(self, space: str) -> int:
        """Erase the vectors of another model; see `models.retire_model`."""
        with self._lock:
            return retire_model(self._book, space)

    def checked(self, embeddings: Vectors) -> Vectors:
        """Embeddings as float32 (n, dim); GalleryError if they are none of this gallery's."""
        dim = self._known_space().dim
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise GalleryError(
                f"embeddings must be (n, {dim}), found {embeddings.shape}; give the rows of Embedder.embed"
            )
        vectors = embeddings.astype(np.float32)
        if fault := unit_fault(vectors):
            raise GalleryError(f"{fault}; give the rows of Embedder.embed")
        return vectors

    @contextmanager
    def _changing(self) -> Iterator[Edits]:
        with self._lock:
            with self._book.database.transaction():
                yield Edits(self._book)
            self._follow()

    def _follow(self) -> None:
        """Learn what was just written. If that cannot be read now it is written all the same."""
        with suppress(GalleryUnavailable):
            if self._memory is not None:
                self._memory.refresh()

    def _known_space(self) -> Space:
        if self._space is None:
            raise GalleryError(f"{self._book.database.name}: name a bundle: vectors belong to a model")
        return self._space

    def _followed(self) -> Memory:
        self._known_space()
        assert self._memory is not None  # there is a space
        return self._memory


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run as numbers without a name
        return f"uid {os.getuid()}"


def _check_space(book: Book, space: Space) -> None:
    spaces = book.spaces()
    if not spaces:
        with book.database.transaction():
            if not book.spaces():
                book.add_space(space)
                book.log.append("add space")
        spaces = book.spaces()
    if space not in spaces:
        held = ", ".join(f"{one.hash} with {one.dim} numbers" for one in spaces)
        raise GalleryError(
            f"{book.database.name} holds embeddings of space {held}, the bundle gives space {space.hash} "
            f"with {space.dim}; use the bundle it was made with, or add this one by s3clip-gallery add-model"
        )
