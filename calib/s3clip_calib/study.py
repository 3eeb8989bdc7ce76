"""What is found out about `encode` in one 8-bit type, before any graph is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip_calib.fidelity import Fidelity, fidelity
from s3clip_calib.front import SHARES, Point, allowed, walk
from s3clip_calib.methods import Prepared, Trial, combinations, operations, try_methods
from s3clip_calib.notebook import Notebook
from s3clip_calib.quantise import quantise
from s3clip_calib.ranges import Bits, Method
from s3clip_calib.run import Feed
from s3clip_calib.sensitivity import Sensitivity, embed, sensitivities
from s3clip_runtime.inference.gate import BOUNDS
from s3clip_runtime.inference.manifest import Precision

LAYER_CLIPS: Final = 8
"""Of the clips that settings are chosen by, so many measure each layer alone: at full size 85 layers on 8
clips take ten minutes. All clips measure the points of the walk."""

PRECISION_OF: Final[Mapping[Bits, Precision]] = {"int8": "int8", "fp8": "fp8-fp16"}
"""Whose bounds the search keeps to."""


@dataclass(frozen=True, slots=True)
class Study:
    """One 8-bit type.

    Attributes:
        bits: the type.
        trials: all methods, with every layer in 8 bits.
        method, prepared: the best of them.
        rows: each layer alone, by that method.
        points: the walk from none to all layers.
    """

    bits: Bits
    trials: tuple[Trial, ...]
    method: Method
    prepared: Prepared
    rows: tuple[Sensitivity, ...]
    points: tuple[Point, ...]

    @property
    def limits(self) -> Mapping[str, float]:
        """Layer to the range of its activation."""
        return self.prepared.limits(self.method, self.bits)

    @property
    def allowed(self) -> list[Point]:
        """Points within the bounds, most layers first."""
        return allowed(self.points)

    def graph(self, layers: Collection[str]) -> onnx.ModelProto:
        """`encode` in float32 with these layers in 8 bits."""
        chosen = [layer for layer in self.prepared.layers if layer.name in layers]
        return quantise(self.prepared.model, chosen, self.limits, self.bits)


def study(
    prepared: Sequence[Prepared],
    bits: Bits,
    feeds: Sequence[Feed],
    expected: NDArray[np.float32],
    calibrated_on: int,
    notebook: Notebook,
) -> Study:
    """Try the methods, measure each layer alone, and walk from none to all. Minutes to an hour at full size.

    Args:
        prepared: of `methods.prepare`.
        bits: the type.
        feeds: inputs of clips that gave no ranges, one each, at least three.
        expected: float32 (N, D), what the float32 graph gives for them.
        calibrated_on: how many clips were observed.
        notebook: keeps what was measured.
    """
    total = len(combinations(bits))
    made = try_methods(prepared, bits, feeds, expected)
    bar = tqdm(made, f"{bits} methods", total, leave=False, disable=None)
    trials = tuple(bar)
    best = min(trials, key=lambda trial: trial.fidelity.loss)
    one = next(p for p in prepared if p.smoothing == best.smoothing)
    limits = one.limits(best.method, bits)
    section = f"{bits} {best.method} {best.smoothing}"
    few = feeds[:LAYER_CLIPS], expected[:LAYER_CLIPS]
    rows = _rows(one, limits, bits, *few, calibrated_on, notebook, section)

    def measure(layers: Collection[str]) -> Fidelity:
        steps.update()
        chosen = [layer for layer in one.layers if layer.name in layers]
        return fidelity(expected, embed(quantise(one.model, chosen, limits, bits), feeds))

    with tqdm(desc=f"{bits} front", unit="point", total=len(SHARES), leave=False, disable=None) as steps:
        points = walk(rows, measure, bounds_of(PRECISION_OF[bits]))
    return Study(bits, trials, best.method, one, tuple(rows), tuple(points))


def bounds_of(precision: Precision) -> dict[str, float]:
    """The gate's bounds of those figures that `Fidelity` has."""
    known = {field.name for field in fields(Fidelity)}
    return {name: bound for name, bound in BOUNDS[precision].items() if name in known}


def _rows(
    one: Prepared,
    limits: Mapping[str, float],
    bits: Bits,
    feeds: Sequence[Feed],
    expected: NDArray[np.float32],
    calibrated_on: int,
    notebook: Notebook,
    section: str,
) -> list[Sensitivity]:
    known = notebook.known(section)
    with tqdm(
        desc=f"{bits} layers",
        total=len(one.layers),
        initial=len(known),
        unit="layer",
        leave=False,
        disable=None,
    ) as bar:

        def keep(layer: str, found: Fidelity) -> None:
            notebook.add(section, layer, found)
            bar.update()

        counts = operations(one, calibrated_on)
        return sensitivities(one.model, limits, bits, feeds, expected, counts, known, keep)
