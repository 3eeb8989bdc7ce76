"""s3clip-bench: how fast a bundle is on this device, and whether it became slower.

The heavy imports sit in the functions: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.errors import Group
from s3clip_runtime.errors import BundleError, ConfigError, DataError

if TYPE_CHECKING:
    from s3clip_runtime.bench.records import BenchReport
    from s3clip_runtime.inference.bundle import Bundle

_PATH = click.Path(path_type=Path)
_DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)


def _numbers(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers with commas between them, sorted, each once."""
    if text is None:
        return None
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers; write for example 1,8") from None


@click.group(name="s3clip-bench", cls=Group)
def main() -> None:
    """Measure a bundle on this device, and compare measurements. docs/benchmarks.md tells each number."""


@main.command()
@click.argument("bundle", type=_PATH)
@click.option(
    "-o", "--output", type=_PATH, default=Path("s3clip-bench.json"), show_default=True, help="The report."
)
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Such as onnx-fp32; all by default.")
@_DEVICE
@click.option("--clips", callback=_numbers, default="1,8", show_default=True, help="Tracklets of one call.")
@click.option("--threads", callback=_numbers, metavar="NUMBERS", help="CPU threads; 1 and all by default.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Of each setting.")
@click.option(
    "--galleries",
    callback=_numbers,
    default="1000,10000,100000",
    show_default=True,
    help="Prototypes to search among; 100000 of full size need 2 GB.",
)
@click.option(
    "--plots", type=_PATH, metavar="DIR", help="Folder of the pictures; beside the report by default."
)
def run(
    bundle: Path,
    output: Path,
    targets: tuple[str, ...],
    device: str,
    clips: tuple[int, ...],
    threads: tuple[int, ...] | None,
    rounds: int,
    galleries: tuple[int, ...],
    plots: Path | None,
) -> None:
    """Measure all targets of BUNDLE that run here, in interleaved rounds. Takes minutes.

    Writes a JSON report and pictures, prints one table. Ctrl-C writes nothing. How fast the targets were also
    goes into BUNDLE: --device auto takes the fastest one on this machine from then on.
    """
    from s3clip_runtime.bench.measure import Choices, calls_of, find_lineup, measure
    from s3clip_runtime.bench.plots import check_installed
    from s3clip_runtime.bench.report_file import check_folder, check_writable, write_report
    from s3clip_runtime.bench.table import lines
    from s3clip_runtime.inference.bundle import Bundle
    from s3clip_runtime.inference.cpus import usable_cpus
    from s3clip_runtime.inference.manifest import Target

    wanted = tuple(map(Target.parse, targets)) or None
    counts = (1, usable_cpus()) if threads is None else threads
    choices = Choices(device, wanted, clips, tuple(sorted(set(counts))), rounds, galleries)
    choices.check()
    check_writable(output)
    if plots is not None:
        check_installed()
        check_folder(plots)
    opened = Bundle.open(bundle)
    lineup = find_lineup(opened, choices, lambda name: click.echo(f"starting {name}", err=True))
    for name, reason in lineup.refused.items():
        click.echo(f"{name} is left out: {reason}", err=True)
    with _bar(calls_of(choices, len(lineup.contenders)), "call") as tick:
        report = measure(opened, choices, lineup, tick)
    write_report(output, report)
    click.echo("\n".join(lines(report)))
    click.echo(f"report: {output}", err=True)
    _record(opened, report)
    _draw(report, plots or output.with_name(f"{output.stem}-plots"))


