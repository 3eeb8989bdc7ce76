"""Graphs with layers that calibration rounds: hand-made ones, and the demo's encoder with its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from s3clip_calib.layers import find_layers
from s3clip_calib.observe import observe
from s3clip_calib.ranges import Bits, range_of
from s3clip_calib.run import Feed, open_graph
from s3clip_runtime.inference.reference import read_reference

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
TOKENS, WIDTH, INNER = 8, 16, 32


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A checked float32 graph in opset 18."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    return model


def block(*, outliers: float = 1.0, shared_scale: bool = False) -> onnx.ModelProto:
    """x (N, 8, 16) through two residual perceptrons behind LayerNormalizations, to y.

    Layers: "up" and "side" read one norm, "down" an Elu; "late" reads a norm that the sum reads, too.

    Args:
        outliers: factor of three channels of the first norm's scale, as large models have them.
        shared_scale: both norms have one and the same initializer as scale.
    """
    rng = np.random.default_rng(11)

    def matrix(*size: int) -> F32:
        return np.asarray(rng.normal(size=size) / np.sqrt(size[0]), np.float32)

    weights: dict[str, NDArray[Any]] = {
        "scale": rng.uniform(0.5, 1.5, WIDTH).astype(np.float32),
        "offset": rng.normal(size=WIDTH).astype(np.float32) * np.float32(0.1),
        "scale_late": rng.uniform(0.5, 1.5, WIDTH).astype(np.float32),
        "w_up": matrix(WIDTH, INNER),
        "w_side": matrix(WIDTH, WIDTH),
        "b_up": rng.normal(size=INNER).astype(np.float32),
        "w_down": matrix(INNER, WIDTH),
        "w_late": matrix(WIDTH, WIDTH),
    }
    weights["scale"][[2, 7, 11]] *= np.float32(outliers)
    late = "scale" if shared_scale else "scale_late"
    if shared_scale:
        del weights["scale_late"]
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "offset"], ["normed"], name="norm"),
        helper.make_node("MatMul", ["normed", "w_up"], ["up_raw"], name="up"),
        helper.make_node("Add", ["up_raw", "b_up"], ["up_sum"], name="up_bias"),
        helper.make_node("Elu", ["up_sum"], ["active"], name="elu"),
        helper.make_node("MatMul", ["active", "w_down"], ["down_out"], name="down"),
        helper.make_node("MatMul", ["normed", "w_side"], ["side_out"], name="side"),
        helper.make_node("Add", ["down_out", "side_out"], ["both"], name="join"),
        helper.make_node("Add", ["both", "x"], ["stream"], name="residual"),
        helper.make_node("LayerNormalization", ["stream", late], ["normed_late"], name="norm_late"),
        helper.make_node("MatMul", ["normed_late", "w_late"], ["late_out"], name="late"),
        helper.make_node("Add", ["late_out", "normed_late"], ["y"], name="residual_late"),
    ]
    return graph_of(nodes, weights, {"x": ("N", TOKENS, WIDTH)})


def residual(weight: F32) -> onnx.ModelProto:
    """y = x @ weight + x for x (N, 8, 16): the layer reads the graph's input, and so does the sum."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="layer"),
        helper.make_node("Add", ["product", "x"], ["y"], name="residual"),
    ]
    return graph_of(nodes, {"w": weight}, {"x": ("N", TOKENS, WIDTH)})


def tied() -> onnx.ModelProto:
    """Two products with the same matrix, and a sum that reads the matrix, too."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Tanh", ["a"], ["b"], name="tanh"),
        helper.make_node("MatMul", ["b", "w"], ["c"], name="two"),
        helper.make_node("ReduceSum", ["w"], ["sum"], name="sum"),
        helper.make_node("Add", ["c", "sum"], ["y"], name="add"),
    ]
    return graph_of(nodes, {"w": matrix(16, 16) / np.float32(4)}, {"x": ("N", 8, 16)})


def values(rows: int, seed: int = 0, *, width: int = WIDTH) -> F32:
    """float32 (rows, 8, width)."""
    return np.random.default_rng(seed).normal(size=(rows, TOKENS, width)).astype(np.float32)


def matrix(rows: int, columns: int, seed: int = 1) -> F32:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def outputs(model: onnx.ModelProto, feed: Feed) -> dict[str, NDArray[Any]]:
    with open_graph(model, threads=1) as run:
        return run(feed)


def result(model: onnx.ModelProto, x: F32) -> F32:
    """`y` of a graph for its only input `x`."""
    found: F32 = outputs(model, {"x": x})["y"]
    return found


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives these tensors as well."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return made


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def rounded(numbers: NDArray[Any], scale: F64 | float, bits: Bits) -> F64:
    """What becomes of numbers in 8 bits, by the types' definitions, float64 of the same shape."""
    steps = np.asarray(numbers, np.float64) / scale
    if bits == "int8":
        return np.asarray(np.clip(np.rint(steps), -128, 127) * scale)
    narrow = np.clip(steps, -448, 448).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    return np.asarray(narrow.astype(np.float64) * scale)


def limits_of(model: onnx.ModelProto, x: F32) -> dict[str, float]:
    """Layer to its activation's largest absolute value."""
    layers = find_layers(model)
    (seen,) = observe(model, layers, [{"x": x}], threads=1)
    return {layer.name: range_of(seen[layer.activation], "max", "int8") for layer in layers}


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which the ONNX checker finds sound: types, shapes, and nodes in order."""
    onnx.checker.check_model(model, full_check=True)
    return model


def error_of(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def squared(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.mean((found.astype(np.float64) - expected) ** 2))


def nodes_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


@cache
def _demo(role: str) -> bytes:
    return (files("s3clip_runtime.demo") / "bundle" / f"{role}.onnx").read_bytes()


def demo(role: str) -> onnx.ModelProto:
    """A float32 graph of the demo's bundle: a trained model of small width."""
    return onnx.load_model_from_string(_demo(role))


@cache
def _tokens() -> tuple[F32, ...]:
    with as_file(files("s3clip_runtime.demo") / "bundle" / "reference.npz") as path:
        return tuple(tokens for _, tokens in sorted(read_reference(path).tokens.items()))


def demo_feeds(count: int) -> list[Feed]:
    """Inputs of the demo's `encode`: tokens of its LR and its HR clip in turn, each with noise of its own."""
    rng = np.random.default_rng(4)
    feeds: list[Feed] = []
    for number in range(count):
        tokens = _tokens()[number % len(_tokens())]
        noisy = (tokens * rng.normal(1, 0.3, tokens.shape)).astype(np.float32)
        feeds.append({"tokens": noisy[None], "platform": np.array([number % 2], np.int64)})
    return feeds
