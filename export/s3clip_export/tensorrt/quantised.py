"""Which products of a graph are quantised: read from its QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


def quantised_products(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the products that TensorRT can compute in 8 bits, as its build log calls them.

    Both operands come straight from DequantizeLinear, and the first was quantised by QuantizeLinear in the
    graph: with 8-bit weights alone TensorRT multiplies in the type of the activations.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    return tuple(
        _name(node)
        for node in model.graph.node
        if node.op_type in _PRODUCTS
        and all(_made_by(producers, name, "DequantizeLinear") for name in node.input[:2])
        and _made_by(producers, producers[node.input[0]].input[0], "QuantizeLinear")
    )


def _made_by(producers: Mapping[str, onnx.NodeProto], tensor: str, operator: str) -> bool:
    return tensor in producers and producers[tensor].op_type == operator


def _name(node: onnx.NodeProto) -> str:
    """TensorRT's parser calls a node without a name by its first output."""
    return node.name or f"node_of_{node.output[0]}"
