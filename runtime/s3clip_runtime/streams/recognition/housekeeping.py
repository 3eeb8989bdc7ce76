"""Erases what a gallery has kept for long enough, beside the run."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.gallery import Gallery

_log = logging.getLogger(__name__)

EVERY_S: Final = 600.0

_CLOSE_S: Final = 1.0
"""As long as an erasure may hold up the end of a run; what it has not done is done by the next run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long runs keep people, in seconds; see `Gallery.expire`."""

    candidates_s: float
    unknowns_s: float
    keep_s: float


class Housekeeping:
    """A thread that erases at the start, and every `every_s` from then on.

    It has a thread of its own so that a slow database does not hold up a queue of looks for longer than one
    transaction. A database that is away is tried again.

    Args:
        gallery: stays the caller's.
        limits: may be replaced at any time; None: nothing is erased.
        every_s: seconds between two rounds.
    """

    def __init__(self, gallery: Gallery, limits: Limits | None, every_s: float = EVERY_S) -> None:
        self.limits = limits
        self.trouble = ""
        """Why the last round failed; empty: it did not."""
        self._gallery = gallery
        self._every_s = every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, also one that was not started; a round that goes on gets `_CLOSE_S` to end."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_CLOSE_S)

    def _work(self) -> None:
        while not self._ending.is_set():
            self._round()
            self._ending.wait(self._every_s)

    def _round(self) -> None:
        limits = self.limits
        if limits is None:
            self.trouble = ""
            return
        try:
            gone = self._gallery.expire(
                candidates_s=limits.candidates_s, unknowns_s=limits.unknowns_s, keep_s=limits.keep_s
            )
        except GalleryError as error:
            if not self.trouble:
                _log.warning("%s; what is older than its limit stays until the gallery can be written", error)
            self.trouble = str(error)
            return
        self.trouble = ""
        if gone:
            _log.info("%d people were erased from the gallery, as the limits of [identities] ask", gone)
