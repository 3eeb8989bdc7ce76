"""The pictures of a report, as SVG files that are equal for equal reports. Needs the extra `bench`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from s3clip_runtime.bench.records import BenchReport, ContenderRow, Crops, Stage, StageRow
from s3clip_runtime.errors import ConfigError, SinkError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGES: Final[dict[Crops, tuple[Stage, ...]]] = {
    "lr": ("prepare", "enhance", "encode"),
    "hr": ("prepare", "patchify", "encode"),
}
_COLOURS: Final = {
    "prepare": "#bbbbbb",
    "enhance": "#4477aa",
    "patchify": "#66ccee",
    "encode": "#ee6677",
    "rest": "#eeeeee",
}
_LEAST_ERROR: Final = 1e-8
"""1 - cosine is drawn no smaller: below lies rounding alone, and it would press the others together."""


def check_installed() -> None:
    """Find out before minutes of work.

    Raises:
        ConfigError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            'matplotlib is not installed; plots need: pip install "s3clip[bench]", or leave out --plots'
        )


def draw(report: BenchReport, folder: Path) -> list[Path]:
    """Draw what the report has numbers for; files of an earlier run are replaced one by one, whole.

    Raises:
        ConfigError: matplotlib is missing.
        SinkError: the folder cannot be written.
    """
    check_installed()
    import matplotlib
    from matplotlib.figure import Figure

    pictures: dict[str, Callable[[BenchReport, Figure], bool]] = {
        "latency-by-stage.svg": _latency_by_stage,
        "speed-and-accuracy.svg": _speed_and_accuracy,
        "scaling.svg": _scaling,
    }
    written = []
    # Ids of SVG parts come from this salt instead of chance.
    with matplotlib.rc_context({"svg.hashsalt": "s3clip-bench", "font.size": 9}):
        for name, picture in pictures.items():
            figure = Figure(figsize=(8, 4.2), layout="constrained")
            if picture(report, figure):
                _save(figure, folder / name)
                written.append(folder / name)
    return written


def _save(figure: Figure, path: Path) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(draft, format="svg", metadata={"Date": None})
        draft.replace(path)
    except OSError as error:
        raise SinkError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
    finally:
        draft.unlink(missing_ok=True)


def _latency_by_stage(report: BenchReport, figure: Figure) -> bool:
    """A bar a contender and kind of crops: its stages on top of each other, and what they leave over."""
    few = _smallest_setting(report.stages)
    wholes = [row for row in report.stages if row.stage == "tracklet" and _setting(row) == few]
    if not wholes:
        return False
    axes: Axes = figure.subplots()
    for place, row in enumerate(wholes):
        left = 0.0
        for stage in _STAGES[row.crops]:
            ms = _stage_ms(report, row, stage)
            axes.barh(place, ms, left=left, color=_COLOURS[stage], edgecolor="white")
            left += ms
        axes.barh(
            place, max(row.latency.p50_ms - left, 0), left=left, color=_COLOURS["rest"], edgecolor="grey"
        )
    for label, colour in _COLOURS.items():
        axes.barh(0, 0, color=colour, label=label)
    axes.set_yticks(range(len(wholes)), [f"{row.contender}, {row.crops.upper()}" for row in wholes])
    axes.invert_yaxis()
    axes.set_xlabel(f"ms a call of {few[0]} tracklet(s), {few[1]} thread(s), median")
    axes.set_title("Latency by stage")
    axes.legend()
    return True


def _stage_ms(report: BenchReport, whole: StageRow, stage: Stage) -> float:
    """Median of a stage: the contender's own, or the reference's where a stage is the same for all."""
    found = [
        row
        for row in report.stages
        if row.stage == stage
        and row.clips == whole.clips
        and (row.threads == whole.threads or stage == "prepare")
        and row.contender in (whole.contender, report.reference)
        and (row.crops == whole.crops or stage == "encode")
    ]
    own = [row for row in found if row.contender == whole.contender]
    return next((row.latency.p50_ms for row in [*own, *found]), 0.0)


