"""What each layer costs in ranking when it alone computes in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from s3clip_calib.fidelity import Fidelity, fidelity
from s3clip_calib.layers import Layer, find_layers
from s3clip_calib.pieces import pieces
from s3clip_calib.quantise import quantise
from s3clip_calib.ranges import Bits
from s3clip_calib.run import Feed, open_graph

STREAM = "tokens"
"""Input of `encode` that flows through its layers."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One layer alone in 8 bits.

    Attributes:
        layer: name of its node.
        operations: multiply-adds of one clip.
        fidelity: beside the float32 graph.
    """

    layer: str
    operations: int
    fidelity: Fidelity


def sensitivities(
    model: onnx.ModelProto,
    limits: Mapping[str, float],
    bits: Bits,
    feeds: Sequence[Feed],
    expected: NDArray[np.float32],
    operations: Mapping[str, int],
    known: Mapping[str, Fidelity],
    keep: Callable[[str, Fidelity], None],
) -> list[Sensitivity]:
    """Measure every layer of `encode`, in the graph's order.

    What lies before a layer is run once for all layers behind the same cut, which halves the time.

    Args:
        model: `encode` in float32.
        limits: layer to the largest absolute value that its activation shall represent.
        bits: of the layers.
        feeds: inputs of clips, one each.
        expected: float32 (N, D), what the graph gives for them.
        operations: layer to its multiply-adds.
        known: layers that were measured before, which are not measured again.
        keep: is told each layer that is measured now.

    Raises:
        BackendError: a graph does not run.
    """
    layers = find_layers(model)
    found = dict(known)
    if any(layer.name not in found for layer in layers):
        for name, measured in _measured(model, layers, limits, bits, feeds, expected, found):
            found[name] = measured
            keep(name, measured)
    return [Sensitivity(o.name, operations[o.name], found[o.name]) for o in layers]


def _measured(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    limits: Mapping[str, float],
    bits: Bits,
    feeds: Sequence[Feed],
    expected: NDArray[np.float32],
    known: Mapping[str, Fidelity],
) -> Iterator[tuple[str, Fidelity]]:
    at_cut: list[Feed] = list(feeds)
    for piece in pieces(model, layers, STREAM):
        todo = [layer for layer in piece.layers if layer.name not in known]
        with ExitStack() as opened:
            after = opened.enter_context(open_graph(piece.after)) if piece.after and todo else None
            for layer in todo:
                graph = quantise(piece.inner, [layer], limits, bits)
                ends = _carried(graph, at_cut, piece.cut)
                found = [end if after is None else after(end) for end in ends]
                embeddings = np.concatenate([one["embedding"] for one in found])
                yield layer.name, fidelity(expected, embeddings)
        if piece.after is not None:
            at_cut = _carried(piece.inner, at_cut, piece.cut)


def _carried(graph: onnx.ModelProto, feeds: Sequence[Feed], cut: str) -> list[Feed]:
    """The feeds behind a piece: what it gives takes the place of what it read."""
    with open_graph(graph) as run:
        return [{n: a for n, a in feed.items() if n != cut} | run(feed) for feed in feeds]


def embed(graph: onnx.ModelProto, feeds: Sequence[Feed]) -> NDArray[np.float32]:
    """float32 (N, D), an embedding a feed."""
    with open_graph(graph) as run:
        return np.concatenate([run(feed)["embedding"] for feed in feeds])
