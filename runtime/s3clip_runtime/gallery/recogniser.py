"""Who was seen: one identity a person over all cameras, and over all boxes that share a gallery.

Looks that come while a person is still in view only ask. The final look decides and writes, in one
transaction of the gallery: two boxes never give two ids to one person for want of each other's news.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryUnavailable
from s3clip_runtime.gallery.deciding import Deciding, Recognised, Remembered, Rules, Tally, answer
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.records import Seen

_log = logging.getLogger(__name__)

MATCHES: Final = 10
"""Identities that a decision may choose from: those that time forbids are left out."""


class Recogniser:
    """Decides on looks, for one thread; any may read what it counts.

    Args:
        gallery: stays the caller's.
        rules: what may be done; may be replaced between two batches.
    """

    def __init__(self, gallery: Gallery, rules: Rules) -> None:
        self.gallery = gallery
        self.rules = rules
        self.trouble = ""
        """Why the gallery's database cannot be used now; empty: it can."""
        self.unwritten = 0
        """Looks that were decided by memory alone, and left nothing behind."""
        self._remembered = Remembered()

    @property
    def tally(self) -> Tally:
        """What was done so far."""
        return self._remembered.tally

    def recognise(self, batch: Sequence[Seen]) -> list[Recognised]:
        """One answer a look, in their order.

        While the database cannot be read or written (full disk, server away), the answers are those of what
        is known, and nothing is written.

        Raises:
            GalleryError: the gallery is damaged.
            GalleryUnavailable: it is away and was searched by its server: nothing is known here.
        """
        vectors = np.stack([seen.vector for seen in batch])
        try:
            found = self._by_database(batch, vectors)
        except GalleryUnavailable as error:
            if not self.trouble:
                _log.warning("%s; people are recognised by what is known, nothing is remembered", error)
            self.trouble = str(error)
            self.unwritten += len(batch)
            return self._asked(batch, vectors)
        if self.trouble:
            _log.warning("the gallery can be used again")
            self.trouble = ""
        return found

    def _by_database(self, batch: Sequence[Seen], vectors: NDArray[np.float32]) -> list[Recognised]:
        if not self.rules.writes or not any(seen.final for seen in batch):
            self.gallery.refresh()
            return self._asked(batch, vectors)
        with self.gallery.deciding() as decisions:
            rows = decisions.memory.search(vectors, MATCHES)
            remembered = self._remembered.copy()
            deciding = Deciding(decisions.memory, decisions.book, self.rules, remembered)
            found = [deciding.decide(seen, row) for seen, row in zip(batch, rows, strict=True)]
        self._remembered = remembered  # only now it is written
        return found

    def _asked(self, batch: Sequence[Seen], vectors: NDArray[np.float32]) -> list[Recognised]:
        with self.gallery.remembering() as memory:
            rows = memory.search(vectors, MATCHES)
            return [answer(memory, self.rules, seen, row) for seen, row in zip(batch, rows, strict=True)]
