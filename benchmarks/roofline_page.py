"""The roofline on paper as a table for a terminal, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.roofline_bounds import Row
from benchmarks.roofline_peaks import DEVICES
from s3clip_export.cost import GraphCost
from s3clip_runtime.inference.manifest import Role

_COLUMNS = (
    "device", "contender", "stage", "crops", "clips", "latency p50 ms", "compute ms", "weights ms",
    "activations ms", "roofline ms", "fused ms", "unfused ms", "reached",
)  # fmt: skip
"""The first ones are those of a report's `StageRow`; the others are analytic, but for the last."""

_WORDS = 4
"""Columns of text, which begin at the left."""


def table(rows: Sequence[Row]) -> str:
    """For a terminal; a dash where nothing was measured."""
    lines = [_COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < _WORDS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def page(name: str, costs: Mapping[Role, GraphCost], rows: Sequence[Row]) -> str:
    """Markdown.

    Args:
        name: of the bundle.
        costs: of one tracklet.
        rows: on paper and measured.
    """
    measured = [row for row in rows if row.measured_ms is not None]
    graphs = [
        (
            role, f"{cost.nodes:,}", f"{cost.product_flops / 1e9:.2f}", f"{cost.linear_flops / 1e9:.2f}",
            f"{(cost.flops - cost.product_flops) / 1e9:.2f}", f"{cost.weight_bytes / 1e6:.1f}",
            f"{cost.activation_bytes / 1e9:.2f}", ", ".join(cost.unknown) or "none",
        )
        for role, cost in costs.items()
    ]  # fmt: skip
    peaks = [
        (
            device.name, ", ".join(f"{kind} {rate:g}" for kind, rate in device.tflops.items()),
            f"{device.bandwidth_gb_s:g}", device.source, device.doubt or "none",
        )
        for device in DEVICES
    ]  # fmt: skip
    parts = [
        f"# Roofline on paper: {name}",
        "Written by `python -m benchmarks.roofline BUNDLE --page FILE`; do not edit. Operations and bytes "
        "are counted in the bundle's float32 graphs and divided by the peaks of devices. **Nothing here was "
        "measured on these devices**, but for rows with a latency.",
        "## Counted, per tracklet",
        _markdown(
            ("graph", "nodes", "products GFLOP", "with weights", "other GFLOP", "weights MB, float32",
             "activations GB, float32, unfused", "operators without a count"),
            graphs,
        ),
        _CONVENTIONS,
        *(f"### {role}\n\n{_breakdown(cost)}" for role, cost in costs.items()),
        "## Peaks",
        _markdown(("device", "dense, 10^12 a second", "GB/s", "source", "in doubt"), peaks),
        _PEAKS,
        "## Bounds",
        _BOUNDS,
        _markdown(_COLUMNS, [_cells(row) for row in rows if row.measured_ms is None]),
        *(["## Measured", _markdown(_COLUMNS, [_cells(row) for row in measured])] if measured else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


_CONVENTIONS = """A multiply-accumulate is two FLOPs. Other arithmetic is one FLOP an element and step, a
fused operator counted as what it is made of. Activations are counted as if every node read its inputs and
wrote its outputs in memory; views move nothing. The module `s3clip_export.cost` has the conventions."""

_PEAKS = """The figures were checked against public copies of these documents and tables that quote them, as
NVIDIA's own files were not at hand. "In doubt" is what they do not say."""

_BOUNDS = """- `compute`: products at the peak. fp16 and bf16: all of them; int8: the linear layers of
  `encode`, with everything else in 16 bits, as super-resolution in int8 fails the gate.
- `weights`, `activations`: reading the weights once; each operator moving its activations, unfused, in
  16 bits.
- `roofline`: the longer of compute and the traffic of weights, inputs and outputs. No runtime is faster.
- `unfused`: node by node the longer of compute and traffic: a runtime that fuses nothing, while activations
  do not fit its caches.
- `fused`: the same of products, Softmax and normalisations alone: a runtime that fuses all other nodes into
  these. What it needs beyond the roofline only kernels of whole blocks save, such as fused attention.
- `reached`: roofline by latency, where a report has one.

A tracklet is `enhance` and `encode` for LR crops, `patchify` and `encode` for HR ones."""


def _breakdown(cost: GraphCost) -> str:
    """Operators by what they move, without those that neither move nor compute."""
    heavy = sorted(cost.by_op.items(), key=lambda item: -item[1].activation_bytes)
    rows = [
        (
            name, str(part.nodes), f"{part.flops / 1e9:.3f}", f"{part.weight_bytes / 1e6:.2f}",
            f"{part.activation_bytes / 1e6:.1f}",
        )
        for name, part in heavy
        if part.flops or part.activation_bytes
    ]  # fmt: skip
    return _markdown(("operator", "nodes", "GFLOP", "weights MB", "activations MB"), rows)


def _cells(row: Row) -> tuple[str, ...]:
    bound = row.bound
    times = (
        bound.compute_ms, bound.weights_ms, bound.activations_ms, bound.roofline_ms, bound.fused_ms,
        bound.unfused_ms,
    )  # fmt: skip
    return (
        row.device, row.contender, row.stage, row.crops, str(row.clips),
        "-" if row.measured_ms is None else f"{row.measured_ms:.2f}",
        *(f"{time:.3f}" for time in times),
        "-" if row.reached is None else f"{row.reached:.0%}",
    )  # fmt: skip


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
