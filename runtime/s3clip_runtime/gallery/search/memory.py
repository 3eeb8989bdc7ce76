"""What a process remembers of a gallery, as of an entry of its log."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.open_set.decision import OpenSet
from s3clip_runtime.gallery.records import Identity, Match, Space
from s3clip_runtime.gallery.search.prototypes import Prototypes
from s3clip_runtime.gallery.search.server import ServerSearch
from s3clip_runtime.gallery.storage.book import Book
from s3clip_runtime.gallery.storage.database import Halves

_UNIT_TOLERANCE = 1e-3
"""Largest |length - 1| of a vector. float16 stays far below, unnormalised or damaged vectors far above."""


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
        self._open_set_of_text: OpenSet | None = None
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
            self._load_changed(sorted(self._book.log.changed_since(self._seq)))
        self._generation, self._seq = generation, newest

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Match]]:
        """The k best identities of each query (n, dim), as known; see `Prototypes.search`."""
        if self._server is not None:
            return self._server.nearest(self.space.hash, queries, k)
        return self._prototypes.search(queries, k)

    def _load(self) -> None:
        """Read everything before anything is given up: what was known stays if reading fails."""
        if self.space not in self._book.spaces():  # retired, or a backup without it was restored
            raise GalleryError(
                f"{self._book.database.name} holds no embeddings of space {self.space.hash} any more; "
                "run with a bundle whose space `s3clip-gallery info` lists"
            )
        by_id = {identity.id: identity for identity in self._book.identities()}
        prototypes = Prototypes(self.space.dim)
        if self._server is None:
            for id, platforms, vectors in self._book.all_vectors(self.space):
                # Who was enrolled since the first statement is read by the next refresh.
                if id in by_id:
                    self._put(prototypes, by_id[id].name, vectors, platforms)
        self.open_set = self._read_open_set()
        self._prototypes, self._by_id = prototypes, by_id
        self._by_name = {identity.name: identity for identity in by_id.values()}

    def _load_changed(self, ids: Sequence[str]) -> None:
        fresh = [found for id in ids if (found := self._book.identity(id)) is not None]
        vectors = {one.id: self._book.vectors(one.id, self.space) for one in fresh if self._server is None}
        self.open_set = self._read_open_set()
        for id in ids:  # all go before any comes: names may have changed hands
            self._drop_identity(id)
        for identity in fresh:
            self._by_id[identity.id] = self._by_name[identity.name] = identity
            prototypes, halves = vectors.get(identity.id, ([], None))
            if prototypes and halves is not None:
                platforms = [one.platform for one in prototypes]
                self._put(self._prototypes, identity.name, halves, platforms)

    def _drop_identity(self, id: str) -> None:
        known = self._by_id.pop(id, None)
        if known is not None:
            self._prototypes.remove(known.name)
            # A box may have read the new owner of a name before the old one.
            if self._by_name.get(known.name) is known:
                del self._by_name[known.name]

    def _read_open_set(self) -> OpenSet | None:
        text = self._book.open_set(self.space.hash)
        if text != self._open_set_text:
            self._open_set_of_text = None if text is None else OpenSet.of_json(text)
            self._open_set_text = text
        return self._open_set_of_text

    def _put(
        self, prototypes: Prototypes, name: str, vectors: Halves, platforms: Sequence[str | None]
    ) -> None:
        if fault := unit_fault(vectors.astype(np.float32)):
            raise GalleryError(
                f"{self._book.database.name} is damaged: prototypes of {name!r}: {fault}; "
                "restore it from a backup"
            )
        prototypes.put(name, vectors, platforms)


def unit_fault(vectors: NDArray[np.float32]) -> str | None:
    """What is wrong with rows that must be finite and of length 1, float32 (n, dim); None: nothing."""
    if not np.isfinite(vectors).all():
        return "a vector has numbers that are not finite"
    # Damaged bytes can be huge numbers, whose squares do not fit in float32.
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero(np.abs(lengths - 1) > _UNIT_TOLERANCE)
    return f"vector {wrong[0]} must have length 1, found {lengths[wrong[0]]:.4g}" if len(wrong) else None
