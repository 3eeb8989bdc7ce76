"""s3clip-run: who is seen where and when, in video files and live streams; `--demo` needs no data.

The heavy imports sit in the functions: `--help` answers at once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import click

from s3clip_runtime.cli.errors import Command
from s3clip_runtime.errors import ConfigError

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of a run with sources, as typed."""

    sources: tuple[str, ...]
    bundle: Path | None
    gallery: str | None
    threshold: float | None
    detectors: tuple[str, ...]
    tiles: str | None
    tracker: str | None
    events: str | None
    annotate: Path | None
    embedding: bool
    explain: bool
    device: str
    target: str | None
    threads: int | None
    latency_ms: int
    enhance: str
    min_frames: int
    page: str | None


@click.command(name="s3clip-run", cls=Command)
@click.argument("sources", nargs=-1, metavar="[NAME=]URL@PLATFORM...")
@click.option(
    "--site",
    type=_PATH,
    metavar="FILE.toml",
    help="Cameras, outputs and settings in one file, see docs/operations.md; instead of sources and options.",
)
@click.option("--bundle", type=_PATH, metavar="DIR", help="Folder made by s3clip-export.")
@click.option(
    "--gallery",
    metavar="FILE|URL",
    help="The known persons, also postgresql://...; without it nobody is named.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="Cosine from which a match counts, in place of the gallery's calibrated ones.",
)
@click.option(
    "--detector",
    "detectors",
    multiple=True,
    metavar="[NAME=]DETECTOR",
    help="background (default; fixed cameras only), a network PATH.onnx or the folder of s3clip-export "
    "detector, MOT boxes PATH.txt, or JSON lines: -, unix:PATH, tcp:HOST:PORT. "
    "Repeat it with NAME= for single sources.",
)
@click.option("--tiles", metavar="ROWSxCOLS", help="Also search frames in tiles with the network, e.g. 2x2.")
@click.option(
    "--tracker",
    type=click.Choice(["bytetrack", "botsort"]),
    help="botsort follows a moving camera; by default it is used for @aerial.",
)
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
@click.option("--explain", is_flag=True, help="Put the chosen frames and their qualities into each event.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--target",
    metavar="NAME",
    help="Which graphs of the bundle, like tensorrt-fp16; chosen by the device else.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each network; all by default.")
@click.option(
    "--latency-ms",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Budget of a look at a live tracklet; super-resolution goes first when it is missed.",
)
@click.option(
    "--enhance",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Super-resolution of small persons.",
)
@click.option(
    "--min-frames",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Leave out tracklets seen in fewer frames; the summary counts them. The tracker uses one more.",
)
@click.option("--page", metavar="HOST:PORT", help="Serve the status page, such as 127.0.0.1:8765.")
@click.option("--demo", is_flag=True, help="Run the bundled synthetic example. Takes no sources.")
@click.option("--out", type=_PATH, metavar="DIR", help="Where --demo writes; s3clip-demo by default.")
def main(
    sources: tuple[str, ...],
    site: Path | None,
    bundle: Path | None,
    gallery: str | None,
    threshold: float | None,
    detectors: tuple[str, ...],
    tiles: str | None,
    tracker: str | None,
    events: str | None,
    annotate: Path | None,
    contact_sheet: Path | None,
    embedding: bool,
    explain: bool,
    device: str,
    target: str | None,
    threads: int | None,
    latency_ms: int,
    enhance: str,
    min_frames: int,
    page: str | None,
    demo: bool,
    out: Path | None,
) -> None:
    """Find persons in video, follow them, and say who they are.

    A source is a video file, a folder of pictures, an rtsp or http address, a device or gst:PIPELINE, then
    @ground or @aerial. docs/events.md describes the events. Ctrl-C ends in order: what was seen is written.
    """
    options = RunOptions(
        sources, bundle, gallery, threshold, detectors, tiles, tracker, events, annotate, embedding, explain,
        device, target, threads, latency_ms, enhance, min_frames, page,
    )  # fmt: skip
    from s3clip_runtime.cli.signals import stop_on_signals
    from s3clip_runtime.cli.threads import one_thread_for_algebra

    one_thread_for_algebra()
    if out is not None and not demo:
        raise ConfigError("--out belongs to --demo; use --events, --annotate and --contact-sheet")
    reload = threading.Event()
    with stop_on_signals("what was seen is still told", None if site is None else reload) as stop:
        if demo:
            _refuse_others(options, site, contact_sheet, "--demo brings its own videos and writes to --out")
            from s3clip_runtime.cli.demo import run_demo

            run_demo(out or Path("s3clip-demo"), bundle, threshold, device, threads, stop)
            return
        from s3clip_runtime.cli.options import site_from_options
        from s3clip_runtime.cli.site import run_site
        from s3clip_runtime.site.load import load_site

        if site is None:
            run_site(site_from_options(options), stop, contact_sheet=contact_sheet)
        else:
            _refuse_others(options, None, None, "--site FILE says it all")
            run_site(load_site(site), stop, contact_sheet=contact_sheet, follow=(site, reload))


def _refuse_others(options: RunOptions, site: Path | None, sheet: Path | None, why: str) -> None:
    """The options that a demo or a site file has no use for."""
    given = {
        "a source": options.sources,
        "--site": site,
        "--gallery": options.gallery,
        "--detector": options.detectors,
        "--tiles": options.tiles,
        "--tracker": options.tracker,
        "--events": options.events,
        "--annotate": options.annotate,
        "--contact-sheet": sheet,
        "--embedding": options.embedding,
        "--explain": options.explain,
        "--target": options.target,
        "--page": options.page,
    }
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise ConfigError(f"{why}; leave out {', '.join(wrong)}")