def _speed_and_accuracy(report: BenchReport, figure: Figure) -> bool:
    """A point a contender, and the line through those that no other beats in both."""
    points = list(_points(report))
    if not points:
        return False
    axes: Axes = figure.subplots()
    for name, ms, error in points:
        axes.plot(ms, error, "o", color="#4477aa")
        axes.annotate(name, (ms, error), xytext=(5, 5), textcoords="offset points")
    front = pareto_front([(ms, error) for _, ms, error in points])
    axes.plot(
        [ms for ms, _ in front], [error for _, error in front], "--", color="#ee6677", label="Pareto front"
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=_LEAST_ERROR / 2, top=10 * max(error for _, _, error in points))
    axes.set_xlim(0, 1.25 * max(ms for _, ms, _ in points))  # names stand to the right of their points
    axes.set_xlabel("ms a tracklet (LR), median")
    axes.set_ylabel("1 - smallest cosine to PyTorch")
    axes.set_title("Speed against accuracy: left and low is better")
    axes.legend()
    return True


def _points(report: BenchReport) -> Iterator[tuple[str, float, float]]:
    """Contender, milliseconds of one LR tracklet with the most threads, error."""
    rows: dict[str, ContenderRow] = {row.contender: row for row in report.contenders}
    whole = [row for row in report.stages if row.stage == "tracklet" and row.crops == "lr"]
    most = max((row.threads for row in whole), default=0)
    for row in whole:
        cosine = rows[row.contender].cosine_min if row.contender in rows else None
        if cosine is not None and _setting(row) == (_smallest_setting(whole)[0], most):
            yield row.contender, row.latency.p50_ms / row.clips, max(1 - cosine, _LEAST_ERROR)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other is better than in one number and at least as good in the other, by the first."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _scaling(report: BenchReport, figure: Figure) -> bool:
    """Tracklets a second by clips and by threads, frames a second by cameras."""
    whole = [row for row in report.stages if row.stage == "tracklet" and row.crops == "lr"]
    if not whole:
        return False
    few, most = min(row.clips for row in whole), max(row.threads for row in whole)
    by_clips, by_threads, *others = figure.subplots(1, 3 if report.cameras else 2)
    for name in dict.fromkeys(row.contender for row in whole):
        mine = [row for row in whole if row.contender == name]
        _line(by_clips, [(row.clips, row.tracklets_per_s) for row in mine if row.threads == most], name)
        _line(by_threads, [(row.threads, row.tracklets_per_s) for row in mine if row.clips == few], name)
    for axes in others:
        _line(axes, [(row.cameras, row.frames_per_s) for row in report.cameras], "all cameras")
        _line(axes, [(row.cameras, row.cameras * row.frame_rate) for row in report.cameras], "needed")
        axes.set_ylabel("frames a second")
        axes.legend()
        axes.set_xlabel("file cameras")
    by_clips.set_xlabel("clips a call")
    by_threads.set_xlabel("threads")
    for axes in (by_clips, by_threads, *others):
        axes.set_ylim(bottom=0)
    by_clips.set_ylabel("tracklets a second")
    by_clips.legend()
    figure.suptitle("Scaling, LR tracklets")
    return True


def _line(axes: Axes, points: Sequence[tuple[float, float]], label: str) -> None:
    ordered = sorted(points)
    axes.plot([x for x, _ in ordered], [y for _, y in ordered], "o-", label=label)
    axes.set_xticks([x for x, _ in ordered])


def _setting(row: StageRow) -> tuple[int, int]:
    return row.clips, row.threads


def _smallest_setting(rows: Sequence[StageRow]) -> tuple[int, int]:
    """The fewest clips, with the most threads: what a single look at a tracklet meets."""
    return min((row.clips for row in rows), default=1), max((row.threads for row in rows), default=1)
