"""What a graph costs on paper: operations and bytes, counted in its ONNX file with the batch written in.

The conventions, which every figure of cost of this project follows:

* A multiply-accumulate of a matrix product or a convolution is two FLOPs: `product_flops`. Those with a
  constant operand, a layer's weights, are `linear_flops` besides: they are what int8 weights speed up.
* All other arithmetic is counted by `cost_operators`: one FLOP an element and step, transcendental functions
  too, and a fused operator is counted as what it is made of, so that fusing alone saves no FLOP.
* What depends on no input is computed once at load: its nodes cost nothing.
* Weights are read once a run, by their own width. Each is counted at the first operator that reads it.
* Activations are counted unfused: each operator reads its inputs and writes its outputs in memory, by their
  own width. Views (Reshape) move nothing; what picks (Slice, Gather) reads only what it writes.
* An operator that is not known costs one FLOP an output element and is named in `unknown`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import onnx

from s3clip_export.cost_operators import PICKS, VIEWS, element_flops, has_weights, is_known, product_macs
from s3clip_export.cost_shapes import Tensor, tensors_at_batch


@dataclass(frozen=True, slots=True)
class OpCost:
    """Of one operator, or of several together.

    Attributes:
        nodes: how many.
        flops: all arithmetic.
        product_flops: of it, 2 x the multiply-accumulates of products and convolutions.
        linear_flops: of it, those of products with a constant operand.
        weight_bytes: of the constants that were read first here.
        activation_bytes: read and written, unfused.
    """

    nodes: int
    flops: int
    product_flops: int
    linear_flops: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class GraphCost(OpCost):
    """Of a whole graph.

    Attributes:
        boundary_bytes: of the graph's inputs and outputs, which even a perfectly fused graph moves.
        by_op: operator type to the cost of its nodes.
        by_node: of every node, in the order of the graph.
        unknown: operator types that were counted as element-wise because nothing better is known.
    """

    boundary_bytes: int
    by_op: Mapping[str, OpCost]
    by_node: tuple[OpCost, ...]
    unknown: tuple[str, ...]


def graph_cost(model: onnx.ModelProto, batch: int) -> GraphCost:
    """Count a graph.

    Args:
        model: from a file; not changed.
        batch: written in the place of the one free dimension of its inputs: crops for `enhance` and
            `patchify`, clips for `encode`.

    Raises:
        BundleError: a shape cannot be known at this batch.
        ConfigError: `batch` is below 1.
    """
    tensors = tensors_at_batch(model, batch)
    constant = {weight.name for weight in model.graph.initializer}
    unread = set(constant)
    by_node = []
    parts: dict[str, list[OpCost]] = defaultdict(list)
    for node in model.graph.node:
        sources = {name for name in node.input if name}
        weight_bytes = _bytes(tensors, sources & unread)
        unread -= sources
        if sources <= constant:
            constant.update(node.output)
            unread.update(node.output if node.op_type == "Constant" else ())
            cost = OpCost(1, 0, 0, 0, weight_bytes, 0)
        else:
            cost = _node_cost(node, tensors, constant, weight_bytes)
        by_node.append(cost)
        parts[operator(node)].append(cost)
    ends = [value.name for value in (*model.graph.input, *model.graph.output) if value.name not in constant]
    return GraphCost(
        **asdict(_sum(by_node)),
        boundary_bytes=_bytes(tensors, ends),
        by_op={name: _sum(costs) for name, costs in sorted(parts.items())},
        by_node=tuple(by_node),
        unknown=tuple(sorted({operator(node) for node in model.graph.node if not is_known(node)})),
    )


def operator(node: onnx.NodeProto) -> str:
    """The operator's name, with its domain where that is not the standard one."""
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type


def _node_cost(
    node: onnx.NodeProto, tensors: Mapping[str, Tensor], constant: set[str], weight_bytes: int
) -> OpCost:
    """Of a node that depends on an input."""
    products = 2 * product_macs(node, tensors)
    linear = products if has_weights(node, constant) else 0
    return OpCost(
        nodes=1,
        flops=products + element_flops(node, tensors),
        product_flops=products,
        linear_flops=linear,
        weight_bytes=weight_bytes,
        activation_bytes=_traffic(node, tensors, constant),
    )


def _traffic(node: onnx.NodeProto, tensors: Mapping[str, Tensor], constant: set[str]) -> int:
    if node.op_type in VIEWS:
        return 0
    written = _bytes(tensors, {name for name in node.output if name})
    if node.op_type in PICKS:
        return 2 * written
    return written + _bytes(tensors, {name for name in node.input if name} - constant)


def _bytes(tensors: Mapping[str, Tensor], names: Iterable[str]) -> int:
    return sum(tensors[name].bytes for name in names)


def _sum(costs: Iterable[OpCost]) -> OpCost:
    rows = list(costs)
    return OpCost(**{field.name: sum(getattr(row, field.name) for row in rows) for field in fields(OpCost)})
