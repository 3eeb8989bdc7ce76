"""The layers of a graph that can compute in 8 bits: products of activations with a constant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import onnx


@dataclass(frozen=True, slots=True)
class Layer:
    """One MatMul, Gemm or Conv with a constant weight.

    Attributes:
        name: of its node.
        activation: tensor that it reads.
        weight: initializer that it multiplies by.
        shape: of the weight.
        out_axis: axis of the weight that is not summed over: the output channels.
        in_axis: axis of the weight that meets the activation's channels.
        norm: the LayerNormalization whose output goes to layers alone, so that scales can move from it into
            their weights; None for all others.
    """

    name: str
    activation: str
    weight: str
    shape: tuple[int, ...]
    out_axis: int
    in_axis: int
    norm: str | None

    @property
    def channels_last(self) -> bool:
        """Whether the activation's last axis holds its channels; a Conv's second one does."""
        return len(self.shape) == 2

    @property
    def weights(self) -> int:
        """Numbers in the weight: multiply-adds for each position."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def find_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers of a graph in its order; products with a stack of matrices are none."""
    graph = model.graph
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    found: list[Layer] = []
    for node in graph.node:
        axes = _axes(node, constants)
        if axes is not None and node.input[0] not in constants:
            shape = constants[node.input[1]]
            found.append(Layer(node.name, node.input[0], node.input[1], shape, *axes, None))
    # A weight with two readers would be scaled twice.
    norms = _norms(model, {layer.name for layer in found if readers[layer.weight] == 1})
    return tuple(replace(layer, norm=norms.get(layer.activation)) for layer in found)


def _axes(node: onnx.NodeProto, constants: dict[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Output and input axis of the node's weight; None if it is no layer."""
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    rank = len(constants.get(node.input[1], ()))
    if node.op_type == "Conv":
        return (0, 1) if rank == 4 else None
    if rank != 2:
        return None
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return (0, 1) if transposed else (1, 0)


def _norms(model: onnx.ModelProto, layers: set[str]) -> dict[str, str]:
    """Tensor that layers read to the LayerNormalization behind it, where layers alone read it.

    A float16 graph may have a Cast between the two.
    """
    made = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    found = {}
    for node in model.graph.node:
        if node.name not in layers:
            continue
        tensor = source = node.input[0]
        if source in made and made[source].op_type == "Cast" and len(readers[made[source].input[0]]) == 1:
            source = made[source].input[0]
        norm = made.get(source)
        if norm is None or norm.op_type != "LayerNormalization" or outputs & {tensor, source}:
            continue
        if all(reader.name in layers and reader.input[0] == tensor for reader in readers[tensor]):
            found[tensor] = norm.name
    return found
