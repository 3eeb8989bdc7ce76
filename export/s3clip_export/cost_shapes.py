"""Shapes and types of every tensor of a graph, once its batch is a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import onnx
from onnx import TensorProto, helper

from s3clip_runtime.errors import BundleError, ConfigError

_SHAPE_VALUES = 64
"""Constants of so few values stay in the graph that shapes are inferred from: they may be a Reshape's target,
and the others are 400 MB at full size, which inference would copy."""

_NARROW_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Types of less than a byte; all others have a NumPy type that tells."""

_FOREIGN_PRODUCTS = frozenset({"MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and `TensorProto.DataType` of a tensor."""

    shape: tuple[int, ...]
    kind: int

    @property
    def elements(self) -> int:
        """How many."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """In memory; types of less than a byte are packed."""
        bits = _NARROW_BITS.get(TensorProto.DataType.Name(self.kind))
        if bits is not None:
            return ceil(self.elements * bits / 8)
        return self.elements * helper.tensor_dtype_to_np_dtype(self.kind).itemsize


def tensors_at_batch(model: onnx.ModelProto, batch: int) -> dict[str, Tensor]:
    """Name to tensor: inputs, constants, and the outputs of all nodes.

    Args:
        model: not changed.
        batch: in the place of the one free dimension of its inputs.

    Raises:
        BundleError: the inputs have two free dimensions, or a shape cannot be known.
        ConfigError: `batch` is below 1.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, found {batch}; give the crops or clips of one run")
    outline = _outline(model, batch)
    while True:
        known = _known(onnx.shape_inference.infer_shapes(outline, strict_mode=False, data_prop=True))
        known |= {
            weight.name: Tensor(tuple(weight.dims), weight.data_type) for weight in model.graph.initializer
        }
        added = list(_foreign(outline, known))
        if not added:
            break
        outline.graph.value_info.extend(added)
    for node in model.graph.node:
        missing = [name for name in node.output if name and name not in known]
        if missing:
            raise BundleError(
                f"the shape of {missing[0]}, made by {node.op_type}, is not known at batch {batch}; costs "
                "are counted in graphs whose only free dimension is the batch"
            )
    return known


def _outline(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The graph without its large constants, with the batch in its inputs and no other shape noted."""
    graph = model.graph
    given = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    free = {d.dim_param for v in inputs for d in v.type.tensor_type.shape.dim if not d.HasField("dim_value")}
    if len(free) > 1 or "" in free:
        raise BundleError(
            f"the inputs have the free dimensions {sorted(free)}, and only a batch may be free; name it alike"
        )
    fixed = [
        helper.make_tensor_value_info(
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim],
        )
        for value in inputs
    ]
    small = [weight for weight in graph.initializer if prod(weight.dims) <= _SHAPE_VALUES]
    large = [
        helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        for weight in graph.initializer
        if prod(weight.dims) > _SHAPE_VALUES
    ]
    outputs = [onnx.ValueInfoProto(name=value.name) for value in graph.output]
    outline = helper.make_graph(list(graph.node), graph.name, [*fixed, *large], outputs, small)
    return helper.make_model(outline, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def _known(model: onnx.ModelProto) -> dict[str, Tensor]:
    graph = model.graph
    return {
        value.name: Tensor(tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type)
        for value in (*graph.input, *graph.value_info, *graph.output)
        for kind in [value.type.tensor_type]
        if kind.elem_type and kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
    }


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:  # noqa: ANN401  as ONNX holds it
    """An attribute's value, or the default where the node has none."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _foreign(model: onnx.ModelProto, known: dict[str, Tensor]) -> Iterator[onnx.ValueInfoProto]:
    """Notes on outputs of other domains, which ONNX cannot infer, as far as their inputs are known.

    A product of ONNX Runtime has the columns of its second operand; all others are taken to keep the shape of
    their first input.
    """
    for node in model.graph.node:
        if not node.domain or not node.input or node.input[0] not in known or node.output[0] in known:
            continue
        first = known[node.input[0]]
        shape, kind = first.shape, first.kind
        if node.op_type in _FOREIGN_PRODUCTS:
            weight = known.get(node.input[1])
            columns = attribute(node, "N", 0) or (weight.shape[-1] if weight else 0)
            shape, kind = (*shape[:-1], columns), TensorProto.FLOAT
        yield from (helper.make_tensor_value_info(name, kind, shape) for name in node.output if name)
