"""Runs a site: opens what its settings name, and follows its file when it is reloaded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from s3clip_runtime.cli.log import Redactor, set_up_logging
from s3clip_runtime.cli.outputs import open_annotators, open_contact_sheet, open_sinks, sink_makers
from s3clip_runtime.cli.recognition import cautions, limits_of, open_recogniser, rules_of
from s3clip_runtime.cli.session import LookSettings, Matching, Session, finish_outputs, raise_problems
from s3clip_runtime.cli.systemd import ServiceManager
from s3clip_runtime.cli.threads import plan_threads
from s3clip_runtime.errors import S3ClipError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.site.load import changes, load_site
from s3clip_runtime.site.model import CameraSettings, Site
from s3clip_runtime.streams.camera import CameraPlan
from s3clip_runtime.streams.detection.choose import Choice, is_network, open_detectors
from s3clip_runtime.streams.events import Sighting
from s3clip_runtime.streams.page.board import Board
from s3clip_runtime.streams.page.server import PageServer
from s3clip_runtime.streams.reading.sources import ReadOptions

_log = logging.getLogger(__name__)


def run_site(
    site: Site,
    stop: threading.Event,
    *,
    contact_sheet: Path | None = None,
    follow: tuple[Path, threading.Event] | None = None,
) -> None:
    """One run over the cameras of a site.

    Args:
        site: the settings.
        stop: set it to end in order.
        contact_sheet: PNG to draw at the end.
        follow: the site file, and the event that asks to read it again.

    Raises:
        S3ClipError: the settings are wrong, or at least one camera or output failed. The other cameras and
            outputs were completed before it is raised.
    """
    redactor = set_up_logging(logging.INFO, site.secrets())
    service = ServiceManager()
    with ExitStack() as stack:
        matching = open_matching(stack, site)
        annotators = open_annotators(site)
        sheet = open_contact_sheet(contact_sheet)
        board = Board() if site.page is not None else None
        # Plans first: a detector that cannot be opened must not leave an empty file of events.
        plans = _plans(stack, site, site.cameras, stop)
        sinks = open_sinks(site.outputs)
        sinks |= {f"video {number}": annotator for number, annotator in enumerate(annotators)}
        sinks |= {} if sheet is None else {"contact sheet": sheet}
        sinks |= {} if board is None else {"page": board}
        session = Session(
            matching,
            _look_settings(site, pictures=board is not None or sheet is not None),
            sinks,
            [*annotators, *([] if board is None else [board])],
            stop,
        )
        if board is not None:
            _serve_page(stack, site, board, session)
        for plan in plans:
            session.pipeline.add(plan)
        reload = _reloader(stack, site, follow, session, board, stop, redactor, service)

        def tick() -> None:
            service.alive()
            reload()

        service.ready()
        problems = session.run(tick)
        service.stopping()
        steps = [annotator.write for annotator in annotators]
        if sheet is not None:
            steps.append(lambda: sheet.write(_no_verdict))
        finish_outputs(problems, steps)
    raise_problems(problems)


def open_matching(stack: ExitStack, site: Site) -> Matching:
    """Bundle, gallery and embedder of a site, closed by `stack`; says on standard error what to beware of."""
    bundle = Bundle.open(site.bundle)
    recogniser = open_recogniser(stack, site, bundle)
    if recogniser is not None:
        for caution in cautions(recogniser):
            click.echo(caution, err=True)
    target = None if site.target is None else Target.parse(site.target)
    plan = plan_threads(site.threads, network=any(is_network(camera.detector) for camera in site.cameras))
    embedder = open_embedder(stack, bundle, site.device, plan.embedder, target)
    return Matching(bundle, embedder, recogniser, limits_of(site))


def open_embedder(
    stack: ExitStack, bundle: Bundle, device: str, threads: int | None, target: Target | None = None
) -> Embedder:
    """The bundle's embedder, closed by `stack`; says on standard error where it runs and why."""
    embedder = stack.enter_context(Embedder(bundle, device=device, target=target, threads=threads))
    click.echo(f"device {embedder.device}: {embedder.device_reason}", err=True)
    return embedder


def _plans(
    stack: ExitStack, site: Site, cameras: Sequence[CameraSettings], stop: threading.Event
) -> list[CameraPlan]:
    """What the cameras are made of; their detectors are closed by `stack`."""
    choices = {
        camera.name: Choice(camera.detector, None if camera.tiles is None else camera.tile_counts)
        for camera in cameras
    }
    threads = plan_threads(site.threads, network=True).detector
    detectors = open_detectors(choices, device=site.device, threads=threads, stop=stop)
    stack.callback(detectors.close)
    return [
        CameraPlan(
            camera.source,
            detectors.of_camera(camera.name),
            ReadOptions(camera.open_timeout_s, camera.read_timeout_s, camera.decode),
            camera.chosen_tracker,
            site.min_frames,
            site.first_look_frames,
        )
        for camera in cameras
    ]


def _look_settings(site: Site, *, pictures: bool) -> LookSettings:
    return LookSettings(
        latency_ms=site.latency_ms,
        enhance=site.enhance == "auto",
        embedding=site.embedding,
        explain=site.explain,
        pictures=pictures or site.outputs.crops is not None,
    )


def _no_verdict(sighting: Sighting) -> tuple[str, bool | None]:
    return "", None


def _serve_page(stack: ExitStack, site: Site, board: Board, session: Session) -> None:
    assert site.page is not None  # the board says so
    token = None if site.page.token is None else site.page.token.get_secret_value()
    page = PageServer(board, session.status, host=site.page.host, port=site.page.port, token=token)
    page.start()
    stack.callback(page.close)
    click.echo(f"status page: {page.url}", err=True)


def _reloader(
    stack: ExitStack,
    site: Site,
    follow: tuple[Path, threading.Event] | None,
    session: Session,
    board: Board | None,
    stop: threading.Event,
    redactor: Redactor,
    service: ServiceManager,
) -> Callable[[], None]:
    """What the loop calls between two rounds: reads the site again when it was asked to.

    A file that cannot be read or would need a restart changes nothing; the run goes on.
    """
    current = site

    def reload() -> None:
        nonlocal current
        if follow is None or not follow[1].is_set():
            return
        follow[1].clear()
        service.reloading()
        try:
            new = load_site(follow[0])
            redactor.add(new.secrets())
            found = changes(current, new)
            found.check()
            by_name = {camera.name: camera for camera in new.cameras}
            plans = _plans(stack, new, [by_name[name] for name in (*found.added, *found.changed)], stop)
        except S3ClipError as error:
            _log.error("%s", error)
        else:
            for name in (*found.removed, *found.changed):
                session.pipeline.remove(name)
                if board is not None:
                    board.forget_camera(name)
            for plan in plans:
                session.pipeline.add(plan)
            session.change(_look_settings(new, pictures=board is not None), rules_of(new), limits_of(new))
            for name, make in sink_makers(new.outputs).items():
                if f"outputs.{name}" in found.applied:
                    session.outputs.replace(name, make)
            current = new
            _log.info("reloaded: %s", found)
        service.ready()

    return reload
