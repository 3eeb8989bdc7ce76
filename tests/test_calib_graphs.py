"""Graphs with 8-bit layers beside numpy, ml_dtypes and ONNX Runtime's own quantiser."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from calib_graphs import (
    F32,
    F64,
    block,
    checked,
    constants,
    demo,
    demo_feeds,
    error_of,
    graph_of,
    limits_of,
    matrix,
    nodes_of,
    outputs,
    residual,
    result,
    rounded,
    squared,
    tied,
    values,
)
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

from s3clip_calib.layers import find_layers
from s3clip_calib.observe import observe, total
from s3clip_calib.quantise import quantise
from s3clip_calib.ranges import TOP, Bits, range_of
from s3clip_runtime.inference.backends.openvino import OpenVinoSession

BITS: tuple[Bits, ...] = ("int8", "fp8")


def simulated(x: F32, weight: F32, limit: float, bits: Bits, out_axis: int = 1) -> F64:
    """x @ weight with both rounded, in float64, by the types' definitions."""
    scale = np.abs(weight).max(axis=1 - out_axis, keepdims=True) / TOP[bits]
    narrow = rounded(weight, scale.astype(np.float64), bits)
    product = rounded(x, limit / TOP[bits], bits) @ (narrow if out_axis == 1 else narrow.T)
    return np.asarray(product)


@pytest.mark.parametrize("bits", BITS)
def test_the_graph_rounds_as_numpy_does_and_the_residual_stays(bits: Bits) -> None:
    """Its sum reads the unrounded tensor that the layer rounds; a range of half the values saturates."""
    weight, x = matrix(16, 16), values(4)
    model = residual(weight)
    for limit in (float(np.abs(x).max()), 1.0):
        made = checked(quantise(model, find_layers(model), {"layer": limit}, bits))
        expected = simulated(x, weight, limit, bits) + x
        np.testing.assert_allclose(result(made, x), expected, rtol=1e-5, atol=1e-5)
        assert error_of(expected, x @ weight + x) > 2e-3
        assert list(nodes_of(made)["residual"].input) == ["product", "x"]


class Once(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """One feed, as ONNX Runtime's quantiser wants it."""

    def __init__(self, x: F32) -> None:
        self._feeds: Iterator[dict[str, F32]] = iter([{"x": x}])

    def get_next(self) -> dict[str, F32] | None:
        return next(self._feeds, None)


def by_onnxruntime(model: onnx.ModelProto, x: F32, folder: Path, **options: object) -> onnx.ModelProto:
    """ONNX Runtime's static quantiser, symmetric int8 with ranges of the largest values."""
    onnx.save(model, folder / "plain.onnx")
    quantize_static(
        folder / "plain.onnx",
        folder / "quantised.onnx",
        Once(x),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            **options,
        },
    )
    return onnx.load(folder / "quantised.onnx")


def test_onnxruntimes_own_quantiser_rounds_the_residual(tmp_path: Path) -> None:
    """Which is why it is mended: the error of its sum is larger."""
    weight, x = matrix(16, 16) * np.float32(0.01), values(4)
    model = residual(weight)
    theirs = by_onnxruntime(model, x, tmp_path, OpTypesToExcludeOutputQuantization=["MatMul"])
    assert "x" not in nodes_of(theirs)["residual"].input
    ours = quantise(model, find_layers(model), limits_of(model, x), "int8")
    expected = result(model, x)
    assert squared(result(ours, x), expected) < squared(result(theirs, x), expected) / 100


def test_weights_and_scales_are_those_of_onnxruntime(tmp_path: Path) -> None:
    model, x = block(), values(4)
    ours = constants(quantise(model, find_layers(model), limits_of(model, x), "int8"))
    theirs = constants(
        by_onnxruntime(model, x, tmp_path, OpTypesToExcludeOutputQuantization=["MatMul", "Gemm", "Conv"])
    )
    names = [f"{layer.weight}_quantized" for layer in find_layers(model)]
    names += [f"{layer.activation}_scale" for layer in find_layers(model)]
    names += [f"{layer.weight}_scale" for layer in find_layers(model)]
    for name in names:
        if name.endswith("_quantized"):
            assert ours[name].dtype == np.int8
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        else:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)


