"""Pictures of the page on calibration, as small PNG files: 85 bars with hatches would be 1 MB of SVG."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import onnx
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.calibration.records import CalibrationReport, Methods, Stability, StudyPart
from s3clip_calib.candidates import Timed
from s3clip_calib.front import Point
from s3clip_calib.layers import Layer
from s3clip_calib.methods import Prepared
from s3clip_calib.plots import LEAST_LOSS, front_figure, sensitivity_figure
from s3clip_calib.sensitivity import Sensitivity
from s3clip_calib.study import Study
from s3clip_runtime.inference.manifest import Target

DPI = 110
COLOURS = 64

MARKS = {"k-centre": ("o", "#4477aa", -0.06), "random": ("x", "#cc3311", 0.06)}
"""Way of choice to its marker, colour and shift beside its count, in shares of it."""


def draw(report: CalibrationReport, folder: Path) -> dict[str, str]:
    """Draw what the report has numbers for; files of an earlier run are replaced.

    Returns:
        "methods", "stability", "front BITS" and "layers BITS" to the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Callable[[], Figure]] = {}
    if report.methods is not None:
        made["methods"] = partial(methods_figure, report.methods)
    if report.stability is not None:
        made["stability"] = partial(stability_figure, report.stability)
    for part in report.studies:
        made[f"front {part.bits}"] = partial(_front, part)
        made[f"layers {part.bits}"] = partial(_layers, part)
    names = {what: f"{report.name}-{what.replace(' ', '-')}.png" for what in made}
    with matplotlib.rc_context({"font.size": 9}):
        for what, figure in made.items():
            draft = folder / f".{names[what]}.{os.getpid()}"
            draft.write_bytes(_png(figure()))
            draft.replace(folder / names[what])
    return names


def _png(figure: Figure) -> bytes:
    """With a palette, which is a third of the size."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(packed, format="png", optimize=True)
    return packed.getvalue()


def methods_figure(methods: Methods) -> Figure:
    """A line a row, from the mean loss to that of the worst clip."""
    rows = [(row.name, row.figures, bool(row.faults)) for row in methods.rows if row.figures is not None]
    figure = Figure(figsize=(8, 1 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, figures, refused) in enumerate(rows):
        ends = [max(1 - value, LEAST_LOSS) for value in (figures.centred_mean, figures.centred_min)]
        colour = "#cc3311" if refused else "#4477aa"
        axes.plot(ends, [place, place], color=colour, linewidth=1)
        axes.plot(ends[0], place, "x" if refused else "o", color=colour)
        axes.plot(ends[1], place, "|", color=colour, markersize=9)
    for label, mark, colour in (("bounds hold", "o", "#4477aa"), ("a bound is missed", "x", "#cc3311")):
        axes.plot([], [], mark, color=colour, label=label)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="1 - centred cosine: mean, and to the bar the worst clip")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="upper right", fontsize="small")
    return figure


def stability_figure(stability: Stability) -> Figure:
    """A point a choice of tracklets: its loss against how many were chosen."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for way, (mark, colour, shift) in MARKS.items():
        mine = [
            (row.count * (1 + shift), row.figures) for row in stability.rows if row.way == way and row.figures
        ]
        losses = [max(1 - figures.centred_mean, LEAST_LOSS) for _, figures in mine]
        axes.plot([x for x, _ in mine], losses, mark, color=colour, label=way, linestyle="none")
    counts = sorted({row.count for row in stability.rows})
    axes.set(xscale="log", xlabel="calibration tracklets", ylabel="1 - centred cosine, mean")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0, top=1.1 * axes.get_ylim()[1])
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.grid(alpha=0.3, axis="y")
    axes.legend(title="choice", fontsize="small")
    return figure


def _front(part: StudyPart) -> Figure:
    found = study_of(part)
    timed = {
        Target.parse(target): [
            Timed(point, row.ms[target]) for point, row in zip(found.points, part.points, strict=True)
        ]
        for target in part.points[0].ms
    }
    chosen = {Target.parse(target): found.points[place] for target, place in part.taken.items()}
    return front_figure(found, timed, chosen)


def _layers(part: StudyPart) -> Figure:
    return sensitivity_figure(study_of(part))


def study_of(part: StudyPart) -> Study:
    """The study again, as far as its pictures need it: without the graph and what was observed."""
    layers = tuple(Layer(row.layer, "", "", row.shape, 0, 0, None) for row in part.layers)
    return Study(
        part.bits,
        (),
        part.method,
        Prepared(part.smoothing, {}, onnx.ModelProto(), layers, {}),
        tuple(Sensitivity(row.layer, row.operations, row.figures.fidelity) for row in part.layers),
        tuple(Point(row.layers, row.share, row.figures.fidelity, row.faults) for row in part.points),
    )
