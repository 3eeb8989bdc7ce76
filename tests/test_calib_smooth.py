"""Layers of graphs, and scales that move into them from norms: exact, and by the formula."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from calib_graphs import (
    block,
    checked,
    constants,
    demo,
    demo_feeds,
    error_of,
    graph_of,
    limits_of,
    matrix,
    outputs,
    result,
    squared,
    values,
    with_outputs,
)
from onnx import helper

from s3clip_calib.layers import find_layers
from s3clip_calib.observe import observe, total
from s3clip_calib.quantise import quantise
from s3clip_calib.smooth import factors, migrate
from s3clip_export.fp16.narrow import to_fp16

EXPONENTS = (0.0, 0.5, 0.7, 1.0)


def test_layers_are_found_as_the_graph_is_read() -> None:
    """The demo's encoder: what multiplies by a constant matrix, found by the shapes of a real run."""
    model = demo("encode")
    found = find_layers(model)
    stored = constants(model)
    expected = [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in stored and stored[node.input[1]].ndim == 2
    ]
    assert [layer.name for layer in found] == expected
    probed = outputs(with_outputs(model, [o.activation for o in found]), demo_feeds(1)[0])
    for layer in found:
        assert layer.shape[layer.in_axis] == probed[layer.activation].shape[-1]
        assert {layer.in_axis, layer.out_axis} == {0, 1}


def test_a_stack_of_matrices_and_a_constant_activation_are_no_layers() -> None:
    stack = np.ones((3, 16, 16), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "stack"], ["a"], name="stacked"),
        helper.make_node("MatMul", ["fixed", "w"], ["b"], name="constant"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    weights = {"stack": stack, "w": matrix(16, 16), "fixed": matrix(8, 16)}
    assert find_layers(graph_of(nodes, weights, {"x": (3, 8, 16)})) == ()


# Scale migration


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("shared", [False, True], ids=["own constants", "shared constants"])
def test_migration_is_exact(exponent: float, shared: bool) -> None:
    """Also where two norms have one scale, of which one stays."""
    model, x = block(outliers=20, shared_scale=shared), values(4)
    layers = find_layers(model)
    (seen,) = observe(model, layers, [{"x": x}], threads=1)
    by = factors(model, layers, seen, exponent)
    assert max(by["norm"]) / min(by["norm"]) > 1.5
    moved = checked(migrate(model, layers, by))
    assert error_of(result(moved, x), result(model, x)) < 1e-5
    inner = [outputs(with_outputs(one, ["normed"]), {"x": x})["normed"] for one in (model, moved)]
    np.testing.assert_allclose(inner[1] * by["norm"], inner[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 0.7])
def test_migration_is_exact_in_an_encoder(exponent: float) -> None:
    model, feeds = demo("encode"), demo_feeds(3)
    layers = find_layers(model)
    by = factors(model, layers, total(observe(model, layers, feeds, threads=1)), exponent)
    assert len(by) == 7
    moved = migrate(model, layers, by)
    assert moved.SerializeToString() != model.SerializeToString()
    for feed in feeds:
        found, expected = (outputs(one, feed)["embedding"] for one in (moved, model))
        assert error_of(found, expected) < 1e-5


def test_migration_scales_the_columns_of_a_transposed_weight() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["normed"], name="norm"),
        helper.make_node("Gemm", ["normed", "w"], ["y"], name="layer", transB=1),
    ]
    weights = {"scale": np.exp(matrix(1, 16)[0]), "w": matrix(16, 16)}
    model, x = graph_of(nodes, weights, {"x": ("N", 16)}), values(4)[:, 0]
    layers = find_layers(model)
    (seen,) = observe(model, layers, [{"x": x}], threads=1)
    by = factors(model, layers, seen, 0.5)
    rows = np.abs(weights["w"]).max(axis=0)
    np.testing.assert_allclose(
        np.diff(np.log(by["norm"] * np.sqrt(rows / seen["normed"].channel_max))), 0, atol=1e-5
    )
    assert error_of(result(migrate(model, layers, by), x), result(model, x)) < 1e-5