def test_e4m3_weights_are_rounded_as_ml_dtypes_rounds() -> None:
    weight = matrix(16, 16) * np.exp(3 * matrix(16, 16, seed=2))  # subnormals too
    weight[:, 3] = 0
    model = residual(weight)
    made = quantise(model, find_layers(model), {"layer": 3.0}, "fp8")
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    assert stored["w_quantized"].data_type == TensorProto.FLOAT8E4M3FN
    scale = constants(made)["w_scale"]
    np.testing.assert_allclose(
        scale, np.where(weight.any(axis=0), np.abs(weight).max(axis=0) / 448, 1), rtol=1e-6
    )
    expected = (weight / scale).astype(ml_dtypes.float8_e4m3fn)
    found = np.frombuffer(stored["w_quantized"].raw_data, ml_dtypes.float8_e4m3fn).reshape(16, 16)
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    assert np.isfinite(found.astype(np.float32)).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("chosen", [(), ("up",), ("down", "late"), ("up", "side", "down", "late")])
def test_a_subset_of_layers_is_changed_alone(chosen: Collection[str], bits: Bits) -> None:
    """`up` without `side` too, which reads the same tensor."""
    model, x = block(), values(4)
    layers = [layer for layer in find_layers(model) if layer.name in chosen]
    made = checked(quantise(model, layers, limits_of(model, x), bits))
    before, after = nodes_of(model), nodes_of(made)
    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    for name, node in before.items():
        inputs = list(after[name].input)
        if name in chosen:
            assert [makers[one] for one in inputs] == ["DequantizeLinear"] * 2
        else:
            assert inputs == list(node.input)
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == len(
        {layer.activation for layer in layers}
    )
    error = error_of(result(made, x), result(model, x))
    assert (1e-4 < error < 0.1) if chosen else (error == 0)


def test_opsets_are_what_the_types_need() -> None:
    model, x = block(), values(2)
    for bits, opset in zip(BITS, (18, 19), strict=True):
        made = quantise(model, find_layers(model), limits_of(model, x), bits)
        assert [entry.version for entry in made.opset_import if not entry.domain] == [opset]
    assert model.opset_import[0].version == 18


@pytest.mark.parametrize("bits", BITS)
def test_a_transposed_gemm_has_a_scale_for_each_output(bits: Bits) -> None:
    weight, bias, x = matrix(24, 16), matrix(1, 24)[0], values(4)
    weight *= np.exp(2 * matrix(24, 1, seed=5))  # outputs of very different sizes: a scale a column shows
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], name="layer", transB=1),
    ]
    stored: Mapping[str, NDArray[Any]] = {"w": weight, "b": bias, "rows": np.array([-1, 16])}
    model = graph_of(nodes, stored, {"x": ("N", 8, 16)})
    limit = float(np.abs(x).max())
    made = checked(quantise(model, find_layers(model), {"layer": limit}, bits))
    expected = simulated(x.reshape(-1, 16), weight, limit, bits, out_axis=0) + bias
    np.testing.assert_allclose(result(made, x), expected, rtol=1e-5, atol=1e-4)
    assert constants(made)["b"].dtype == np.float32


