"""s3clip-run: who is seen where and when, in video files and live streams; `--demo` needs no data.

The heavy imports sit in the functions: `--help` answers at once.
"""

from __future__ import annotations

import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.errors import Command
from s3clip_runtime.errors import ConfigError, SinkError

if TYPE_CHECKING:
    from s3clip_runtime.cli.session import Matching
    from s3clip_runtime.inference.bundle import Bundle, Target
    from s3clip_runtime.inference.embedder import Embedder
    from s3clip_runtime.streams.camera import Camera
    from s3clip_runtime.streams.events import Sighting
    from s3clip_runtime.streams.outputs.annotate import FileAnnotator, LiveAnnotator
    from s3clip_runtime.streams.outputs.contact_sheet import ContactSheet

_PATH = click.Path(path_type=Path)
_TILES = re.compile(r"([1-9]\d?)x([1-9]\d?)")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of a run with sources, as typed."""

    sources: tuple[str, ...]
    bundle: Path | None
    gallery: Path | None
    threshold: float | None
    detectors: tuple[str, ...]
    tiles: str | None
    events: str | None
    annotate: Path | None
    contact_sheet: Path | None
    embedding: bool
    device: str
    target: str | None
    threads: int | None
    min_frames: int


@click.command(name="s3clip-run", cls=Command)
@click.argument("sources", nargs=-1, metavar="[NAME=]URL@PLATFORM...")
@click.option("--bundle", type=_PATH, metavar="DIR", help="Folder made by s3clip-export.")
@click.option("--gallery", type=_PATH, metavar="FILE", help="The known persons; without it nobody is named.")
@click.option("--threshold", type=click.FloatRange(-1, 1), help="Cosine from which a match counts.")
@click.option(
    "--detector",
    "detectors",
    multiple=True,
    metavar="[NAME=]DETECTOR",
    help="background (default; fixed cameras only), a YOLOX network PATH.onnx, or MOT boxes PATH.txt. "
    "Repeat it with NAME= for single sources.",
)
@click.option("--tiles", metavar="ROWSxCOLS", help="Also search frames in tiles with the network, e.g. 2x2.")
@click.option(
    "--events", metavar="FILE", help="Append one JSON line a sighting; - is standard output, the default."
)
@click.option(
    "--annotate", type=_PATH, metavar="DIR", help="Write a video with boxes and names for each source."
)
@click.option(
    "--contact-sheet", type=_PATH, metavar="FILE.png", help="Draw crops and matches of each tracklet."
)
@click.option("--embedding", is_flag=True, help="Put the embedding into each event. It is biometric data.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--target",
    metavar="NAME",
    help="Which graphs of the bundle, like tensorrt-fp16; chosen by the device else.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each network; all by default.")
@click.option(
    "--min-frames",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Leave out tracklets seen in fewer frames; the summary counts them. The tracker uses one more.",
)
@click.option("--demo", is_flag=True, help="Run the bundled synthetic example. Takes no sources.")
@click.option("--out", type=_PATH, metavar="DIR", help="Where --demo writes; s3clip-demo by default.")
def main(
    sources: tuple[str, ...],
    bundle: Path | None,
    gallery: Path | None,
    threshold: float | None,
    detectors: tuple[str, ...],
    tiles: str | None,
    events: str | None,
    annotate: Path | None,
    contact_sheet: Path | None,
    embedding: bool,
    device: str,
    target: str | None,
    threads: int | None,
    min_frames: int,
    demo: bool,
    out: Path | None,
) -> None:
    """Find persons in video, follow them, and say who they are.

    A source is a video file, a folder of pictures, or an rtsp or http address, then @ground or @aerial.
    docs/events.md describes the events. Ctrl-C ends in order: what was seen so far is still written.
    """
    options = RunOptions(
        sources, bundle, gallery, threshold, detectors, tiles,
        events, annotate, contact_sheet, embedding, device, target, threads, min_frames,
    )  # fmt: skip
    from s3clip_runtime.cli.signals import stop_on_signals

    with stop_on_signals("what was read is still processed") as stop:
        if demo:
            _check_demo(options)
            from s3clip_runtime.cli.demo import run_demo

            run_demo(out or Path("s3clip-demo"), bundle, threshold, device, threads, stop)
        else:
            if out is not None:
                raise ConfigError("--out belongs to --demo; use --events, --annotate and --contact-sheet")
            run(options, stop)


def run(options: RunOptions, stop: threading.Event) -> None:
    """One run over the given sources.

    Args:
        options: the command line.
        stop: set it to end in order.

    Raises:
        S3ClipError: the options are wrong, or at least one camera or output failed. The other cameras and
            outputs were completed before it is raised.
    """
    if not options.sources:
        raise ConfigError("no source is given; name a video as PATH@ground or PATH@aerial, or try --demo")
    if options.bundle is None:
        raise ConfigError(
            "no bundle is given; make one with s3clip-export and name it with --bundle DIR, or try --demo"
        )
    from s3clip_runtime.cli.cameras import build_cameras
    from s3clip_runtime.cli.session import finish_outputs, raise_problems, run_session
    from s3clip_runtime.inference.backends.onnxruntime import OrtSession, choose_device
    from s3clip_runtime.inference.bundle import Bundle
    from s3clip_runtime.streams.outputs.json_lines import JsonLines
    from s3clip_runtime.streams.outputs.sink import SightingSink

    with ExitStack() as stack:

        def open_network(path: Path) -> OrtSession:
            session = OrtSession(path, device=choose_device(options.device)[0], threads=options.threads)
            stack.callback(session.close)
            return session

        cameras = build_cameras(
            options.sources, options.detectors, _tiles(options.tiles), open_network, options.min_frames
        )
        matching = _open_matching(stack, options, Bundle.open(options.bundle))
        annotators = [] if options.annotate is None else _annotators(options.annotate, cameras)
        sheet = _contact_sheet(options, matching.embedder)
        sinks: list[SightingSink] = [*annotators, *([] if sheet is None else [sheet])]
        target = None if options.events in (None, "-") else Path(str(options.events))
        events = JsonLines(target)
        problems = run_session(
            cameras,
            matching,
            stop,
            events=events,
            with_embedding=options.embedding,
            sinks=sinks,
            watchers=annotators,
        )
        steps = [annotator.write for annotator in annotators]
        if sheet is not None:
            steps.append(lambda: sheet.write(_no_verdict))
        finish_outputs(problems, steps)
    raise_problems(problems)


def open_embedder(
    stack: ExitStack, bundle: Bundle, device: str, threads: int | None, target: Target | None = None
) -> Embedder:
    """The bundle's embedder, closed by `stack`; says on standard error where it runs and why."""
    from s3clip_runtime.inference.embedder import Embedder

    embedder = stack.enter_context(Embedder(bundle, device=device, target=target, threads=threads))
    click.echo(f"device {embedder.device}: {embedder.device_reason}", err=True)
    return embedder


