"""Who was seen: one identity a person over all cameras, and over all boxes that share a gallery.

Looks that come while a person is still in view only ask. The final look decides and writes, in one
transaction of the gallery: two boxes never give two ids to one person for want of each other's news.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryUnavailable
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Deciding, Recognised, Remembered, Rules, Tally, answer
from s3clip_runtime.gallery.records import Seen

_log = logging.getLogger(__name__)

MATCHES: Final = 10
"""Identities that a decision may choose from: those that time forbids are left out."""

_LONG_WAIT_S = 1.0
_RETRY_TIMES: Final = 4
"""After a long wait of t seconds for a database in vain it is not asked for 4 t: looks wait a fifth of the
time. One that fails at once is asked every time."""


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
        """Final looks that were decided by memory alone, and left nothing behind."""
        self.identities = gallery.identities
        """People in the gallery, as of the last batch. Who asks here never waits for the database."""
        self.open_set = gallery.open_set
        """The calibration, as of the last batch; None: there is none."""
        self._remembered = Remembered()
        self._retry_s = 0.0

    @property
    def tally(self) -> Tally:
        """What was done so far."""
        return self._remembered.tally

    def recognise(self, batch: Sequence[Seen]) -> list[Recognised]:
        """One answer a look, in their order. There must be one at least.

        While the database cannot be read or written (full disk, server away), the answers are those of what
        is known, and nothing is written.

        Raises:
            GalleryError: the gallery is damaged, or a vector is none of length 1; nothing was written.
            GalleryUnavailable: it is away and was searched by its server: nothing is known here.
        """
        rules = self.rules  # one batch goes by one set
        writes = rules.writes and any(seen.final for seen in batch)
        vectors = self.gallery.checked(np.stack([seen.vector for seen in batch]))
        began_s = time.monotonic()
        if began_s < self._retry_s:
            return self._by_memory(batch, vectors, rules)
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
            waited_s = time.monotonic() - began_s
            if waited_s >= _LONG_WAIT_S:
                self._retry_s = time.monotonic() + _RETRY_TIMES * waited_s
            return self._by_memory(batch, vectors, rules)
        finally:
            self._note()
        # That it can be read shows not that it can be written.
        if self.trouble and (writes or not rules.writes):
            _log.warning("the gallery can be used again")
            self.trouble = ""
        return found

    def _by_memory(
        self, batch: Sequence[Seen], vectors: NDArray[np.float32], rules: Rules
    ) -> list[Recognised]:
        if rules.writes:
            self.unwritten += sum(seen.final for seen in batch)
        return self._asked(batch, vectors, rules)

    def _decided(self, batch: Sequence[Seen], vectors: NDArray[np.float32], rules: Rules) -> list[Recognised]:
        with self.gallery.deciding() as decisions:
            rows = decisions.memory.search(vectors, MATCHES)
            remembered = self._remembered.copy()
            deciding = Deciding(decisions.memory, decisions.book, rules, remembered)
            found = [deciding.decide(seen, row) for seen, row in zip(batch, rows, strict=True)]
        self._remembered = remembered  # only now it is written
        return found

    def _asked(self, batch: Sequence[Seen], vectors: NDArray[np.float32], rules: Rules) -> list[Recognised]:
        with self.gallery.remembering() as memory:
            rows = memory.search(vectors, MATCHES)
            return [answer(memory, rules, seen, row) for seen, row in zip(batch, rows, strict=True)]

    def _note(self) -> None:
        self.identities, self.open_set = self.gallery.identities, self.gallery.open_set