@pytest.mark.parametrize("bits", BITS)
def test_a_convolution_keeps_its_bias(bits: Bits) -> None:
    """Against a convolution of rounded numbers that is written out."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="layer", pads=[1, 1, 1, 1])]
    model = graph_of(nodes, {"w": weight, "b": bias}, {"x": ("N", 3, 8, 8)})
    limit = float(np.abs(x).max())
    made = checked(quantise(model, find_layers(model), {"layer": limit}, bits))
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True).astype(np.float64) / TOP[bits]
    narrow, seen = rounded(weight, scale, bits), rounded(x, limit / TOP[bits], bits)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(seen, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3)
    )
    expected = np.einsum("nchwij,ocij->nohw", windows, narrow) + bias[:, None, None]
    np.testing.assert_allclose(result(made, x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chosen", [("one",), ("two",), ("one", "two")], ids="+".join)
@pytest.mark.parametrize("bits", BITS)
def test_a_shared_weight_stays_for_its_other_readers(chosen: Collection[str], bits: Bits) -> None:
    model, x = tied(), values(4)
    limits = limits_of(model, x)
    layers = [layer for layer in find_layers(model) if layer.name in chosen]
    made = checked(quantise(model, layers, limits, bits))
    weight = constants(model)["w"]

    def product(name: str, inputs: NDArray[Any]) -> NDArray[Any]:
        if name not in chosen:
            return np.asarray(inputs @ weight)
        return simulated(inputs.astype(np.float32), weight, limits[name], bits)

    expected = product("two", np.tanh(product("one", x))) + weight.sum()
    # The second rounding may fall to the other side where the first product differs in its last bit.
    assert np.quantile(np.abs(result(made, x) - expected), 0.9) < 1e-4
    assert error_of(result(made, x), expected) < 0.02


def test_an_output_that_a_layer_reads_stays_unrounded() -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["middle"], name="tanh"),
        helper.make_node("MatMul", ["middle", "w"], ["product"], name="layer"),
        helper.make_node("Add", ["product", "middle"], ["y"], name="residual"),
    ]
    weight, x = matrix(16, 16), values(2)
    model = graph_of(nodes, {"w": weight}, {"x": ("N", 8, 16)}, ("y", "middle"))
    made = checked(quantise(model, find_layers(model), {"layer": 1.0}, "int8"))
    found, expected = outputs(made, {"x": x}), outputs(model, {"x": x})
    assert list(found) == ["y", "middle"]
    np.testing.assert_array_equal(found["middle"], expected["middle"])
    wanted = simulated(expected["middle"], weight, 1.0, "int8") + expected["middle"]
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-5, atol=1e-5)


def test_nodes_without_a_name_keep_their_inputs() -> None:
    model, x = block(), values(2)
    limits = limits_of(model, x)
    expected = result(quantise(model, find_layers(model), limits, "int8"), x)
    layers = find_layers(model)
    for node in model.graph.node:
        if node.name not in {layer.name for layer in layers}:
            node.name = ""
    np.testing.assert_array_equal(result(quantise(model, layers, limits, "int8"), x), expected)


def test_openvino_computes_what_onnxruntime_computes(tmp_path: Path) -> None:
    """With float32 around the layers; the graph without their rounding is much further away."""
    model, x = block(), values(4)
    made = quantise(model, find_layers(model), limits_of(model, x), "int8")
    onnx.save(made, tmp_path / "g.onnx")
    session = OpenVinoSession(tmp_path / "g.onnx", precision="fp32", threads=1)
    found = session.run({"x": x})["y"]
    session.close()
    expected = result(made, x)
    assert squared(found, expected) < squared(result(model, x), expected) / 100
    assert error_of(found, expected) < 5e-3


def test_an_encoder_in_8_bits_is_near_the_float_one() -> None:
    """All layers of the demo's; its embeddings have unit length."""
    model, feeds = demo("encode"), demo_feeds(4)
    layers = find_layers(model)
    seen = total(observe(model, layers, feeds, threads=1))
    for bits in BITS:
        limits = {o.name: range_of(seen[o.activation], "max", bits) for o in layers}
        made = checked(quantise(model, layers, limits, bits))
        for feed in feeds:
            found, expected = (outputs(one, feed)["embedding"][0] for one in (made, model))
            cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
            assert 0.99 < cosine < 1 - 1e-6
