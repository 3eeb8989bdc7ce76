"""The least time that a bundle's graphs can take on devices that were not at hand, from their files alone.

    python -m benchmarks.roofline BUNDLE [--report s3clip-bench.json [--add-costs]] [--page FILE]

This is arithmetic on operations, bytes and peaks, and nothing of it is measured: it says what no runtime can
beat, and not what one reaches. A report of `s3clip-bench` on one of the devices adds what was measured there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import click
import onnx

from benchmarks.roofline_bounds import STAGES, Row, paper_rows
from benchmarks.roofline_page import page, table
from benchmarks.roofline_peaks import DEVICES, Device, Precision
from s3clip_export.cost import GraphCost, graph_cost
from s3clip_runtime.bench.records import BenchReport, CostRow, Crops
from s3clip_runtime.bench.report_file import read_report, write_report
from s3clip_runtime.bench.table import busy_text
from s3clip_runtime.cli.errors import Command
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import PLAIN, Role
from s3clip_runtime.inference.spec import CLIP_LENGTH

OPPONENTS: Mapping[str, Precision] = {"torch-eager": "fp32", "torch-compile": "fp32"}
"""Contenders whose names do not end in their precision."""


def bundle_costs(bundle: Bundle, clips: int) -> dict[Role, GraphCost]:
    """Costs of the bundle's float32 graphs for a call of so many clips."""
    batches: dict[Role, int] = {
        "enhance": clips * CLIP_LENGTH,
        "patchify": clips * CLIP_LENGTH,
        "encode": clips,
    }
    return {role: graph_cost(onnx.load(bundle.file(role, PLAIN)), batch) for role, batch in batches.items()}


def cost_rows(costs: Mapping[Role, GraphCost]) -> tuple[CostRow, ...]:
    """As a report keeps them.

    Args:
        costs: of one tracklet.
    """
    return tuple(
        CostRow(
            graph=role, nodes=cost.nodes, flops=cost.flops, weight_bytes=cost.weight_bytes,
            activation_bytes=cost.activation_bytes,
        )
        for role, cost in costs.items()
    )  # fmt: skip


def device_of(report: BenchReport, name: str | None = None) -> Device:
    """The device that a report was measured on.

    Raises:
        ConfigError: none of the table is, or `name` is none.
    """
    known = ", ".join(device.name for device in DEVICES)
    if name is not None:
        found = next((device for device in DEVICES if device.name == name), None)
        if found is None:
            raise ConfigError(f"--device {name}: the table has no such device; use one of {known}")
        return found
    # A board's name, where there is one, is more exact than its GPU's.
    machine = f"{report.machine.cpu} {report.machine.gpu or ''} "
    for device in DEVICES:
        if (device.threads is None) == (report.machine.gpu is not None) and any(
            word in machine for word in device.words
        ):
            return device
    raise ConfigError(
        f"the report is of {machine.strip()}, and the table has no such device; name the nearest of {known} "
        "with --device"
    )


def measured_rows(report: BenchReport, device: Device, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The report's stages beside their paper, and the contenders that there is none for.

    Args:
        report: of `device`.
        rows: on paper, for all clips of the report.
    """
    on_paper = {(r.contender, r.stage, r.crops, r.clips): r for r in rows if r.device == device.name}
    ran_on = {row.contender: row.device for row in report.contenders}
    found, left = [], set()
    for stage in report.stages:
        crops: Crops = "lr" if stage.stage == "encode" else stage.crops  # it does not see them
        precision = OPPONENTS.get(stage.contender, stage.contender.rpartition("-")[2])
        row = on_paper.get((f"paper-{precision}", stage.stage, crops, stage.clips))
        on_cpu = ran_on.get(stage.contender, "cpu" if report.machine.gpu is None else "cuda") == "cpu"
        fits = device.threads == stage.threads if on_cpu else device.threads is None
        if row is not None and fits:
            found.append(replace(row, contender=stage.contender, measured_ms=stage.latency.p50_ms))
        elif stage.stage in {name for name, _, _ in STAGES}:
            left.add(f"{stage.contender} with {stage.threads} threads")
    return found, sorted(left)


def clips_of(report: BenchReport | None) -> Iterator[int]:
    """One, and what the report has besides."""
    yield from sorted({1} | {stage.clips for stage in (report.stages if report else ())})


_PATH = click.Path(path_type=Path, exists=True)


@click.command(cls=Command, name="roofline")
@click.argument("bundle", type=_PATH)
@click.option("--report", "report_file", type=_PATH, help="JSON of s3clip-bench, measured on a device below.")
@click.option("--add-costs", is_flag=True, help="Write the graphs' costs into the report, for its page.")
@click.option("--device", help="Which one, where the report does not tell.")
@click.option("--page", "page_file", type=click.Path(path_type=Path), help="Also write it as Markdown.")
def main(
    bundle: Path, report_file: Path | None, add_costs: bool, device: str | None, page_file: Path | None
) -> None:
    """The least time that BUNDLE's graphs can take on devices on paper; analytic, never measured."""
    report = None if report_file is None else read_report(report_file)
    opened = Bundle.draft(bundle)  # a proof is about numbers, not about their cost
    costs, rows = {}, []
    for clips in clips_of(report):
        costs[clips] = bundle_costs(opened, clips)
        rows += paper_rows(costs[clips], clips)
    measured, left = ([], []) if report is None else measured_rows(report, device_of(report, device), rows)
    click.echo(table([*rows, *measured]))
    busy = None if report is None else busy_text(report)
    if busy is not None:
        click.echo(busy)
    if left:
        click.echo(f"not on paper, so left out: {', '.join(left)}")
    if add_costs:
        if report is None or report_file is None:
            raise ConfigError("--add-costs writes into a report; name it with --report")
        write_report(report_file, report.model_copy(update={"costs": cost_rows(costs[1])}))
    if page_file is not None:
        page_file.write_text(page(opened.manifest.name, costs[1], [*rows, *measured]), encoding="utf-8")


if __name__ == "__main__":
    main()