def test_factors_follow_the_formula() -> None:
    """s_j = max|X_j|^a / max|W_j|^(1-a), W all weights behind the norm, up to one factor for all."""
    model, x = block(outliers=20), values(4)
    layers = find_layers(model)
    (seen,) = observe(model, layers, [{"x": x}], threads=1)
    read = outputs(with_outputs(model, ["normed"]), {"x": x})["normed"]
    stored = constants(model)
    rows = np.abs(np.hstack([stored["w_up"], stored["w_side"]])).max(axis=1)
    for exponent in EXPONENTS:
        expected = np.abs(read).max(axis=(0, 1)) ** exponent / rows ** (1 - exponent)
        found = factors(model, layers, seen, exponent)["norm"]
        ratio = found / expected
        np.testing.assert_allclose(ratio / ratio[0], 1, rtol=1e-5)
        assert np.log(found).mean() == pytest.approx(0, abs=1e-6)


def test_a_dead_channel_has_a_factor() -> None:
    """Its scale and offset are zero: nothing divides by zero, and outputs stay."""
    model, x = block(), values(4)
    for tensor in model.graph.initializer:
        if tensor.name in ("scale", "offset"):
            kept = onnx.numpy_helper.to_array(tensor).copy()
            kept[5] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(kept, tensor.name))
    layers = find_layers(model)
    (seen,) = observe(model, layers, [{"x": x}], threads=1)
    assert seen["normed"].channel_max[5] == 0
    by = factors(model, layers, seen, 0.7)
    assert np.isfinite(by["norm"]).all()
    assert (by["norm"] >= 2.0**-10).all()
    assert error_of(result(migrate(model, layers, by), x), result(model, x)) < 1e-5


def test_smoothing_lowers_the_error_of_outlier_channels() -> None:
    """Channels of the norm that are thirty times as large leave the others few levels."""
    model, x = block(outliers=30), values(8)
    layers, expected = find_layers(model), result(model, x)
    (seen,) = observe(model, layers, [{"x": x}], threads=1)
    moved = migrate(model, layers, factors(model, layers, seen, 0.5))
    chosen = {"up", "side"}
    errors = []
    for one in (model, moved):
        picked = [layer for layer in find_layers(one) if layer.name in chosen]
        found = result(quantise(one, picked, limits_of(one, x), "int8"), x)
        errors.append(squared(found, expected))
    assert errors[1] < errors[0] / 2


def test_a_norm_with_another_reader_stays() -> None:
    model = block()
    assert {layer.name: layer.norm for layer in find_layers(model)} == {
        "up": "norm", "side": "norm", "down": None, "late": None,
    }  # fmt: skip
    # As an output of the graph a norm is read from outside.
    assert all(o.norm is None for o in find_layers(with_outputs(model, ["normed"])))


def test_a_norm_before_a_weight_of_two_layers_stays() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["normed"], name="norm"),
        helper.make_node("MatMul", ["normed", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    weights = {"scale": np.ones(16, np.float32), "w": matrix(16, 16)}
    assert [o.norm for o in find_layers(graph_of(nodes, weights, {"x": ("N", 8, 16)}))] == [None, None]


def test_a_float16_graph_takes_the_factors_of_the_float32_one() -> None:
    model, x = block(outliers=20), values(4)
    (seen,) = observe(model, find_layers(model), [{"x": x}], threads=1)
    by = factors(model, find_layers(model), seen, 0.5)
    half = to_fp16(model, frozenset({"norm"}))  # a Cast stands between norm and layers
    layers = find_layers(half)
    assert {o.name: o.norm for o in layers} == {o.name: o.norm for o in find_layers(model)}
    moved = checked(migrate(half, layers, by))
    assert error_of(result(moved, x), result(model, x)) < 5e-3
