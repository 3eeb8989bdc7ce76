"""One run of a pipeline with its outputs: what s3clip-run and its demo share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import click

from s3clip_runtime.cli.progress import Progress, print_summary
from s3clip_runtime.errors import S3ClipError
from s3clip_runtime.gallery.store import Gallery
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.streams.camera import Camera
from s3clip_runtime.streams.events import EventMaker, new_run_id
from s3clip_runtime.streams.outputs.json_lines import JsonLines
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.pipeline import FrameWatcher, Outputs, Pipeline
from s3clip_runtime.streams.recognition.batcher import Batcher


@dataclass(frozen=True, slots=True)
class Matching:
    """How sightings are recognised. `gallery` None: embed only."""

    bundle: Bundle
    embedder: Embedder
    gallery: Gallery | None
    threshold: float


def run_session(
    cameras: Sequence[Camera],
    matching: Matching,
    stop: threading.Event,
    *,
    events: JsonLines | None,
    with_embedding: bool,
    sinks: Sequence[SightingSink],
    watchers: Sequence[FrameWatcher],
) -> list[S3ClipError]:
    """Run to the end, close `events`, print the summary.

    Returns:
        What went wrong without ending the run: failed cameras, broken outputs, events that did not fit.

    Raises:
        S3ClipError: the embedder failed.
    """
    threshold = None if matching.gallery is None else matching.threshold
    maker = EventMaker(
        new_run_id(),
        matching.bundle.manifest.name,
        matching.bundle.manifest.embedding_space,
        threshold,
        with_embedding=with_embedding,
    )
    outputs = Outputs([*([] if events is None else [events]), *sinks], watchers)
    batcher = Batcher(matching.embedder, matching.gallery, matching.threshold, maker, outputs.sighting)
    problems: list[S3ClipError] = []
    with ExitStack() as stack:
        if events is not None:
            stack.callback(finish_outputs, problems, [events.close])
        progress = stack.enter_context(closing(Progress()))
        reports = Pipeline(cameras, batcher, outputs, stop).run(progress.tick)
    print_summary(reports)
    problems.extend(report.error for report in reports if report.error is not None)
    problems.extend(outputs.errors)
    return problems


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
