"""ONNX graphs with QuantizeLinear and DequantizeLinear around their products, to build 8-bit engines from."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import write_graph

EightBits = Literal["int8", "fp8"]

_TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
_LARGEST = {"int8": 127, "fp8": 448}
STEP = 0.05
"""Scale of all activations."""


def quantise(
    source: Path,
    target: Path,
    kind: EightBits,
    *,
    keep: Collection[str] = (),
    activations: bool = True,
) -> tuple[str, ...]:
    """Write a float16 graph with its products with constant matrices in 8 bits; return their names.

    These products stand in float32 between two casts, with a scale a column of their weights.

    Args:
        source: a float16 graph; no two of its MatMuls share a matrix.
        target: the file to write, opset 19.
        kind: of activations and weights.
        keep: names of products that stay float16.
        activations: False quantises the weights alone.
    """
    model = onnx.load(source)
    graph = model.graph
    model.opset_import[0].version = 19
    weights = {weight.name: weight for weight in graph.initializer}
    step = [numpy_helper.from_array(np.array(STEP, np.float32), "step"), _zeros("zero", kind, ())]
    graph.initializer.extend(step)
    done: list[str] = []
    nodes: list[onnx.NodeProto] = []
    quantised: set[str] = set()
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or node.name in keep:
            nodes.append(node)
            continue
        x, w = node.input
        (y,) = node.output
        if x not in quantised:
            quantised.add(x)
            nodes += _activation(x, activations)
        graph.initializer.extend(_weight(weight, kind))
        graph.initializer.remove(weight)
        nodes += [
            helper.make_node("DequantizeLinear", [f"{w}_q", f"{w}_scale", f"{w}_zero"], [f"{w}_dq"], axis=1),
            helper.make_node("MatMul", [f"{x}_dq", f"{w}_dq"], [f"{y}_wide"], name=node.name),
            helper.make_node("Cast", [f"{y}_wide"], [y], to=TensorProto.FLOAT16),
        ]
        done.append(node.name)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
    return tuple(done)


def _activation(x: str, quantised: bool) -> list[onnx.NodeProto]:
    if not quantised:
        return [helper.make_node("Cast", [x], [f"{x}_dq"], to=TensorProto.FLOAT)]
    return [
        helper.make_node("Cast", [x], [f"{x}_wide"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", [f"{x}_wide", "step", "zero"], [f"{x}_q"]),
        helper.make_node("DequantizeLinear", [f"{x}_q", "step", "zero"], [f"{x}_dq"]),
    ]


def _weight(weight: onnx.TensorProto, kind: EightBits) -> list[onnx.TensorProto]:
    values: NDArray[np.float32] = numpy_helper.to_array(weight).astype(np.float32)
    scale = np.abs(values).max(axis=0) / _LARGEST[kind]
    steps = values / scale
    narrow = np.rint(steps).astype(np.int8) if kind == "int8" else steps.astype(ml_dtypes.float8_e4m3fn)
    return [
        helper.make_tensor(f"{weight.name}_q", _TYPES[kind], values.shape, narrow.tobytes(), raw=True),
        numpy_helper.from_array(scale, f"{weight.name}_scale"),
        _zeros(f"{weight.name}_zero", kind, scale.shape),
    ]


def _zeros(name: str, kind: EightBits, shape: tuple[int, ...]) -> onnx.TensorProto:
    return helper.make_tensor(name, _TYPES[kind], shape, bytes(int(np.prod(shape))), raw=True)


BLOCK_PRODUCTS = ("query", "key", "value", "out", "up", "down")
"""The linear layers of `block`."""


def block(path: Path, *, width: int = 768, heads: int = 12, tokens: int = 128) -> Path:
    """One transformer block in float16: attention and a perceptron four times as wide, both residual."""
    rng = np.random.default_rng(0)
    sizes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    sizes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    weights: dict[str, NDArray[np.generic]] = {
        f"w_{name}": (rng.normal(size=size) / np.sqrt(size[0])).astype(np.float16)
        for name, size in sizes.items()
    }
    weights |= {f"b_{name}": rng.normal(size=size[1]).astype(np.float16) for name, size in sizes.items()}
    weights |= {
        "one": np.ones(width, np.float16),
        "none": np.zeros(width, np.float16),
        "apart": np.array([0, tokens, heads, width // heads]),
        "together": np.array([0, tokens, width]),
        "temper": np.array((width // heads) ** -0.5, np.float16),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16, name="into"),
        helper.make_node("LayerNormalization", ["x16", "one", "none"], ["normed"], name="norm"),
        *_attention(),
        helper.make_node("Add", ["out", "x16"], ["seen"], name="residual"),
        helper.make_node("LayerNormalization", ["seen", "one", "none"], ["again"], name="norm_again"),
        *_linear("again", "up"),
        helper.make_node("Relu", ["up"], ["active"], name="relu"),
        *_linear("active", "down"),
        helper.make_node("Add", ["down", "seen"], ["y16"], name="residual_again"),
        helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT, name="back"),
    ]
    return write_graph(path, nodes, weights=weights, inputs={"x": (TensorProto.FLOAT, ("N", tokens, width))})


def _linear(source: str, name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [source, f"w_{name}"], [f"{name}_raw"], name=name),
        helper.make_node("Add", [f"{name}_raw", f"b_{name}"], [name], name=f"{name}_bias"),
    ]


def _attention() -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []
    for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        nodes += [
            *_linear("normed", name),
            helper.make_node("Reshape", [name, "apart"], [f"{name}_apart"], name=f"{name}_heads"),
            helper.make_node("Transpose", [f"{name}_apart"], [f"{name}s"], perm=order, name=f"{name}_turn"),
        ]
    return [
        *nodes,
        helper.make_node("MatMul", ["querys", "keys"], ["hot"], name="similar"),
        helper.make_node("Mul", ["hot", "temper"], ["logits"], name="tempered"),
        helper.make_node("Softmax", ["logits"], ["shares"], name="softmax"),
        helper.make_node("MatMul", ["shares", "values"], ["mixed"], name="mix"),
        helper.make_node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3], name="turn_back"),
        helper.make_node("Reshape", ["turned", "together"], ["joined"], name="join"),
        *_linear("joined", "out"),
    ]