@main.command()
@click.argument("bundle", type=_PATH)
@click.argument("video", type=_PATH)
@click.option(
    "--fps",
    type=click.FloatRange(0, min_open=True),
    default=7.0,
    show_default=True,
    help="Frames a second that one camera would send.",
)
@click.option(
    "--detector", default="background", show_default=True, help="background, a network or MOT boxes FILE.txt."
)
@click.option("--platform", type=click.Choice(["ground", "aerial"]), default="ground", show_default=True)
@click.option("--target", metavar="NAME", help="Which graphs of the bundle; chosen by the device else.")
@_DEVICE
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each network; all by default.")
@click.option("--report", type=_PATH, metavar="FILE", help="Also put the rows into this report of `run`.")
def cameras(
    bundle: Path,
    video: Path,
    fps: float,
    detector: str,
    platform: str,
    target: str | None,
    device: str,
    threads: int | None,
    report: Path | None,
) -> None:
    """How many file cameras like VIDEO this device sustains: 1, 2, 4, ... until one is too many.

    Copies of the file are decoded, tracked and embedded as fast as it goes. Network streams cost more.
    """
    from s3clip_runtime.bench.cameras import camera_count, check_task, sustained_cameras
    from s3clip_runtime.bench.replay import Task
    from s3clip_runtime.bench.report_file import check_writable, read_report, write_report
    from s3clip_runtime.inference.bundle import Bundle

    task = Task(str(bundle), str(video), platform, detector, 1, device, target, threads)
    check_task(task, fps)
    space = Bundle.open(bundle).manifest.embedding_space
    before = None if report is None else _report_of(read_report(report), report, space)
    if report is not None:
        check_writable(report)
    rows = []
    for row in sustained_cameras(
        task, fps, tick=lambda count: click.echo(f"{count} file cameras ...", err=True)
    ):
        rows.append(row)
        click.echo(
            f"{row.cameras:>3} cameras: {row.frames_per_s:>8.1f} frames/s, {row.cores_used:.2f} cores used, "
            f"{row.dropped} dropped, {'sustained' if row.sustained else 'not sustained'} at {fps:g} fps"
        )
    click.echo(f"{camera_count(rows)} cameras at {fps:g} fps, decoded from files, with {rows[0].contender}")
    if report is not None and before is not None:
        write_report(report, before.model_copy(update={"cameras": tuple(rows)}))


@main.command()
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH)
@click.option(
    "--worst",
    type=click.FloatRange(1),
    default=1.10,
    show_default=True,
    help="Times slower that a row may be.",
)
@click.pass_context
def compare(ctx: click.Context, old: Path, new: Path, worst: float) -> None:
    """Compare two reports row by row.

    Exit code 0 if nothing is slower than --worst, 1 if something is, 2 if they cannot be compared.
    """
    from s3clip_runtime.bench.compare import compare as compared
    from s3clip_runtime.bench.compare import lines
    from s3clip_runtime.bench.report_file import read_report

    found = compared(read_report(old), read_report(new))
    click.echo("\n".join(lines(found, worst)))
    ctx.exit(1 if found.slower(worst) else 0)


@main.command()
@click.argument("report", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, metavar="FILE.md", help="The page.")
def page(report: Path, output: Path) -> None:
    """Write a report as a Markdown page with pictures in a folder beside it."""
    from s3clip_runtime.bench.page import render
    from s3clip_runtime.bench.plots import draw
    from s3clip_runtime.bench.report_file import check_writable, read_report

    found = read_report(report)
    check_writable(output)
    plots = draw(found, output.with_name(f"{output.stem}-plots"))
    links = [f"{plot.parent.name}/{plot.name}" for plot in plots]
    output.write_text(render(found, links), "utf-8")
    click.echo(f"page: {output}", err=True)


def _draw(report: BenchReport, folder: Path) -> None:
    """The pictures, or on standard error why there are none: numbers need no matplotlib."""
    from s3clip_runtime.bench.plots import check_installed, draw

    try:
        check_installed()
    except ConfigError as missing:
        click.echo(f"no pictures: {missing}", err=True)
    else:
        click.echo(f"pictures: {', '.join(map(str, draw(report, folder)))}", err=True)


def _record(bundle: Bundle, report: BenchReport) -> None:
    """Put the speeds into the bundle and say what that changes, or on standard error why it was not done."""
    from s3clip_runtime.bench.speeds import record_speeds, speeds_of, winner_text

    try:
        speeds = speeds_of(report)
        bundle = record_speeds(bundle, speeds)
    except (BundleError, ConfigError) as error:
        click.echo(f"the bundle keeps no speeds of this run: {error}", err=True)
    else:
        click.echo(winner_text(bundle, speeds))


def _report_of(report: BenchReport, path: Path, space: str) -> BenchReport:
    if report.embedding_space != space:
        raise DataError(
            f"{path}: is of another bundle ({report.bundle}, embedding space {report.embedding_space[:12]}; "
            f"this one has {space[:12]}); name the report of this bundle"
        )
    return report


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error; what it yields counts one and shows a name."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, leave=False, disable=None) as bar:

        def tick(name: str) -> None:
            bar.set_description(name, refresh=False)
            bar.update(1)

        yield tick
