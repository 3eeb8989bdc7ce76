"""One run with its parts put together: what s3clip-run and its demo share."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import click

from s3clip_runtime.cli.progress import Progress, print_summary
from s3clip_runtime.cli.recognition import cautions
from s3clip_runtime.cli.threads import one_thread_for_pictures
from s3clip_runtime.errors import S3ClipError
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.streams.events import EventMaker, new_run_id
from s3clip_runtime.streams.outputs.outputs import FrameWatcher, Outputs
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.pipeline import Pipeline
from s3clip_runtime.streams.recognition.batcher import LATENCY_MS, Batcher
from s3clip_runtime.streams.recognition.housekeeping import Housekeeping, Limits
from s3clip_runtime.streams.status import GalleryStatus, RunStatus

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Matching:
    """How sightings are recognised.

    Attributes:
        recogniser: None: embed only.
        limits: how long its gallery keeps people; None: the run erases nobody.
    """

    bundle: Bundle
    embedder: Embedder
    recogniser: Recogniser | None
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class LookSettings:
    """How looks are taken and told.

    Attributes:
        latency_ms: budget of a look, from submission to its event.
        enhance: super-resolve LR tracklets.
        embedding: put embeddings into the events.
        explain: put the chosen frames into the events.
        pictures: sightings carry their super-resolved crops.
    """

    latency_ms: float = LATENCY_MS
    enhance: bool = True
    embedding: bool = False
    explain: bool = False
    pictures: bool = False


class Session:
    """One run. Cameras are added to `pipeline`; `run` closes it and the sinks.

    Args:
        matching: stays the caller's.
        settings: of the looks.
        sinks: take sightings; their names are for `outputs.replace`.
        watchers: take processed frames.
        stop: set it to end in order.
    """

    def __init__(
        self,
        matching: Matching,
        settings: LookSettings,
        sinks: Mapping[str, SightingSink],
        watchers: Sequence[FrameWatcher],
        stop: threading.Event,
    ) -> None:
        manifest = matching.bundle.manifest
        self._matching = matching
        self._started_unix_s = time.time()
        self.maker = EventMaker(
            new_run_id(),
            manifest.name,
            manifest.embedding_space,
            with_embedding=settings.embedding,
            explain=settings.explain,
        )
        self.outputs = Outputs(sinks, watchers)
        self._batcher = Batcher(
            matching.embedder,
            matching.recogniser,
            self.maker,
            self.outputs.sighting,
            enhances=matching.bundle.enhances if settings.enhance else None,
            latency_ms=settings.latency_ms,
            pictures=settings.pictures,
        )
        self._housekeeping = (
            None
            if matching.recogniser is None
            else Housekeeping(matching.recogniser.gallery, matching.limits)
        )
        self.pipeline = Pipeline(self._batcher, self.outputs, stop)

    def status(self) -> RunStatus:
        """How the run is doing. Any thread may ask."""
        matching, batcher = self._matching, self._batcher
        shed: dict[str, int] = {"first": 0, "refined": 0, "final": 0}
        for (_, stage), count in batcher.waiting.shed().items():
            shed[stage] += count
        return RunStatus(
            run_id=self.maker.run_id,
            bundle=matching.bundle.manifest.name,
            device=f"{matching.embedder.device} {matching.embedder.target}",
            started_unix_s=self._started_unix_s,
            cameras=self.pipeline.status(),
            queue=len(batcher.waiting),
            queue_limit=batcher.waiting.limit,
            shed=shed,
            enhancing=batcher.enhancing,
            enhance_reason=batcher.enhance_reason,
            latency_ms=batcher.latency.quantiles(),
            outputs=self.outputs.status(),
            gallery=self._gallery(),
        )

    def _gallery(self) -> GalleryStatus | None:
        """Nothing here waits for the gallery, which may wait for its database."""
        recogniser, housekeeping = self._matching.recogniser, self._housekeeping
        if recogniser is None or housekeeping is None:
            return None
        open_set, tally = recogniser.open_set, recogniser.tally
        return GalleryStatus(
            identities=recogniser.identities,
            calibration="" if open_set is None else open_set.data,
            calibrated_unix_s=None if open_set is None else open_set.created.timestamp(),
            threshold=recogniser.rules.threshold,
            met=tally.met,
            grown=tally.grown,
            vetoed=tally.vetoed,
            unwritten=recogniser.unwritten,
            trouble=recogniser.trouble or housekeeping.trouble,
        )

    def change(self, settings: LookSettings, rules: Rules, limits: Limits | None) -> None:
        """Other settings for the looks to come; without a gallery the rules and limits have no use."""
        matching = self._matching
        recogniser = matching.recogniser
        if recogniser is not None and rules != recogniser.rules:
            recogniser.rules = rules
            for caution in cautions(recogniser):
                _log.warning("%s", caution)
        if self._housekeeping is not None:
            self._housekeeping.limits = limits
        self.maker.change(with_embedding=settings.embedding, explain=settings.explain)
        self._batcher.change(
            enhances=matching.bundle.enhances if settings.enhance else None,
            latency_ms=settings.latency_ms,
            pictures=settings.pictures,
        )

    def run(self, tick: Callable[[], None] | None = None) -> list[S3ClipError]:
        """Run to the end, close sources and sinks, print the summary.

        Args:
            tick: called about ten times a second by the loop.

        Returns:
            What went wrong without ending the run: failed cameras, broken outputs, events that did not fit.

        Raises:
            S3ClipError: the embedder failed.
        """
        one_thread_for_pictures()
        with ExitStack() as stack:
            stack.callback(self._end)
            if self._housekeeping is not None:
                self._housekeeping.start()
                stack.callback(self._housekeeping.close)
            progress = stack.enter_context(closing(Progress(self.status)))

            def both() -> None:
                progress.tick()
                if tick is not None:
                    tick()

            self.pipeline.run(both)
        return [*self.pipeline.errors(), *self.outputs.errors]

    def _end(self) -> None:
        closer = threading.Thread(target=self.pipeline.close, name="close cameras", daemon=True)
        closer.start()  # beside the outputs: both may need seconds, and after a signal there are five
        self.outputs.close()
        closer.join()
        print_summary(self.status())


def finish_outputs(problems: list[S3ClipError], steps: Sequence[Callable[[], None]]) -> None:
    """Run the closing steps; an S3ClipError of one joins `problems`, so that the others still run."""
    for step in steps:
        try:
            step()
        except S3ClipError as error:
            problems.append(error)


def raise_problems(problems: Sequence[S3ClipError]) -> None:
    """Say all problems, the last one by raising it."""
    for problem in problems[:-1]:
        click.echo(f"s3clip-run: error: {problem}", err=True)
    if problems:
        raise problems[-1]