def chosen_threshold(threshold: float | None) -> float:
    """The threshold to use; says so when it is the default, which nobody calibrated."""
    from s3clip_runtime.streams.events import UNCALIBRATED_THRESHOLD

    if threshold is not None:
        return threshold
    click.echo(f"threshold {UNCALIBRATED_THRESHOLD} is uncalibrated; set yours with --threshold", err=True)
    return UNCALIBRATED_THRESHOLD


def _open_matching(stack: ExitStack, options: RunOptions, bundle: Bundle) -> Matching:
    from s3clip_runtime.cli.session import Matching
    from s3clip_runtime.gallery.store import Gallery
    from s3clip_runtime.inference.bundle import Target
    from s3clip_runtime.streams.events import UNCALIBRATED_THRESHOLD

    manifest = bundle.manifest
    gallery = None
    threshold = UNCALIBRATED_THRESHOLD
    if options.gallery is None:
        if options.threshold is not None:
            raise ConfigError("--threshold needs --gallery: without one nobody is matched")
    else:
        Gallery.describe(options.gallery)  # opening would make a missing file, and everybody be unknown
        threshold = chosen_threshold(options.threshold)
        gallery = stack.enter_context(
            Gallery.open(
                options.gallery,
                embedding_space=manifest.embedding_space,
                dim=manifest.contract.embedding_dim,
            )
        )
    target = None if options.target is None else Target.parse(options.target)
    embedder = open_embedder(stack, bundle, options.device, options.threads, target)
    return Matching(bundle, embedder, gallery, threshold)


def _annotators(folder: Path, cameras: list[Camera]) -> list[FileAnnotator | LiveAnnotator]:
    from s3clip_runtime.streams.outputs.annotate import FileAnnotator, LiveAnnotator

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"folder {folder} cannot be made: {error.strerror}; name another one") from error
    made: list[FileAnnotator | LiveAnnotator] = []
    for camera in cameras:
        name = camera.spec.name
        if "://" in camera.spec.url:
            made.append(LiveAnnotator(camera.spec, folder / f"{name}.mkv"))
        else:
            made.append(FileAnnotator(camera.spec, folder / f"{name}.mp4"))
    return made


def _contact_sheet(options: RunOptions, embedder: Embedder) -> ContactSheet | None:
    from s3clip_runtime.streams.outputs.contact_sheet import ContactSheet

    path = options.contact_sheet
    if path is None:
        return None
    if not path.parent.is_dir():  # found out before hours of work, not after
        raise SinkError(f"contact sheet {path}: its folder does not exist; create it")
    return ContactSheet(path, "s3clip-run", embedder.enhanced_pictures, {})


def _no_verdict(sighting: Sighting) -> tuple[str, bool | None]:
    return "", None


def _tiles(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _TILES.fullmatch(text)
    if match is None:
        raise ConfigError(f"--tiles {text!r} is not ROWSxCOLS; write for example 2x2")
    return int(match[1]), int(match[2])


def _check_demo(options: RunOptions) -> None:
    given = {
        "a source": options.sources,
        "--gallery": options.gallery,
        "--detector": options.detectors,
        "--tiles": options.tiles,
        "--events": options.events,
        "--annotate": options.annotate,
        "--contact-sheet": options.contact_sheet,
        "--embedding": options.embedding,
        "--target": options.target,
    }
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise ConfigError(f"--demo brings its own videos and writes to --out; leave out {', '.join(wrong)}")
