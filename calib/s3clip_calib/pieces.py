"""A graph cut where it is narrow: what comes before a cut is computed once for all layers behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx.shape_inference
import onnx.utils

from s3clip_calib.layers import Layer


@dataclass(frozen=True, slots=True)
class Piece:
    """Some layers in a row.

    Attributes:
        layers: of this piece.
        cut: the tensor that it reads in the place of the whole graph's stream.
        inner: graph from this cut to the next one, or to the outputs; it holds the layers.
        after: graph from the next cut to the outputs; None for the last piece.
    """

    layers: tuple[Layer, ...]
    cut: str
    inner: onnx.ModelProto
    after: onnx.ModelProto | None


def pieces(model: onnx.ModelProto, layers: Sequence[Layer], stream: str) -> Iterator[Piece]:
    """The pieces of a graph in order; each layer is in one of them.

    Args:
        model: the graph.
        layers: of `find_layers`, in its order.
        stream: the graph's input that everything but side inputs depends on.
    """
    model = onnx.shape_inference.infer_shapes(model)
    extractor = onnx.utils.Extractor(model)
    sides = [value.name for value in model.graph.input if value.name != stream]
    outputs = [value.name for value in model.graph.output]
    cut = stream
    for part, following in _parts(model, layers, stream):
        ends = outputs if following is None else [following]
        inner = extractor.extract_model([cut, *sides], ends)
        after = None if following is None else extractor.extract_model([following, *sides], outputs)
        yield Piece(part, cut, inner, after)
        cut = following or cut


def _parts(
    model: onnx.ModelProto, layers: Sequence[Layer], stream: str
) -> Iterator[tuple[tuple[Layer, ...], str | None]]:
    """Layers between two cuts, and the tensor of the cut behind them."""
    known = {layer.name: layer for layer in layers}
    narrow = dict(_narrow(model, stream))
    part: list[Layer] = []
    waiting: str | None = None
    for position, node in enumerate(model.graph.node):
        layer = known.get(node.name)
        if layer is not None:
            if part and waiting is not None:
                yield tuple(part), waiting
                part = []
            waiting = None
            part.append(layer)
        if position in narrow:
            waiting = narrow[position]
    if part:
        yield tuple(part), None


def _narrow(model: onnx.ModelProto, stream: str) -> Iterator[tuple[int, str]]:
    """Positions of nodes after which one tensor alone carries all that depends on `stream`."""
    nodes = model.graph.node
    last = {name: position for position, node in enumerate(nodes) for name in node.input}
    outputs = {value.name for value in model.graph.output}
    alive: set[str] = {stream}
    for position, node in enumerate(nodes):
        if _reads(node, alive):
            alive |= {name for name in node.output if name}
        alive = {name for name in alive if last.get(name, -1) > position or name in outputs}
        if len(alive) == 1 and not alive & outputs:
            yield position, next(iter(alive))


def _reads(node: onnx.NodeProto, alive: Collection[str]) -> bool:
    return any(name in alive for name in node.input)
