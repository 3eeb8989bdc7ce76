"""From looks at tracklets to sightings: one thread embeds the looks of all cameras in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryUnavailable
from s3clip_runtime.gallery.recognition.deciding import Recognised
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Seen
from s3clip_runtime.gallery.storage.clips import pack
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedded
from s3clip_runtime.inference.spec import BATCH_PROFILE, PLATFORMS
from s3clip_runtime.streams.events import Enhancement, EventMaker, Sighting, Unasked
from s3clip_runtime.streams.looks import Look
from s3clip_runtime.streams.recognition.budget import EnhanceBudget
from s3clip_runtime.streams.recognition.latency import LatencyBook
from s3clip_runtime.streams.recognition.waiting import Waiting, WaitingLooks

LARGEST_BATCH = BATCH_PROFILE[1]
"""Looks that are embedded at once at most: their 64 crops fill the largest batch of `enhance`."""

LATENCY_MS = 500.0
"""Default budget of a look, from submission to its event."""

LONGEST_WAIT_S = 10.0
"""No more looks wait than can be embedded in this time: under lasting pressure a longer queue would only make
everything later."""

MATCHES_KEPT = 5
"""Identities that a sighting carries."""

_TICK_S = 0.2


class LookEmbedder(Protocol):
    """What the batcher needs of `inference.embedder.Embedder`."""

    def embed_looks(
        self, clips: Sequence[Clip], *, enhance: Sequence[bool], pictures: bool = False
    ) -> Embedded:
        """Clips to unit vectors, with what the steps took."""


class Batcher:
    """Embeds, asks the gallery, makes the event and hands the sighting on, in a thread of its own.

    All that is due goes through each graph as one batch. The batch is so small that embedding it is expected
    to take half the budget, so that on a slow machine one look does not wait for seven others.

    Args:
        embedder: used by this thread alone until `finish` has returned.
        recogniser: used by this thread alone; None leaves the decision out.
        maker: makes the events.
        deliver: gets each sighting, called by the batcher's thread.
        enhances: whether an LR clip of this median height in pixels is to be super-resolved: the bundle's
            switch point. None turns super-resolution off.
        latency_ms: budget of a look, from submission to its event.
        pictures: sightings carry their super-resolved crops.
    """

    def __init__(
        self,
        embedder: LookEmbedder,
        recogniser: Recogniser | None,
        maker: EventMaker,
        deliver: Callable[[Sighting], None],
        *,
        enhances: Callable[[float], bool] | None,
        latency_ms: float = LATENCY_MS,
        pictures: bool = False,
    ) -> None:
        self._embedder = embedder
        self._recogniser = recogniser
        self._maker = maker
        self._deliver = deliver
        self._enhances = enhances
        self._latency_s = latency_ms / 1000
        self._pictures = pictures
        self._look_s = 0.0
        self._error: Exception | None = None
        self._give_up_s = float("inf")
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._ending = threading.Event()
        self.waiting = WaitingLooks()
        self.budget = EnhanceBudget(latency_ms)
        self.latency = LatencyBook()

    def change(self, *, enhances: Callable[[float], bool] | None, latency_ms: float, pictures: bool) -> None:
        """Other settings from the next batch on."""
        self._enhances = enhances
        self._pictures = pictures
        if latency_ms != 1000 * self._latency_s:
            self._latency_s = latency_ms / 1000
            self.budget = EnhanceBudget(latency_ms)

    @property
    def enhance_reason(self) -> str:
        """Why super-resolution is on or off, for people."""
        return "turned off" if self._enhances is None else self.budget.reason

    @property
    def enhancing(self) -> bool:
        """Live LR looks are super-resolved now."""
        return self._enhances is not None and self.budget.on

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """What the embedder or the gallery raised: from then on looks give events without embedding."""
        return self._error

    def submit(self, look: Look) -> None:
        """Queue one look; never blocks."""
        self.waiting.put(look)

    def finish(self, within_s: float | None = None) -> None:
        """Embed what waits and end the thread; then look at `error`.

        Args:
            within_s: looks for which there is no time give events without embedding; None embeds all. A
                batch that has begun is always ended.
        """
        if within_s is not None:
            self._give_up_s = time.monotonic() + within_s
        self._ending.set()
        self.waiting.close()
        while self._thread.is_alive():
            self._thread.join(timeout=_TICK_S)

    def _work(self) -> None:
        while not (self._ending.is_set() and not len(self.waiting)):
            window_s = max(0.0, min(self._latency_s / 2, self._latency_s - self._look_s))
            batch = self.waiting.take(self._batch_size(), window_s)
            self._tell_unembedded(self.waiting.overdue())
            late = time.monotonic() + self._look_s * len(batch) > self._give_up_s
            if late or self._error is not None:
                self._tell_unembedded(batch)
            elif batch:
                self._try_to_recognise(batch)

    def _try_to_recognise(self, batch: Sequence[Waiting]) -> None:
        try:
            self._recognise(batch)
        except Exception as error:  # carried to the loop's thread, which ends the run and raises it
            self._error = error
            self._tell_unembedded(batch)

    def _batch_size(self) -> int:
        if self._look_s == 0:
            return LARGEST_BATCH
        return int(np.clip(self._latency_s / 2 / self._look_s, 1, LARGEST_BATCH))

    def _recognise(self, batch: Sequence[Waiting]) -> None:
        started_s = time.monotonic()
        looks = [one.look for one in batch]
        why = [self._enhancement(look) for look in looks]
        found = self._embedder.embed_looks(
            [look.clip for look in looks], enhance=[one == "used" for one in why], pictures=self._pictures
        )
        searched_s = time.monotonic()
        people = self._people(looks, found.vectors)
        ended_s = time.monotonic()
        # A moving mean over some ten batches: one slow batch does not shrink the next ones to single looks.
        each_s = (ended_s - started_s) / len(batch)
        self._look_s = each_s if self._look_s == 0 else 0.8 * self._look_s + 0.2 * each_s
        self.waiting.limit = max(LARGEST_BATCH, int(LONGEST_WAIT_S / self._look_s))
        for row, (one, look) in enumerate(zip(batch, looks, strict=True)):
            steps_ms = _before(look, 1000 * (started_s - one.since_s)) | {
                "enhance": found.enhance_ms,
                "embed": found.embed_ms,
                "match": 1000 * (ended_s - searched_s),
            }
            self.latency.add(steps_ms)
            if look.live:
                self.budget.record(1000 * (ended_s - one.since_s), found.enhance_ms)
            who, vector = people[row], found.vectors[row]
            event = self._maker.make(look, why[row], vector, who, steps_ms, now_unix_s=time.time())
            matches = () if isinstance(who, str) else who.matches[:MATCHES_KEPT]
            self._deliver(Sighting(event, look.clip, vector, matches, found.pictures[row]))

    def _people(self, looks: Sequence[Look], vectors: NDArray[np.float32]) -> Sequence[Recognised | Unasked]:
        """Who is who, one a look; a gallery that is away for a while does not end the run."""
        if self._recogniser is None:
            return ["no_gallery"] * len(looks)
        run = self._maker.run_id
        try:
            return self._recogniser.recognise(
                [seen_of(look, vector, run) for look, vector in zip(looks, vectors, strict=True)]
            )
        except GalleryUnavailable:  # the recogniser keeps the reason for the status
            return ["not_matched"] * len(looks)

    def _enhancement(self, look: Look) -> Enhancement:
        if look.clip.hr:
            return "hr"
        if self._enhances is None:
            return "off"
        if look.live and not self.budget.on:
            return "budget"
        return "used" if self._enhances(look.clip.height_px) else "switch"

    def _tell_unembedded(self, batch: Sequence[Waiting]) -> None:
        for one in batch:
            waited_ms = 1000 * (time.monotonic() - one.since_s)
            steps_ms = _before(one.look, waited_ms) | {"enhance": 0.0, "embed": 0.0, "match": 0.0}
            event = self._maker.make(one.look, "off", None, "not_embedded", steps_ms, now_unix_s=time.time())
            self._deliver(Sighting(event, one.look.clip, None, ()))


def seen_of(look: Look, vector: NDArray[np.float32], run: str) -> Seen:
    """The look as the gallery takes it; its crops are packed only if they are kept."""
    tracklet, clip = look.tracklet, look.clip
    return Seen(
        vector=vector,
        camera=tracklet.camera,
        platform=PLATFORMS[tracklet.platform],
        height_px=clip.height_px,
        quality=float(np.mean([tracklet.qualities[one.position].value for one in look.chosen])),
        run=run,
        tracklet=tracklet.key,
        track=f"{tracklet.camera}/{tracklet.epoch}/{tracklet.track}",
        clock=tracklet.clock,
        first_s=tracklet.start_s,
        last_s=tracklet.end_s,
        final=look.stage == "final",
        pictures=lambda: (pack(clip.crops), clip.hr),
    )


def _before(look: Look, waited_ms: float) -> dict[str, float]:
    """Milliseconds of the steps up to the embedder."""
    return {
        "decode": look.cost.decode_ms,
        "detect": look.cost.detect_ms,
        "track": look.cost.track_ms,
        "wait": look.cost.queued_ms + waited_ms,
    }
