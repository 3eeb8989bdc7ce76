"""Ways to give activations their ranges, all of them tried on a graph with every layer in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip_calib.fidelity import Fidelity, fidelity
from s3clip_calib.layers import Layer, find_layers
from s3clip_calib.observe import Observed, observe, total
from s3clip_calib.quantise import quantise
from s3clip_calib.ranges import METHODS, Bits, Method, range_of
from s3clip_calib.run import Feed
from s3clip_calib.sensitivity import embed
from s3clip_calib.smooth import Factors, factors, migrate

EXPONENTS: Final = (None, 0.5, 0.7)
"""Of the scale migration; None moves nothing. SmoothQuant's authors used 0.5 to 0.75."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float32 graph, maybe with its scales moved, and what its layers read on the calibration clips.

    Attributes:
        smoothing: exponent of the migration, None: there was none.
        moved: what was moved.
        model: the graph.
        layers: of it.
        observed: activation to its statistics over all clips.
    """

    smoothing: float | None
    moved: Factors
    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    observed: dict[str, Observed]

    def limits(self, method: Method, bits: Bits) -> dict[str, float]:
        """Layer to the range of its activation."""
        ranges = {name: range_of(seen, method, bits) for name, seen in self.observed.items()}
        return {layer.name: ranges[layer.activation] for layer in self.layers}


@dataclass(frozen=True, slots=True)
class Trial:
    """All layers in 8 bits by one method.

    Attributes:
        method, smoothing: the way.
        fidelity: beside the float32 graph.
    """

    method: Method
    smoothing: float | None
    fidelity: Fidelity


def prepare(
    model: onnx.ModelProto, feeds: Sequence[Feed], exponents: Sequence[float | None] = EXPONENTS
) -> list[Prepared]:
    """Observe a float32 graph, and its migrated forms. `exponents` begins with None."""
    layers = find_layers(model)
    bar = tqdm(feeds, desc="observe", unit="clip", leave=False, disable=None)
    plain = total(observe(model, layers, bar))
    found = [Prepared(None, {}, model, layers, plain)]
    for exponent in exponents[1:]:
        assert exponent is not None
        moved = factors(model, layers, plain, exponent)
        graph = migrate(model, layers, moved)
        # Behind the norms alone something changed: all other statistics stay.
        changed = [layer for layer in layers if layer.norm in moved]
        bar = tqdm(feeds, desc=f"observe, smoothing {exponent:g}", unit="clip", leave=False, disable=None)
        seen = plain | total(observe(graph, changed, bar)) if changed else plain
        found.append(Prepared(exponent, moved, graph, layers, seen))
    return found


def operations(prepared: Prepared, clips: int) -> dict[str, int]:
    """Layer to its multiply-adds for one clip, counted from what `clips` of them showed."""
    counts = {}
    for layer in prepared.layers:
        seen = prepared.observed[layer.activation]
        positions = int(seen.counts.sum()) // (len(seen.channel_max) * clips)
        counts[layer.name] = positions * layer.weights
    return counts


def combinations(bits: Bits) -> list[tuple[Method, float | None]]:
    """What is tried. E4M3 keeps its relative precision at any scale, so moving scales gives it nothing."""
    if bits == "fp8":
        return [(method, None) for method in METHODS if method != "entropy"]
    return [(method, exponent) for exponent in EXPONENTS for method in METHODS]


def try_methods(
    prepared: Sequence[Prepared], bits: Bits, feeds: Sequence[Feed], expected: NDArray[np.float32]
) -> Iterator[Trial]:
    """Measure every combination on clips that gave no ranges.

    Args:
        prepared: of `prepare`.
        bits: of all layers.
        feeds: inputs of clips, one each.
        expected: float32 (N, D), what the float32 graph gives for them.
    """
    by_exponent = {one.smoothing: one for one in prepared}
    for method, exponent in combinations(bits):
        one = by_exponent[exponent]
        graph = quantise(one.model, one.layers, one.limits(method, bits), bits)
        yield Trial(method, exponent, fidelity(expected, embed(graph, feeds)))
