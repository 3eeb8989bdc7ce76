"""A measured switch as a picture: what super-resolution changes in each bucket, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s3clip_runtime.errors import SinkError
from s3clip_runtime.inference.evidence import HeightBucket, Interval, Switch

_KINDS = (".png", ".svg", ".pdf")
_SIDE = 0.12
"""Rank-1 and mAP stand so far beside a bucket's place: their bars would hide each other."""


def check_picture(path: Path) -> None:
    """Before minutes of measuring.

    Raises:
        SinkError: the file's name or folder is none to write a picture to.
    """
    if path.suffix not in _KINDS:
        raise SinkError(f"{path}: a picture's name must end in {', '.join(_KINDS)}; give another --plot")
    if not path.parent.is_dir():
        raise SinkError(f"{path}: the folder {path.parent} does not exist; make it or give another --plot")


def write_picture(switch: Switch, path: Path) -> None:
    """Draw a switch.

    Raises:
        SinkError: the file cannot be written.
    """
    try:
        draw_switch(switch).savefig(path, dpi=150)
    except OSError as error:
        raise SinkError(
            f"{path}: cannot be written ({error.strerror}); give another --plot, the bundle has its switch"
        ) from error


def draw_switch(switch: Switch) -> Figure:
    """Left the changes of mAP and Rank-1 with their 95 % intervals, right the time of a tracklet."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    change, cost = figure.subplots(1, 2)
    _draw_change(change, switch)
    _draw_cost(cost, switch)
    for axes in (change, cost):
        axes.set_xticks(range(len(switch.buckets)), list(map(_place, switch.buckets)))
        axes.set_xlim(-0.5, len(switch.buckets) - 0.5)
        axes.set_xlabel("height of a person in LR crops")
        _shade(axes, switch)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False, fontsize=9)
    synthetic = ", synthetic" if switch.synthetic else ""
    figure.suptitle(
        f"{switch.rule}: {switch.target} on {switch.device}, data {switch.data}{synthetic}", fontsize=11
    )
    return figure


def _draw_change(axes: Axes, switch: Switch) -> None:
    sides: tuple[tuple[str, float, list[Interval]], ...] = (
        ("mAP", -_SIDE, [bucket.map_change for bucket in switch.buckets]),
        ("Rank-1", _SIDE, [bucket.rank1_change for bucket in switch.buckets]),
    )
    for name, side, changes in sides:
        values = [change.value * 100 for change in changes]
        places = [i + side for i in range(len(values))]
        axes.errorbar(places, values, yerr=_bars(changes, 100), fmt="o", capsize=4, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(
        switch.min_gain * 100, color="grey", linestyle="--", linewidth=0.8, label="mAP must be able to reach"
    )
    axes.set_ylabel("change by super-resolution, points (95 %)")


def _draw_cost(axes: Axes, switch: Switch) -> None:
    places = range(len(switch.buckets))
    without = [bucket.ms_without for bucket in switch.buckets]
    axes.bar(places, without, 0.6, label="without super-resolution")
    extra = [bucket.ms_with - bucket.ms_without for bucket in switch.buckets]
    axes.bar(places, extra, 0.6, without, label="added by it (95 %)")
    for place, bucket in zip(places, switch.buckets, strict=True):
        if bucket.ms_change is not None:
            bars = _bars([bucket.ms_change], 1)
            axes.errorbar(place, bucket.ms_without + bucket.ms_change.value, bars, color="black", capsize=4)
    axes.set_ylabel("milliseconds a tracklet")


def _shade(axes: Axes, switch: Switch) -> None:
    """Grey behind the buckets that are switched off."""
    limit = switch.max_height_px
    off = [i for i, bucket in enumerate(switch.buckets) if limit is not None and bucket.high_px > limit]
    if off:
        axes.axvspan(off[0] - 0.5, off[-1] + 0.5, color="grey", alpha=0.15, zorder=0, label="off")


def _place(bucket: HeightBucket) -> str:
    return f"{bucket.low_px:g} to {bucket.high_px:g} px\n{bucket.tracklets} tracklets\n{bucket.people} people"


def _bars(changes: Sequence[Interval], factor: float) -> list[list[float]]:
    """Lengths below and above; the mean of few draws may lie a rounding error outside of its interval."""
    return [
        [max(change.value - change.low, 0) * factor for change in changes],
        [max(change.high - change.value, 0) * factor for change in changes],
    ]
