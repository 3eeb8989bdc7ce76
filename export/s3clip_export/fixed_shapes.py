"""Shape arithmetic out of a graph: where only the batch is free, every shape can be written down.

Modules of other libraries read the sizes of their tensors while they run. The exporter folds most of that,
but not what its own translations add, such as the sizes of a resize.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Dims = list[int | None]
"""Of one tensor; None is not known, or depends on the batch."""


def write_down_shapes(model: onnx.ModelProto) -> None:
    """Replace computed shapes of Reshape and Resize by constants, in place, and drop what computed them.

    A Reshape gets -1 in the place of its one free dimension, a Resize the factors between its two sizes.
    What cannot be written down so, as an Expand to the batch, is left alone.
    """
    graph = model.graph
    if not any(node.op_type == "Shape" for node in graph.node):
        return
    dims = _known_dims(model)
    constants = {constant.name for constant in graph.initializer}
    for node in graph.node:
        given = _SIZES_INPUT.get(node.op_type)
        if given is None or len(node.input) <= given or node.input[given] in constants:
            continue
        value = _written_down(node, dims)
        if value is not None:
            name = f"{node.output[0]}_sizes"
            graph.initializer.append(numpy_helper.from_array(value, name))
            node.input[1 if node.op_type == "Reshape" else 2 :] = [name]
    _drop_dead_nodes(graph)


_SIZES_INPUT = {"Reshape": 1, "Resize": 3}
"""Which input of an operator may be a computed shape; a Resize takes factors, its input 2, in place of it."""


def _written_down(node: onnx.NodeProto, dims: Mapping[str, Dims]) -> NDArray[np.generic] | None:
    before, after = dims.get(node.input[0]), dims.get(node.output[0])
    if before is None or after is None or any(attribute.name == "axes" for attribute in node.attribute):
        return None
    return _target(after) if node.op_type == "Reshape" else _factors(before, after)


def _known_dims(model: onnx.ModelProto) -> dict[str, Dims]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.HasField("tensor_type")
        for shape in [value.type.tensor_type.shape]
    }


def _target(after: Dims) -> NDArray[np.int64] | None:
    if after.count(None) > 1:
        return None
    return np.array([-1 if size is None else size for size in after], np.int64)


def _factors(before: Dims, after: Dims) -> NDArray[np.float32] | None:
    """Factors that give exactly these sizes; the first dimension is the batch and stays."""
    if None in before[1:] or None in after[1:] or len(before) != len(after):
        return None
    pairs = [(a, b) for a, b in zip(before[1:], after[1:], strict=True) if a is not None and b is not None]
    factors = np.array([1.0, *(b / a for a, b in pairs)], np.float32)
    sizes = [b for _, b in pairs]
    return factors if [int(a * f) for (a, _), f in zip(pairs, factors[1:], strict=True)] == sizes else None


def _drop_dead_nodes(graph: onnx.GraphProto) -> None:
    """In one pass, as the nodes are in the order in which they run."""
    needed = {value.name for value in graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            alive.append(node)
    del graph.node[:]
    graph.node.extend(reversed(alive))
    constants = [constant for constant in graph.initializer if constant.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)
