"""Plots of an evaluation as SVG pictures in data URIs. They need no display and load nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s3clip.evaluation.figures import Metric, ProtocolResult, bucket_name

RANKS_SHOWN = 20
"""Ranks of the CMC plot: beyond them it is nearly level."""

SPREAD = 0.5
"""Share of a bucket's width over which the protocols' points stand side by side."""

MARKERS = "osD^v<>P"
"""So that lines can be told apart without their colours."""


def cmc_plot(results: Mapping[str, ProtocolResult]) -> str:
    """Share of queries with a match at rank k or better, one line a protocol."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, row) in enumerate(results.items()):
        shares = row["cmc"][:RANKS_SHOWN]
        axes.plot(
            range(1, len(shares) + 1), shares, marker=_marker(number), markersize=4, label=name, clip_on=False
        )
    axes.set(xlabel="rank k", ylabel="queries with a match at rank <= k (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    return data_uri(figure)


def height_plot(results: Mapping[str, ProtocolResult]) -> str:
    """Rank-1 and mAP by the query's height with their intervals; the buckets that have no query are empty."""
    figure = Figure(figsize=(9.2, 4.0), layout="constrained")
    buckets = [bucket_name(row["low"], row["high"]) for row in next(iter(results.values()))["heights"]]
    for axes, key, title in zip(figure.subplots(1, 2), ("rank1", "map"), ("Rank-1", "mAP"), strict=True):
        for number, (name, row) in enumerate(results.items()):
            shift = SPREAD * ((number + 0.5) / len(results) - 0.5)
            points = [
                (place + shift, metric)
                for place, metric in enumerate(_metrics(row, key))
                if metric is not None
            ]
            below = [metric["value"] - metric["low"] for _, metric in points]
            above = [metric["high"] - metric["value"] for _, metric in points]
            axes.errorbar(
                [place for place, _ in points],
                [metric["value"] for _, metric in points],
                yerr=(below, above),
                fmt=_marker(number),
                markersize=4,
                capsize=3,
                label=name,
            )
        axes.set(title=title, xlabel="median height of the query's frames", ylabel="%", ylim=(-3, 103))
        axes.set_xticks(range(len(buckets)), [name.replace(" and more", "\nand more") for name in buckets])
        axes.set_xlim(-0.5, len(buckets) - 0.5)
        axes.tick_params(labelsize="small")
        axes.grid(alpha=0.3, axis="y")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small")
    return data_uri(figure)


def _metrics(row: ProtocolResult, key: str) -> list[Metric | None]:
    return [bucket["rank1"] if key == "rank1" else bucket["map"] for bucket in row["heights"]]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def data_uri(figure: Figure) -> str:
    """The figure as an SVG picture that a page can hold."""
    file = io.BytesIO()
    # A fixed salt and no date: equal figures give equal files.
    with matplotlib.rc_context({"svg.hashsalt": "s3clip"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
