"""A report as a page in Markdown, for people who were not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from s3clip_runtime.bench.cameras import camera_count
from s3clip_runtime.bench.records import BenchReport
from s3clip_runtime.bench.table import (
    busy_text,
    bytes_text,
    data_text,
    machine_text,
    number_text,
    speedup_text,
)


def render(report: BenchReport, plots: Sequence[str] = ()) -> str:
    """The page.

    Args:
        report: what was measured.
        plots: links to its pictures, relative to where the page will lie.
    """
    blocks = [
        f"# Speed of bundle {report.bundle}",
        _head(report),
        *(f"![{_title(plot)}]({plot})" for plot in plots),
        *_section("Tracklets", _stage_table(report, whole=True)),
        *_section("Stages", _stage_table(report, whole=False)),
        *_section("Start, memory, energy, accuracy", _contender_table(report)),
        *_section("Cameras", _camera_table(report)),
        *_section("Galleries", _gallery_table(report)),
        *_section("Ceilings of the machine", _ceiling_table(report)),
        *_section("Graphs on paper", _cost_table(report)),
    ]
    if report.refused:
        reasons = "\n".join(f"* `{name}`: {_cell(reason)}" for name, reason in report.refused.items())
        blocks += ["## Not run here", reasons]
    return "\n\n".join(blocks) + "\n"


def _head(report: BenchReport) -> str:
    lines = [
        f"Written by `s3clip-bench page` from a report of {report.created:%Y-%m-%d %H:%M} UTC; do not edit.",
        f"Machine: {machine_text(report.machine)}.",
    ]
    if report.machine.isa:
        lines.append(f"Instruction sets: {', '.join(report.machine.isa)}.")
    if report.stages:
        lines.append(f"Clips: {data_text(report)}. Speed-ups are medians of ratios to `{report.reference}`")
        lines.append("within the same round, with quartiles.")
    if report.synthetic:
        lines.append("**Synthetic data**: the pictures were drawn or made up. Times hold for real ones too,")
        lines.append("as every crop is resized to one size; accuracy beside PyTorch does not.")
    warning = busy_text(report)
    if warning:
        lines.append(f"**Disturbed**: {warning}.")
    return "\n".join(lines)


def _section(title: str, table: Sequence[str]) -> Iterator[str]:
    """Heading and table; nothing where the table has no row."""
    if len(table) > 2:
        yield f"## {title}"
        yield "\n".join(table)


def _stage_table(report: BenchReport, *, whole: bool) -> list[str]:
    header = ["contender", "stage", "crops", "clips", "threads", "first", "p50", "p95", "p99", "CPU"]
    header += ["tracklets/s", "speed-up", "others"]
    units = {"first", "p50", "p95", "p99", "CPU"}
    rows = [
        [
            f"`{row.contender}`",
            row.stage,
            row.crops.upper(),
            str(row.clips),
            str(row.threads),
            f"{row.latency.first_ms:.2f}",
            f"{row.latency.p50_ms:.2f}",
            f"{row.latency.p95_ms:.2f}",
            f"{row.latency.p99_ms:.2f}",
            f"{row.cpu_ms:.2f}",
            f"{row.tracklets_per_s:.2f}",
            speedup_text(row) or "1",
            f"{100 * row.foreign_load:.0f} %",
        ]
        for row in report.stages
        if (row.stage == "tracklet") == whole
    ]
    return _table([f"{word} ms" if word in units else word for word in header], rows)


def _contender_table(report: BenchReport) -> list[str]:
    header = ["contender", "device", "files", "cold start ms", "peak memory", "J a tracklet", "energy from"]
    header += ["cosine mean", "cosine min", "top-1"]
    rows = [
        [
            f"`{row.contender}`",
            row.device,
            bytes_text(row.file_bytes),
            number_text(row.cold_start_ms, ".0f"),
            bytes_text(row.peak_memory_bytes),
            number_text(row.energy_j, ".2f"),
            row.energy_source,
            number_text(row.cosine_mean, ".7f"),
            number_text(row.cosine_min, ".7f"),
            number_text(row.top1_agreement, ".3f"),
        ]
        for row in report.contenders
    ]
    return _table(header, rows)


def _camera_table(report: BenchReport) -> list[str]:
    header = ["contender", "file cameras", "fps each", "frames/s", "cores used", "dropped", "sustained"]
    rows = [
        [
            f"`{row.contender}`",
            str(row.cameras),
            f"{row.frame_rate:g}",
            f"{row.frames_per_s:.1f}",
            f"{row.cores_used:.2f}",
            str(row.dropped),
            "yes" if row.sustained else "no",
        ]
        for row in report.cameras
    ]
    table = _table(header, rows)
    if rows:
        count = camera_count(report.cameras)
        table += ["", f"Decoded from files. The best run's frames would do for {count} such cameras."]
    return table


def _gallery_table(report: BenchReport) -> list[str]:
    rows = [
        [
            str(row.people),
            str(row.prototypes),
            str(row.top),
            f"{row.latency.p50_ms:.2f}",
            f"{row.latency.p95_ms:.2f}",
            f"{row.latency.p99_ms:.2f}",
        ]
        for row in report.galleries
    ]
    return _table(["people", "prototypes", "top", "p50 ms", "p95 ms", "p99 ms"], rows)


def _ceiling_table(report: BenchReport) -> list[str]:
    rows = [[ceiling.name, f"{ceiling.gflops:.0f}"] for ceiling in report.ceilings]
    return _table(["what", "GFLOPS"], rows)


def _cost_table(report: BenchReport) -> list[str]:
    header = ["graph", "nodes", "GFLOP a tracklet", "weights", "activations"]
    rows = [
        [
            f"`{row.graph}`",
            str(row.nodes),
            f"{row.flops / 1e9:.2f}",
            bytes_text(round(row.weight_bytes)),
            bytes_text(round(row.activation_bytes)),
        ]
        for row in report.costs
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Two lines of head, and one a row."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines]


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _title(plot: str) -> str:
    return plot.rpartition("/")[2].rpartition(".")[0].replace("-", " ").capitalize()
