"""The page on calibration: tables and sentences from the JSON files, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.calibration.pictures import draw
from benchmarks.calibration.records import (
    CalibrationReport,
    Figures,
    MethodRow,
    Methods,
    Stability,
    StabilityRow,
    StudyPart,
    best_static,
)
from s3clip_calib.plots import LEAST_LOSS
from s3clip_runtime.bench.records import Spread
from s3clip_runtime.bench.table import machine_text
from s3clip_runtime.inference.evidence import Interval

WORST = 5
"""Layers that are named."""

QUIET = 0.03
"""Share of the cores that others may take before times are in doubt."""

_INTRO = """# Results: calibration

Written by `python -m benchmarks.calibration page`; do not edit. It shows the encoder in 8 bits beside itself
in float32 (ONNX Runtime), on clips of people that no range comes from.

- `cosine`: of each clip's two embeddings. `centred`: the same after the mean of float32's was taken from
  both, which is stricter. `loss` is 1 - the mean centred cosine.
- `top-1`: share of clips with the same nearest neighbour. `tau`: Kendall's, of all others' similarities.
- `Rank-1`, `mAP`: less those of float32, in percentage points with 95 % bootstrap intervals.
- `bounds`: whether the gate's bounds of these figures hold. `gate`: whether the whole gate lets it pass,
  beside PyTorch and on held-out tracklets; a dash where it was not asked."""

_TIMES = """Milliseconds of `encode` for one clip with all usable cores, one call a round in turn, medians
with quartiles in brackets. All static int8 rows have the same operators, so the best one is timed for all.
fp8 is computed in float32 with rounded numbers here, and graphs with float16 are for GPUs: they have no
times."""

_STABILITY = """The same clips and all layers in int8, with ranges from other tracklets of the pool: by
`k-centre`, as `s3clip-calib` chooses, or drawn at random, with seeds {seeds}. Ranges are by {method}. Scales
are moved by the same factors in all of them. Of several seeds each cell tells the worst one, and for the loss
the least and the largest."""

_STUDY = """By {method}, measured on the first {tune} of the clips. Layers go to 8 bits in the order of loss
for each multiply-add; times are medians of `encode` on this CPU."""


def render(reports: Sequence[CalibrationReport], plots: Path) -> str:
    """The page, in Markdown.

    Args:
        reports: one or several, a section each.
        plots: folder beside the page for pictures, which are written.
    """
    blocks = [_INTRO]
    for report in reports:
        names = {what: f"{plots.name}/{name}" for what, name in draw(report, plots).items()}
        blocks += [f"## {report.name}: {report.setup.bundle}", _head(report)]
        if report.methods is not None:
            blocks += _methods(report.methods, names["methods"])
        if report.stability is not None:
            blocks += _stability(report.stability, names["stability"])
        for part in report.studies:
            blocks += _study(part, report, names)
    return "\n\n".join(blocks) + "\n"


def _head(report: CalibrationReport) -> str:
    setup = report.setup
    others = ", ".join(f"{name} {number}" for name, number in setup.versions.items())
    parts = [part for part in (report.methods, report.stability, *report.studies) if part is not None]
    days = sorted({f"{part.measured:%Y-%m-%d}" for part in parts})
    lines = [
        report.about,
        f"Measured {' and '.join(days) or 'not yet'} on {machine_text(setup.machine)}, {others}.",
        f"Instruction sets: {', '.join(setup.machine.isa) or 'none of note'}.",
        f"Data: `{setup.data}`, seed {setup.seed}: ranges of {len(setup.calibration)} tracklets, measured on "
        f"{len(setup.tune)} + {len(setup.held)} others.",
    ]
    return "\n".join(line for line in lines if line)


def _methods(methods: Methods, picture: str) -> Iterator[str]:
    yield "### Methods"
    yield f"![Loss by method]({picture})"
    header = [
        "way", "layers in 8 bits", "cosine mean", "min", "centred mean", "min", "top-1", "tau", "Rank-1",
        "mAP", "ONNX Runtime ms", "OpenVINO ms", "bounds", "gate",
    ]  # fmt: skip
    yield table(header, [_method_cells(row, methods.layers) for row in methods.rows])
    yield _TIMES + _disturbed(methods)
    best = best_static(methods.rows)
    if best.figures is not None:
        loss = 1 - best.figures.centred_mean
        yield f"The static int8 row with the least loss is `{best.name}`: {loss:.2g}."
    refusals = [f"* `{row.name}` is refused: {'; '.join(row.gate)}." for row in methods.rows if row.gate]
    refusals += [f"* `{name}` could not run here: {why}" for name, why in methods.refused.items()]
    if refusals:
        yield "\n".join(refusals)


def _disturbed(methods: Methods) -> str:
    text = f" The race had {methods.rounds} rounds"
    share = f"{100 * methods.foreign_load:.0f} %"
    if methods.foreign_load <= QUIET:
        return f"{text}; other processes took {share} of the cores."
    return f"{text}. **Disturbed**: other processes took {share} of the cores: read ratios, not times."


def _method_cells(row: MethodRow, layers: int) -> list[str]:
    return [
        row.name,
        "all that it knows" if row.layers is None else f"{row.layers} of {layers}",
        *_figure_cells(row.figures),
        _change(row.rank1_change),
        _change(row.map_change),
        _spread(row.ms.get("onnxruntime")),
        _spread(row.ms.get("openvino")),
        _bounds(row.faults),
        "-" if row.gate is None else "refuses" if row.gate else "passes",
    ]


def _figure_cells(figures: Figures | None) -> list[str]:
    if figures is None:
        return ["not finite"] * 6
    cosines = (figures.cosine_mean, figures.cosine_min, figures.centred_mean, figures.centred_min)
    return [
        *(f"{value:.6f}" for value in cosines),
        f"{figures.top1_agreement:.3f}",
        f"{figures.kendall_tau:.4f}",
    ]


def _change(change: Interval | None) -> str:
    if change is None:
        return "-"
    value, low, high = (100 * number for number in (change.value, change.low, change.high))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _spread(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.1f} ({spread.low:.1f}-{spread.high:.1f})"


def _bounds(faults: Sequence[str]) -> str:
    """The figures alone: their values stand in the same row."""
    return f"misses {', '.join(fault.split(' is ')[0] for fault in faults)}" if faults else "hold"


def _stability(stability: Stability, picture: str) -> Iterator[str]:
    seeds = sorted({row.seed for row in stability.rows})
    method = stability.method + (
        "" if stability.smoothing is None else f" with smoothing {stability.smoothing:g}"
    )
    yield "### Other tracklets"
    yield f"![Loss by tracklets]({picture})"
    yield _STABILITY.format(seeds=", ".join(map(str, seeds)), method=method)
    groups: dict[tuple[int, str], list[StabilityRow]] = {}
    for row in stability.rows:
        groups.setdefault((row.count, row.way), []).append(row)
    header = ["tracklets", "choice", "cosine min", "centred mean", "top-1", "loss"]
    yield table(header, [_stability_cells(*key, groups[key]) for key in sorted(groups)])
    for count in sorted({row.count for row in stability.rows}):
        chosen, drawn = (
            float(np.mean([_loss(row) for row in groups[count, way]])) for way in ("k-centre", "random")
        )
        yield (
            f"With {count} tracklets the mean loss is {chosen:.3g} by k-centre and {drawn:.3g} at random, "
            f"{drawn / max(chosen, LEAST_LOSS):.2f} times as much."
        )
    if stability.left_out:
        counts = " and ".join(map(str, stability.left_out))
        yield f"The pool has {stability.pool} tracklets: too few for {counts}."


def _stability_cells(count: int, way: str, rows: Sequence[StabilityRow]) -> list[str]:
    found = [row.figures for row in rows if row.figures is not None]
    if len(found) < len(rows):
        return [str(count), way, *["not finite"] * 4]
    losses = sorted(map(_loss, rows))
    return [
        str(count),
        way,
        f"{min(one.cosine_min for one in found):.6f}",
        f"{min(one.centred_mean for one in found):.6f}",
        f"{min(one.top1_agreement for one in found):.3f}",
        f"{losses[0]:.3g} to {losses[-1]:.3g}",
    ]


def _loss(row: StabilityRow) -> float:
    return float("nan") if row.figures is None else 1 - row.figures.centred_mean


def _study(part: StudyPart, report: CalibrationReport, names: Mapping[str, str]) -> Iterator[str]:
    method = part.method + ("" if part.smoothing is None else f" with smoothing {part.smoothing:g}")
    yield f"### Layers in {part.bits}"
    yield _STUDY.format(method=method, tune=len(report.setup.tune))
    yield f"![Loss against layers in {part.bits}]({names[f'front {part.bits}']})"
    targets = list(part.points[0].ms)
    header = [
        "multiply-adds in 8 bits",
        "layers",
        "cosine mean",
        "min",
        "centred mean",
        "min",
        "top-1",
        "tau",
    ]
    header += [f"{target} ms" for target in targets] + ["bounds", "taken by"]
    rows = []
    for place, point in enumerate(part.points):
        takers = [target for target, taken in part.taken.items() if taken == place]
        rows.append(
            [
                f"{100 * point.share:.1f} %",
                str(len(point.layers)),
                *_figure_cells(point.figures),
                *(f"{point.ms[target]:.1f}" for target in targets),
                _bounds(point.faults),
                ", ".join(takers) or "-",
            ]
        )
    yield table(header, rows)
    yield f"![Loss of each layer alone in {part.bits}]({names[f'layers {part.bits}']})"
    worst = sorted(part.layers, key=lambda row: row.figures.centred_mean)[:WORST]
    named = ", ".join(f"`{row.layer}` {1 - row.figures.centred_mean:.2g}" for row in worst)
    yield f"The layers that lose most when they alone are in {part.bits}: {named}."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
