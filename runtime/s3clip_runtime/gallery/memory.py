"""What a process remembers of a gallery, as of an entry of its log."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.book import Book
from s3clip_runtime.gallery.database import Halves
from s3clip_runtime.gallery.open_set import OpenSet
from s3clip_runtime.gallery.prototypes import Prototypes
from s3clip_runtime.gallery.records import Identity, Match, Prototype, Space

_UNIT_TOLERANCE = 1e-3
"""Largest |length - 1| of a vector. float16 stays far below, unnormalised or damaged vectors far above."""


class ServerSearch(Protocol):
    """A database that searches by itself: galleries that are larger than memory."""

    def nearest(self, space: str, queries: NDArray[np.float32], k: int) -> list[list[Match]]:
        """As `Prototypes.search`, among the prototypes of a space."""


class Memory:
    """A gallery in one embedding space, kept in step with its log. Not for several threads at once.

    Args:
        book: of the open gallery.
        space: whose prototypes are searched.
        server: searches in place of memory; None: vectors are held in memory.

    Raises (constructor and `refresh`):
        GalleryUnavailable: the database cannot be read now; what was known stays.
        GalleryError: it is damaged.
    """

    def __init__(self, book: Book, space: Space, server: ServerSearch | None = None) -> None:
        self._book = book
        self.space = space
        self._server = server
        self._generation = ""
        self._seq = 0
        self._prototypes = Prototypes(space.dim)
        self._by_id: dict[str, Identity] = {}
        self._by_name: dict[str, Identity] = {}
        self.open_set: OpenSet | None = None
        self._open_set_text: str | None = None
        self.refresh()

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self.space.dim

    @property
    def identities(self) -> dict[str, Identity]:
        """By name."""
        return self._by_name

    def refresh(self) -> None:
        """Learn what the log tells since the last time."""
        generation, newest = self._book.state()  # first: what comes in while the rest is read is read again
        if generation != self._generation:
            self._load()
        elif newest != self._seq:
            for id in sorted(self._book.log.changed_since(self._seq)):
                self._load_identity(id)
            self._load_open_set()
        self._generation, self._seq = generation, newest

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Match]]:
        """The k best identities of each query (n, dim), as known; see `Prototypes.search`."""
        if self._server is not None:
            return self._server.nearest(self.space.hash, queries, k)
        return self._prototypes.search(queries, k)

    def _load(self) -> None:
        by_id = {identity.id: identity for identity in self._book.identities()}
        prototypes = Prototypes(self.space.dim)
        if self._server is None:
            for id, platforms, vectors in self._book.all_vectors(self.space):
                if id in by_id:  # else somebody new since the line above, whom the next refresh brings in
                    prototypes.put(by_id[id].name, self._checked(by_id[id].name, vectors), platforms)
        self._load_open_set()
        # Only now, when nothing more can fail: what was known stays if the database goes away.
        self._by_id, self._prototypes = by_id, prototypes
        self._by_name = {identity.name: identity for identity in by_id.values()}

    def _load_identity(self, id: str) -> None:
        identity = self._book.identity(id)
        prototypes, vectors = list[Prototype](), np.zeros((0, self.dim), np.float16)
        if identity is not None and self._server is None:
            prototypes, vectors = self._book.vectors(id, self.space)
            self._checked(identity.name, vectors)
        known = self._by_id.pop(id, None)
        # Another identity may have taken the old name by now, and be here already.
        if known is not None and self._by_name.get(known.name) is known:
            self._prototypes.remove(known.name)
            del self._by_name[known.name]
        if identity is None:
            return
        self._by_id[id] = self._by_name[identity.name] = identity
        self._prototypes.remove(identity.name)  # of one who had this name before
        if prototypes:
            self._prototypes.put(identity.name, vectors, [one.platform for one in prototypes])

    def _load_open_set(self) -> None:
        text = self._book.open_set(self.space.hash)
        if text != self._open_set_text:
            self.open_set = None if text is None else OpenSet.of_json(text)
            self._open_set_text = text

    def _checked(self, name: str, vectors: Halves) -> Halves:
        if fault := unit_fault(vectors.astype(np.float32)):
            raise GalleryError(
                f"{self._book.database.name} is damaged: prototypes of {name!r}: {fault}; "
                "restore it from a backup"
            )
        return vectors


def unit_fault(vectors: NDArray[np.float32]) -> str | None:
    """What is wrong with rows that must be finite and of length 1, float32 (n, dim); None: nothing."""
    if not np.isfinite(vectors).all():
        return "a vector has numbers that are not finite"
    # Damaged bytes can be huge numbers, whose squares do not fit in float32.
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero(np.abs(lengths - 1) > _UNIT_TOLERANCE)
    return f"vector {wrong[0]} must have length 1, found {lengths[wrong[0]]:.4g}" if len(wrong) else None
