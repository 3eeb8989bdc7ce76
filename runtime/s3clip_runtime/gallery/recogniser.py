"""Who was seen: one identity a person over all cameras, and over all boxes that share a gallery.

Looks that come while a person is still in view only ask. The final look decides and writes, in one
transaction of the gallery: two boxes never give two ids to one person for want of each other's news.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
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
        self.identities = gallery.identities
        """People in the gallery, as of the last batch. Who asks here never waits for the database."""
        self.open_set = gallery.open_set
        """The calibration, as of the last batch; None: there is none."""
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
        rules = self.rules  # one batch goes by one set
        writes = rules.writes and any(seen.final for seen in batch)
        vectors = np.stack([seen.vector for seen in batch])
        tally = replace(self._remembered.tally)
        try:
            if writes:
                found = self._decided(batch, vectors, rules)
            else:
                self.gallery.refresh()
                found = self._asked(batch, vectors, rules)
        except GalleryUnavailable as error:
            if not self.trouble:
                _log.warning("%s; people are recognised by what is known, nothing is remembered", error)
            self.trouble = str(error)
            self.unwritten += len(batch)
            self._remembered.tally = tally  # what was done was taken back
            return self._asked(batch, vectors, rules)
        finally:
            self._note()
        if self.trouble and (
            writes or not rules.writes
        ):  # that it can be read shows not that it can be written
            _log.warning("the gallery can be used again")
            self.trouble = ""
        return found

    def _decided(self, batch: Sequence[Seen], vectors: NDArray[np.float32], rules: Rules) -> list[Recognised]:
        with self.gallery.deciding() as decisions:
            rows = decisions.memory.search(vectors, MATCHES)
            deciding = Deciding(decisions.memory, decisions.book, rules, self._remembered)
            return [deciding.decide(seen, row) for seen, row in zip(batch, rows, strict=True)]

    def _asked(self, batch: Sequence[Seen], vectors: NDArray[np.float32], rules: Rules) -> list[Recognised]:
        with self.gallery.remembering() as memory:
            rows = memory.search(vectors, MATCHES)
            return [answer(memory, rules, seen, row) for seen, row in zip(batch, rows, strict=True)]

    def _note(self) -> None:
        self.identities, self.open_set = self.gallery.identities, self.gallery.open_set
