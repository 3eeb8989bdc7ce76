"""The report of a bundle: one HTML file that loads nothing, for people to read and to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

from s3clip.evaluation.plots import MARKERS, data_uri
from s3clip_export.proof.bisect import BlockError
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.gate import AT_LEAST, figures
from s3clip_runtime.inference.manifest import Manifest, Role, Target

TEMPLATE = "report.html.j2"

SMALLEST_ERROR = 1e-16
"""What a logarithmic axis shows in the place of no error at all."""

MEANINGS = {
    "frames": "clips whose frames the runtime would choose otherwise",
    "pixels": "largest difference of resized crops, of 1",
    "enhance": "error of the super-resolved tokens, of their largest value",
    "patchify": "error of the HR tokens, of their largest value",
    "encode": "error of the embedding from PyTorch's own tokens, of its largest value",
    "cosine_mean": "cosine with PyTorch's embedding, mean",
    "cosine_p1": "the same, 1st percentile",
    "cosine_min": "the same, minimum",
    "max_abs_error": "largest error of an embedding's element",
    "top1_agreement": "tracklets with the same nearest neighbour",
    "top10_agreement": "shared part of the ten nearest",
    "kendall_tau": "rank correlation of all similarities (Kendall's tau-b)",
}


@dataclass(frozen=True)
class Evidence:
    """Everything measured about one target.

    Attributes:
        cosine: float64 (N,), of each clip with PyTorch.
        blocks: errors of the blocks of each graph; empty for engines, which show no inner tensors.
    """

    target: Target
    proof: Proof
    cosine: NDArray[np.float64]
    blocks: Mapping[Role, Sequence[BlockError]]


@dataclass(frozen=True, slots=True)
class Extreme:
    """A node with one of the largest activations of its graph, and whether it stayed in float32."""

    graph: str
    node: str
    operator: str
    largest: float
    kept: bool


def render_report(
    manifest: Manifest, evidence: Sequence[Evidence], extremes: Sequence[Extreme], *, synthetic: bool
) -> str:
    """The page.

    Args:
        manifest: with its proofs.
        evidence: one entry a target.
        extremes: the largest activations, from the range audit; empty without one.
        synthetic: the crops were drawn by s3clip itself.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("s3clip_export.proof").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        manifest=manifest,
        evidence=evidence,
        extremes=extremes,
        synthetic=synthetic,
        meanings=MEANINGS,
        rows=[name for name in MEANINGS if any(name in figures(one.proof) for one in evidence)],
        figures={str(one.target): figures(one.proof) for one in evidence},
        at_least=AT_LEAST,
        cosines=cosine_plot(evidence),
        blocks=block_plot(evidence),
    )


def cosine_plot(evidence: Sequence[Evidence]) -> str:
    """Distance 1 - cosine of every clip, sorted, one line a target."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for number, one in enumerate(evidence):
        distances = np.sort(np.maximum(1.0 - one.cosine, SMALLEST_ERROR))
        share = np.arange(1, len(distances) + 1) / len(distances) * 100
        axes.plot(share, distances, marker=MARKERS[number], markersize=3, label=str(one.target))
    axes.set(xlabel="clips (%)", ylabel="1 - cosine with PyTorch", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return data_uri(figure)


def block_plot(evidence: Sequence[Evidence]) -> str | None:
    """Error after every block of every graph, so that one sees where it enters and how it grows."""
    shown = [one for one in evidence if one.blocks]
    if not shown:
        return None
    roles = list(shown[0].blocks)
    widths = [max(len(shown[0].blocks[role]), 3) for role in roles]
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    grid = figure.subplots(1, len(roles), sharey=True, squeeze=False, width_ratios=widths)
    for axes, role in zip(grid[0], roles, strict=True):
        for number, one in enumerate(shown):
            errors = [max(block.error, SMALLEST_ERROR) for block in one.blocks[role]]
            axes.plot(range(len(errors)), errors, marker=MARKERS[number], markersize=4, label=str(one.target))
        names = [_short(block.block) for block in shown[0].blocks[role]]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set(title=role, yscale="log")
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("error, of the largest value")
    grid[0][0].legend(fontsize="small")
    return data_uri(figure)


def _short(block: str) -> str:
    """The last two words of a module's path say enough under an axis."""
    return ".".join(block.split(".")[-2:])
