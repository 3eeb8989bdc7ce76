"""Float16 graphs with layers in 8 bits: Q/DQ stands in float32 beside the products."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest
from calib_graphs import (
    block,
    checked,
    error_of,
    graph_of,
    limits_of,
    matrix,
    nodes_of,
    result,
    squared,
    tied,
    values,
)
from onnx import TensorProto, helper

from s3clip_calib.layers import find_layers
from s3clip_calib.quantise import quantise, widened
from s3clip_calib.ranges import Bits
from s3clip_export.fp16.narrow import to_fp16

BITS: tuple[Bits, ...] = ("int8", "fp8")


def half_block(keep: Collection[str] = ()) -> onnx.ModelProto:
    return to_fp16(block(), frozenset(keep))


def casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)


def test_widened_layers_give_what_the_float16_graph_gives() -> None:
    half, x = half_block(), values(4)
    layers = find_layers(half)
    wide = checked(widened(half, layers))
    assert error_of(result(wide, x), result(half, x)) < 2e-3
    names = [node.name for node in half.graph.node]
    assert [node.name for node in wide.graph.node if node.name in names] == names
    assert casts(wide) - casts(half) == 3 + 4  # activations and products
    kinds = {tensor.name: tensor.data_type for tensor in wide.graph.initializer}
    after = find_layers(wide)
    assert [layer.name for layer in after] == [layer.name for layer in layers]
    assert {kinds[layer.weight] for layer in after} == {TensorProto.FLOAT}
    assert [(o.out_axis, o.norm) for o in after] == [(o.out_axis, o.norm) for o in layers]
    assert not {layer.weight for layer in layers} & kinds.keys()  # no weight is there twice
    for node in half.graph.node:  # what is no layer stays float16
        if node.name not in {layer.name for layer in layers}:
            assert node == nodes_of(wide)[node.name]


def test_layers_that_are_float32_already_are_not_widened() -> None:
    half = half_block({"up", "down"})
    wide = widened(half, [layer for layer in find_layers(half) if layer.name in ("up", "down")])
    assert wide.SerializeToString() == half.SerializeToString()


@pytest.mark.parametrize("bits", BITS)
def test_a_float16_graph_with_8_bit_layers(bits: Bits) -> None:
    """Q/DQ in float32 feeds the products directly; the outputs are those of the float32 graph in 8 bits."""
    model, x = block(), values(4)
    limits = limits_of(model, x)
    half = half_block()
    wide = widened(half, find_layers(half))
    made = checked(quantise(wide, find_layers(wide), limits, bits))
    makers = {name: node for node in made.graph.node for name in node.output}
    for layer in find_layers(wide):
        for name in nodes_of(made)[layer.name].input:
            assert makers[name].op_type == "DequantizeLinear"
    assert {node.name for node in half.graph.node} <= nodes_of(made).keys()
    stored = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert stored[node.input[1]] == TensorProto.FLOAT
    plain = result(quantise(model, find_layers(model), limits, bits), x)
    assert squared(result(made, x), plain) < squared(plain, result(model, x)) / 4


@pytest.mark.parametrize("chosen", [("one",), ("two",), ("one", "two")], ids="+".join)
def test_widened_leaves_a_shared_weight_to_its_other_readers(chosen: Collection[str]) -> None:
    half, x = to_fp16(tied(), frozenset()), values(4)
    wide = checked(widened(half, [layer for layer in find_layers(half) if layer.name in chosen]))
    assert error_of(result(wide, x), result(half, x)) < 3e-3


def test_a_gemm_is_widened_with_its_bias() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["g"], name="layer", transB=1),
        helper.make_node("Add", ["g", "b"], ["y"], name="again"),
    ]
    stored = {"w": matrix(24, 16), "b": matrix(1, 24)[0], "rows": np.array([-1, 16])}
    half = to_fp16(graph_of(nodes, stored, {"x": ("N", 8, 16)}), frozenset())
    wide = checked(widened(half, find_layers(half)))
    assert error_of(result(wide, values(2)), result(half, values(2))) < 3e-3
