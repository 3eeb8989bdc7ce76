"""The gallery: identities with their prototypes, in memory for search, in one SQLite file for keeps.

The file is the truth. Memory is rebuilt when another process has changed it, so a person who is
forgotten by a command is at once unknown to a running pipeline too.
"""

from __future__ import annotations

import builtins
import difflib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.journal import GalleryInfo, IdentitySummary, Journal, describe
from s3clip_runtime.gallery.prototypes import Match, Prototypes, k_centre
from s3clip_runtime.inference.spec import platform_id

MAX_PROTOTYPES = 32
"""Prototypes of one identity. Bounds memory and search; 32 views of a person cover poses and platforms."""

_UNIT_TOLERANCE = 1e-3
"""Largest |length - 1| of an embedding. float16 engines stay far below, unnormalised vectors far above."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decision:
    """Who it is, by the open-set rule.

    Attributes:
        identity: the best match, or None if it is below the threshold or the gallery is empty.
        score: cosine of the best match; -1.0, the lowest cosine, if the gallery is empty.
        runner_up: the second best identity, if there is one: a score close to `score` means doubt.
    """

    identity: str | None
    score: float
    runner_up: Match | None


def decide(matches: Sequence[Match], threshold: float) -> Decision:
    """Open-set decision on the matches of one query, best first: known iff score >= threshold.

    Raises:
        GalleryError: the threshold is not in [-1, 1].
    """
    if not -1.0 <= threshold <= 1.0:
        raise GalleryError(f"the threshold must be a cosine in [-1, 1], found {threshold}; choose one there")
    if not matches:
        return Decision(None, -1.0, None)
    best = matches[0]
    runner_up = matches[1] if len(matches) > 1 else None
    return Decision(best.identity if best.score >= threshold else None, best.score, runner_up)


class Gallery:
    """One open gallery. It may be shared by threads. Use it as a context manager or close it."""

    def __init__(self, journal: Journal, dim: int) -> None:
        """Take over an open journal; `open` is the way in."""
        self._journal = journal
        self._dim = dim
        self._lock = threading.Lock()
        self._version = journal.version()
        self._prototypes = _loaded(journal, dim)

    @staticmethod
    def open(path: Path | None, *, embedding_space: str, dim: int) -> Gallery:
        """Open the gallery file, or make it if there is none; None keeps everything in memory only.

        Args:
            path: the SQLite file; its folder must exist.
            embedding_space: `Manifest.embedding_space` of the bundle whose embeddings it holds.
            dim: numbers of an embedding.

        Raises:
            GalleryError: the file is foreign, damaged, or of another embedding space or dim.
        """
        journal = Journal(path, embedding_space=embedding_space, dim=dim)
        try:
            return Gallery(journal, dim)
        except BaseException:
            journal.close()
            raise

    @staticmethod
    def describe(path: Path) -> GalleryInfo:
        """What the file says of itself; see `journal.describe`."""
        return describe(path)

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._lock:
            self._journal.close()

    def enrol(self, identity: str, embeddings: Vectors, *, platform: str | None, source: str) -> None:
        """Add prototypes to an identity, which is made if it is new. On the disk when this returns.

        Above `MAX_PROTOTYPES` the rows that cover the person's looks best stay (`k_centre`), not the newest:
        one long ground track would otherwise push out the few aerial views. The price: a wrong crop that was
        enrolled stays too, because it looks like nothing else.

        Args:
            identity: printable name without surrounding blanks.
            embeddings: float32 (n, dim), n >= 1, rows of length 1.
            platform: one of `spec.PLATFORMS`, or None if unknown.
            source: where they come from (camera, file), for people to read.

        Raises:
            GalleryError: a bad name or vector, or the file cannot be written.
            ConfigError: the platform is unknown.
        """
        if not identity.strip() or identity != identity.strip() or not identity.isprintable():
            raise GalleryError(
                f"identity {identity!r} must be a printable name without surrounding blanks; choose another"
            )
        if platform is not None:
            platform_id(platform)
        vectors = self._checked(embeddings)
        if not len(vectors):
            raise GalleryError(f"identity {identity!r}: no embeddings to enrol; give at least one")
        with self._lock:
            kept = self._journal.enrol(
                identity,
                vectors,
                platform=platform,
                source=source,
                time_s=time.time(),
                keep=partial(k_centre, size=MAX_PROTOTYPES),
            )
            self._prototypes.put(identity, kept)

    def search(self, embeddings: Vectors, k: int = 5) -> builtins.list[builtins.list[Match]]:
        """The k nearest identities of each query, best first; equal scores are ordered by name.

        Args:
            embeddings: float32 (n, dim), rows of length 1.
            k: matches of one query, >= 1; fewer are given if the gallery has fewer identities.

        Raises:
            GalleryError: a bad vector or k, or the file cannot be read.
        """
        if k < 1:
            raise GalleryError(f"k must be at least 1, found {k}; ask for one match or more")
        queries = self._checked(embeddings)
        with self._lock:
            self._refresh()
            return self._prototypes.search(queries, k)

    @property
    def identities(self) -> int:
        """How many there are, as of the last search."""
        with self._lock:
            return len(self._prototypes.identities)

    def list(self) -> builtins.list[IdentitySummary]:
        """All identities, by name."""
        with self._lock:
            return self._journal.summaries()

    def forget(self, identity: str) -> int:
        """Erase an identity: its rows are overwritten in the file, then the file is compacted.

        Returns:
            Number of prototypes erased, at least 1.

        Raises:
            GalleryError: there is no such identity (near names are listed), or the file cannot be written.
        """
        with self._lock:
            erased = self._journal.forget(identity)
            self._prototypes.remove(identity)
            self._refresh()
            if not erased:
                near = difflib.get_close_matches(identity, self._prototypes.identities, n=3)
                cure = f"did you mean {', '.join(near)}?" if near else "see s3clip-gallery list"
                raise GalleryError(f"identity {identity!r} is not in the gallery; {cure}")
            self._journal.compact()
        return erased

    def _refresh(self) -> None:
        version = self._journal.version()
        if version != self._version:
            self._prototypes = _loaded(self._journal, self._dim)
            self._version = version

    def _checked(self, embeddings: Vectors) -> Vectors:
        if embeddings.ndim != 2 or embeddings.shape[1] != self._dim:
            raise GalleryError(
                f"embeddings must be (n, {self._dim}), found {embeddings.shape}; "
                "give the rows of Embedder.embed"
            )
        vectors = embeddings.astype(np.float32)
        fault = _fault(vectors)
        if fault:
            raise GalleryError(f"{fault}; give the rows of Embedder.embed")
        return vectors


def _loaded(journal: Journal, dim: int) -> Prototypes:
    prototypes = Prototypes(dim)
    for identity, vectors in journal.load():
        fault = _fault(vectors)
        if fault:
            raise GalleryError(
                f"the gallery is damaged: prototypes of {identity!r}: {fault}; restore it from a backup"
            )
        prototypes.put(identity, vectors)
    return prototypes


def _fault(vectors: Vectors) -> str | None:
    if not np.isfinite(vectors).all():
        return "a vector has numbers that are not finite"
    # Damaged bytes can be huge numbers, whose squares do not fit in float32.
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero(np.abs(lengths - 1) > _UNIT_TOLERANCE)
    return f"vector {wrong[0]} must have length 1, found {lengths[wrong[0]]:.4g}" if len(wrong) else None
