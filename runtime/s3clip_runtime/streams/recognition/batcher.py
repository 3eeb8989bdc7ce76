"""From ended tracklets to sightings: one thread embeds the tracklets of all cameras in batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.store import Gallery, decide
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.spec import BATCH_PROFILE
from s3clip_runtime.streams.events import EndedTracklet, EventMaker, Sighting

USUAL_BATCH = BATCH_PROFILE[1]
"""As many waiting tracklets are embedded at once, without waiting for more."""

MATCHES_KEPT = 5
"""Identities that a sighting carries."""

_QUEUE_TRACKLETS = 64
_TICK_S = 0.2


class ClipEmbedder(Protocol):
    """What the batcher needs of `inference.embedder.Embedder`."""

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """Clips to float32 (N, D) unit vectors."""


@dataclass(frozen=True, slots=True)
class _Job:
    ended: EndedTracklet
    since_s: float


class Batcher:
    """Embeds, asks the gallery, makes the event and hands the sighting on, in a thread of its own.

    Frames keep flowing while a batch is embedded. When `_QUEUE_TRACKLETS` wait, `submit` blocks: files are
    then read more slowly, live streams drop frames and count them.

    Args:
        embedder: used by this thread alone until `finish` has returned.
        gallery: None leaves the decision out.
        threshold: cosine from which a match counts.
        maker: makes the events.
        deliver: gets each sighting, in the order of the tracklets, called by the batcher's thread.
        latency_s: a tracklet waits at most so long for company.
    """

    def __init__(
        self,
        embedder: ClipEmbedder,
        gallery: Gallery | None,
        threshold: float,
        maker: EventMaker,
        deliver: Callable[[Sighting], None],
        *,
        latency_s: float = 0.5,
    ) -> None:
        self._embedder = embedder
        self._gallery = gallery
        self._threshold = threshold
        self._maker = maker
        self._deliver = deliver
        self._latency_s = latency_s
        self._jobs: queue.Queue[_Job] = queue.Queue(_QUEUE_TRACKLETS)
        self._ending = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, ended: EndedTracklet) -> None:
        """Queue one ended tracklet. Raises what the thread raised, if it failed."""
        job = _Job(ended, time.monotonic())
        while True:
            self._raise_error()
            try:
                return self._jobs.put(job, timeout=_TICK_S)
            except queue.Full:
                continue

    def finish(self) -> None:
        """Embed all that waits and end the thread. Raises what the thread raised, if it failed."""
        self._ending.set()
        while self._thread.is_alive():
            self._thread.join(timeout=_TICK_S)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        waiting: list[_Job] = []
        try:
            while not (self._ending.is_set() and self._jobs.empty() and not waiting):
                self._receive(waiting)
                if self._due(waiting):
                    self._recognise(waiting[:USUAL_BATCH])
                    del waiting[:USUAL_BATCH]
        except Exception as error:  # carried to the main thread, which raises it from submit or finish
            self._error = error

    def _receive(self, waiting: list[_Job]) -> None:
        """Wait until a job comes, the oldest one is due or a tick has passed."""
        if len(waiting) >= USUAL_BATCH:
            return
        patience = _TICK_S
        if waiting:
            patience = min(patience, waiting[0].since_s + self._latency_s - time.monotonic())
        try:
            waiting.append(self._jobs.get(timeout=max(patience, 0.001)))
        except queue.Empty:
            return

    def _due(self, waiting: list[_Job]) -> bool:
        if not waiting:
            return False
        late = time.monotonic() - waiting[0].since_s >= self._latency_s
        return len(waiting) >= USUAL_BATCH or late or (self._ending.is_set() and self._jobs.empty())

    def _recognise(self, jobs: list[_Job]) -> None:
        clips = [job.ended.tracklet.clip() for job in jobs]
        embeddings = self._embedder.embed(clips)
        found = self._gallery.search(embeddings, MATCHES_KEPT) if self._gallery is not None else None
        for number, (job, clip, embedding) in enumerate(zip(jobs, clips, embeddings, strict=True)):
            matches = [] if found is None else found[number]
            decision = None if found is None else decide(matches, self._threshold)
            event = self._maker.make(job.ended, clip.hr, embedding, decision, now_unix_s=time.time())
            self._deliver(Sighting(event, clip, embedding, tuple(matches)))
