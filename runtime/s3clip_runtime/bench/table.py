"""A report as text: one table for the terminal, and the words that it shares with the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from s3clip_runtime.bench.records import BenchReport, ContenderRow, Machine, StageRow

BUSY: Final = 0.03
"""Share of the cores in other hands from which times are doubtful; ratios within a round suffer less."""


def lines(report: BenchReport) -> Iterator[str]:
    """The table: machine, stages, contenders, galleries, cameras, ceilings, and what did not run."""
    yield machine_text(report.machine)
    yield f"bundle {report.bundle}; {data_text(report)}; speed-ups over {report.reference}"
    yield from _stage_lines(report)
    yield from _contender_lines(report)
    for row in report.galleries:
        yield (
            f"gallery {row.prototypes:>7} prototypes of {row.people} people, top {row.top}: "
            f"p50 {row.latency.p50_ms:.2f}, p95 {row.latency.p95_ms:.2f}, p99 {row.latency.p99_ms:.2f} ms"
        )
    for camera in report.cameras:
        yield (
            f"cameras {camera.cameras:>3} at {camera.frame_rate:g} fps with {camera.contender}: "
            f"{camera.frames_per_s:.1f} frames/s, {camera.cores_used:.2f} cores, "
            f"{'sustained' if camera.sustained else 'NOT sustained'}"
        )
    for ceiling in report.ceilings:
        yield f"ceiling {ceiling.name}: {ceiling.gflops:.0f} GFLOPS"
    for name, reason in report.refused.items():
        yield f"not run: {name}: {reason}"
    warning = busy_text(report)
    if warning:
        yield warning


def machine_text(machine: Machine) -> str:
    """The machine in one line."""
    parts = [machine.cpu, f"{machine.cores} cores"]
    parts += [] if machine.memory_bytes is None else [f"{machine.memory_bytes / 2**30:.0f} GiB"]
    parts += [] if machine.gpu is None else [f"{machine.gpu}, driver {machine.driver}"]
    parts += [machine.system, f"Python {machine.python}"]
    parts += [f"{name} {version}" for name, version in machine.versions.items()]
    return ", ".join(parts)


def data_text(report: BenchReport) -> str:
    """What the clips were, a clause."""
    words = report.data or "clips not named"
    return f"{words} (synthetic)" if report.synthetic else words


def busy_text(report: BenchReport) -> str | None:
    """A warning if other processes took more than `BUSY` of the cores while whole tracklets were timed."""
    shares = [row.foreign_load for row in report.stages if row.stage == "tracklet"]
    if not shares or max(shares) <= BUSY:
        return None
    return (
        f"other processes took up to {100 * max(shares):.0f} % of the cores: take ratios and not times, "
        "or measure again on a quiet machine"
    )


def speedup_text(row: StageRow) -> str:
    """Median and quartiles, empty for the reference."""
    spread = row.speedup
    return "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def bytes_text(count: int | None) -> str:
    """Megabytes, 10^6."""
    return "-" if count is None else f"{count / 1e6:.0f} MB"


def number_text(value: float | None, form: str) -> str:
    """A number in its form, or a dash."""
    return "-" if value is None else format(value, form)


def _stage_lines(report: BenchReport) -> Iterator[str]:
    yield (
        f"{'contender':<16}{'stage':<10}{'crops':>6}{'clips':>6}{'thr.':>5}{'first':>10}{'p50':>10}{'p95':>10}"
        f"{'p99':>10}{'CPU ms':>10}{'per s':>9}  {'speed-up':<20}{'others':>7}"
    )
    for row in report.stages:
        t = row.latency
        yield (
            f"{row.contender:<16}{row.stage:<10}{row.crops:>6}{row.clips:>6}{row.threads:>5}"
            f"{t.first_ms:>10.2f}{t.p50_ms:>10.2f}{t.p95_ms:>10.2f}{t.p99_ms:>10.2f}{row.cpu_ms:>10.2f}"
            f"{row.tracklets_per_s:>9.2f}  {speedup_text(row):<20}{100 * row.foreign_load:>5.0f} %"
        )


def _contender_lines(report: BenchReport) -> Iterator[str]:
    yield (
        f"{'contender':<16}{'device':<7}{'files':>9}{'cold ms':>10}{'peak':>10}{'J/tracklet':>12}"
        f"{'cos. mean':>12}{'cos. min':>12}{'top-1':>8}"
    )
    for row in report.contenders:
        yield (
            f"{row.contender:<16}{row.device:<7}{bytes_text(row.file_bytes):>9}"
            f"{number_text(row.cold_start_ms, '.0f'):>10}{bytes_text(row.peak_memory_bytes):>10}"
            f"{number_text(row.energy_j, '.2f'):>12}{_accuracy_text(row)}"
        )
    for source in dict.fromkeys(row.energy_source for row in report.contenders):
        yield f"energy: {source}"


def _accuracy_text(row: ContenderRow) -> str:
    return (
        f"{number_text(row.cosine_mean, '.7f'):>12}{number_text(row.cosine_min, '.7f'):>12}"
        f"{number_text(row.top1_agreement, '.3f'):>8}"
    )
