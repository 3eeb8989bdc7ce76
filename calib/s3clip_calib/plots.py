"""Pictures of a calibration: accuracy against cost, and what each layer costs. Needs the extra `calib`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from s3clip_runtime.bench.plots import pareto_front
from s3clip_runtime.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from s3clip_calib.candidates import Timed
    from s3clip_calib.front import Point
    from s3clip_calib.study import Study
    from s3clip_runtime.inference.manifest import Target

LEAST_LOSS: Final = 1e-7
"""A loss is drawn no smaller: below lies float32's rounding, and it would press the others together."""

MOST_LOSS: Final = 2.0
"""Of two opposite embeddings. A loss that is no number is drawn there."""

_RINGS: Final = "sDhp"
"""Around what was taken, one a point."""

_FILLS: Final = (
    ("#ffffff", ""),
    ("#4477aa", ""),
    ("#ccbb44", "////"),
    ("#ee6677", "xxxx"),
    ("#66ccee", "...."),
    ("#222222", ""),
    ("#bbbbbb", "\\\\\\\\"),
    ("#228833", "++++"),
)
"""Colour and hatch of a weight's shape, so that shapes can be told apart without colours."""

_FRONT: Final[Mapping[str, Any]] = {"color": "#888888", "linestyle": "--", "linewidth": 1.0, "zorder": 1}
_ALLOWED: Final[Mapping[str, Any]] = {"color": "#4477aa", "marker": "o", "linestyle": "none", "markersize": 6}
_REFUSED: Final[Mapping[str, Any]] = {
    "color": "#cc3311",
    "marker": "x",
    "linestyle": "none",
    "markersize": 7,
    "markeredgewidth": 2,
}


def check_installed(module: str = "matplotlib") -> None:
    """Find out before minutes of work.

    Raises:
        ConfigError: the module is missing.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f'{module} must be installed for the report, and is not; do: pip install "s3clip[calib]"'
        )


def front_figure(
    study: Study, timed: Mapping[Target, Sequence[Timed]], chosen: Mapping[Target, Point]
) -> Figure:
    """Loss of every point of the walk against its share of multiply-adds, and beside it against milliseconds.

    The y-axis, 1 - mean centred cosine, is logarithmic. Lines, by their labels: "allowed", "refused",
    "Pareto front", and "taken: ..." around what a target took. A target that was not timed has no axes.

    Args:
        study: of one type of bits.
        timed: targets of this type to their timed points.
        chosen: targets of this type to the points that were taken.

    Raises:
        ConfigError: matplotlib is missing.
    """
    check_installed()
    from matplotlib.figure import Figure

    times = {
        target: [(one.ms, one.point) for one in row if one.ms is not None] for target, row in timed.items()
    }
    times = {target: row for target, row in times.items() if row}
    width = 1 + len(times)
    figure = Figure(figsize=(2.0 + 3.6 * width, 4.0), layout="constrained")
    first, *others = figure.subplots(1, width, sharey=True, squeeze=False)[0]
    _points(first, [(point.share * 100, point) for point in study.points], front_at_right=True)
    rings = dict(zip(dict.fromkeys(chosen.values()), cycle(_RINGS), strict=False))
    for point, ring in rings.items():
        names = ", ".join(str(target) for target, taken in chosen.items() if taken == point)
        _ring(first, point.share * 100, point, ring, f"taken: {names}")
    first.set(xlabel="multiply-adds in 8 bits (%)", ylabel="1 - centred cosine, mean", yscale="log")
    first.set_title("all points", fontsize="medium")
    first.set_xlim(-4, 104)
    for axes, (target, row) in zip(others, times.items(), strict=True):
        _points(axes, row, front_at_right=False)
        for ms, point in row:
            if point == chosen.get(target):
                _ring(axes, ms, point, rings[point], f"taken: {target}")
        axes.set(xlabel="encode, ms a clip, median")
        axes.set_title(str(target), fontsize="medium")
    handles = {line.get_label(): line for line in first.lines}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        fontsize="small",
        markerscale=0.7,
    )
    return figure


def _points(axes: Axes, places: Sequence[tuple[float, Point]], *, front_at_right: bool) -> None:
    """The points in two shapes, and the line through those that no other beats in both."""
    drawn = [(x, _drawn(point.fidelity.loss), not point.faults) for x, point in places]
    side = -1.0 if front_at_right else 1.0
    front = pareto_front([(side * x, y) for x, y, _ in drawn])
    axes.plot([side * x for x, _ in front], [y for _, y in front], label="Pareto front", **_FRONT)
    for label, style, wanted in (("allowed", _ALLOWED, True), ("refused", _REFUSED, False)):
        mine = [(x, y) for x, y, allowed in drawn if allowed is wanted]
        axes.plot([x for x, _ in mine], [y for _, y in mine], label=label, **style)
    axes.grid(alpha=0.3)


def _ring(axes: Axes, x: float, point: Point, ring: str, label: str) -> None:
    axes.plot(
        x,
        _drawn(point.fidelity.loss),
        marker=ring,
        linestyle="none",
        markersize=14,
        markerfacecolor="none",
        markeredgecolor="black",
        label=label,
    )


def sensitivity_figure(study: Study) -> Figure:
    """A bar a layer, numbered from 1 in the order of the graph: the loss when it alone is in 8 bits.

    The y-axis, 1 - mean centred cosine, is logarithmic. Colour and hatch tell the shape of the weight.

    Raises:
        ConfigError: matplotlib is missing.
    """
    check_installed()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots()
    shapes = {layer.name: layer.shape for layer in study.prepared.layers}
    losses = [_drawn(row.fidelity.loss) for row in study.rows]
    for place, shape in enumerate(dict.fromkeys(shapes[row.layer] for row in study.rows)):
        mine = [number for number, row in enumerate(study.rows) if shapes[row.layer] == shape]
        colour, hatch = _FILLS[place % len(_FILLS)]
        axes.bar(
            [number + 1 for number in mine],
            [losses[number] for number in mine],
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.6,
            label=" x ".join(map(str, shape)),
        )
    axes.set(xlabel="layer, in the order of the graph", ylabel="1 - centred cosine, mean", yscale="log")
    axes.set_xlim(0, len(losses) + 1)
    axes.set_ylim(bottom=min(losses, default=LEAST_LOSS) / 2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    if losses:
        figure.legend(loc="outside right upper", title="weight", fontsize="small")
    return figure


def _drawn(loss: float) -> float:
    """A loss that a logarithmic axis can show."""
    return MOST_LOSS if math.isnan(loss) else max(loss, LEAST_LOSS)
