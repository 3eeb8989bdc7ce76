"""TensorRT-RTX builds 8-bit graphs on the CPU: its log shows which products take int8 or FP8."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from quantised_graphs import BLOCK_PRODUCTS, EightBits, block, quantise
from tiny_graphs import perceptron

from s3clip_export.tensorrt.build import EngineReport, TensorRT, build_engine
from s3clip_export.tensorrt.layers import check_precisions, eight_bit_products
from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.manifest import Precision

pytestmark = pytest.mark.rtx


class Case(NamedTuple):
    """An 8-bit precision, and a compute capability that has it."""

    kind: EightBits
    precision: Precision
    capability: str


CASES = [Case("int8", "int8-fp16", "8.6"), Case("fp8", "fp8-fp16", "8.9")]


@pytest.fixture
def trt() -> TensorRT:
    module: TensorRT = pytest.importorskip("tensorrt_rtx")
    return module


@pytest.fixture(params=CASES, ids=lambda case: case.kind)
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


def build(trt: TensorRT, graph: Path, capability: str) -> EngineReport:
    return build_engine(
        trt, graph, graph.with_suffix(".engine"), target_capabilities=(capability,), batches=(1, 2, 8)
    )


def test_every_product_of_a_tiny_graph_computes_in_8_bits(trt: TensorRT, tmp_path: Path, case: Case) -> None:
    graph = tmp_path / "tiny.8.onnx"
    names = quantise(perceptron(tmp_path / "tiny.onnx", half=True), graph, case.kind)
    report = build(trt, graph, case.capability)
    assert report.opset == 19
    assert report.quantised_nodes == names == ("first", "second")
    found = eight_bit_products(report.layers, case.precision)
    assert [layer.inputs for layer in found] == [(case.kind,), (case.kind,)]
    check_precisions(report.layers, case.precision, quantised_nodes=names)


def test_a_full_width_block_computes_its_linear_layers_in_8_bits(
    trt: TensorRT, tmp_path: Path, case: Case
) -> None:
    half = block(tmp_path / "block.onnx")
    graph = tmp_path / "block.8.onnx"
    names = quantise(half, graph, case.kind)
    assert names == BLOCK_PRODUCTS
    report = build(trt, graph, case.capability)
    found = eight_bit_products(report.layers, case.precision)
    # Queries, keys and values have one source and become one product.
    assert Counter(name for layer in found for name in layer.nodes if name in names) == Counter(names)
    assert len(found) == 4
    # Float16 would hold the sums of 8-bit products before their scales: they pass 65504.
    assert {layer.outputs for layer in found} == {("fp32",)}
    check_precisions(report.layers, case.precision, quantised_nodes=report.quantised_nodes)
    (attention,) = [layer for layer in report.layers if "softmax" in layer.nodes]
    assert attention.is_product
    assert (attention.inputs, attention.outputs) == (("fp16",) * 3, (case.kind,))

    plain = build(trt, half, case.capability)
    assert plain.quantised_nodes == ()
    assert eight_bit_products(plain.layers, case.precision) == ()
    check_precisions(plain.layers, "fp16")
    assert report.weights_bytes is not None
    assert plain.weights_bytes is not None
    assert report.weights_bytes < 0.51 * plain.weights_bytes


def test_without_its_scales_a_graph_does_not_pass(trt: TensorRT, tmp_path: Path, case: Case) -> None:
    half = block(tmp_path / "block.onnx")
    names = quantise(half, tmp_path / "block.8.onnx", case.kind)
    bare = build(trt, strip(tmp_path / "block.8.onnx"), case.capability)
    with pytest.raises(BackendError, match=r"^0\.0% of the graph's 6 quantised products compute in .*query"):
        check_precisions(bare.layers, case.precision, quantised_nodes=names)
    with pytest.raises(BackendError, match="has no product of quantised activations and weights"):
        check_precisions(bare.layers, case.precision, quantised_nodes=bare.quantised_nodes)


def test_8_bit_weights_alone_are_no_8_bit_products(trt: TensorRT, tmp_path: Path, case: Case) -> None:
    graph = tmp_path / "tiny.8.onnx"
    half = perceptron(tmp_path / "tiny.onnx", half=True)
    names = quantise(half, graph, case.kind, activations=False)
    report = build(trt, graph, case.capability)
    assert report.quantised_nodes == ()
    with pytest.raises(BackendError, match=r"^0\.0% of the graph's 2 quantised products"):
        check_precisions(report.layers, case.precision, quantised_nodes=names)


def test_kept_layers_stay_fp16(trt: TensorRT, tmp_path: Path, case: Case) -> None:
    """A mixed graph passes; one product that was taken for quantised and is not makes it fail."""
    graph = tmp_path / "block.8.onnx"
    kept = ("out", "down")
    names = quantise(block(tmp_path / "block.onnx"), graph, case.kind, keep=kept)
    report = build(trt, graph, case.capability)
    assert report.quantised_nodes == names
    check_precisions(report.layers, case.precision, quantised_nodes=names)
    with pytest.raises(BackendError, match=r"^66\.7% of the graph's 6 .* bound 95%: not out, down;"):
        check_precisions(report.layers, case.precision, quantised_nodes=(*names, *kept))


def test_fp8_is_refused_where_the_gpu_has_none(trt: TensorRT, tmp_path: Path) -> None:
    graph = tmp_path / "tiny.8.onnx"
    quantise(perceptron(tmp_path / "tiny.onnx", half=True), graph, "fp8")
    with pytest.raises(BackendError, match=r"built no engine: .*sm86.*fp8"):
        build(trt, graph, "8.6")


def strip(graph: Path) -> Path:
    """The same graph without QuantizeLinear and DequantizeLinear; its weights keep their rounding."""
    model = onnx.load(graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            nodes.append(helper.make_node("Identity", node.input[:1], node.output))
        elif node.op_type != "DequantizeLinear":
            nodes.append(node)
        elif node.input[0] in weights:
            steps, scale = (
                numpy_helper.to_array(weights[name]).astype(np.float32) for name in node.input[:2]
            )
            model.graph.initializer.append(numpy_helper.from_array(steps * scale, node.output[0]))
        else:
            nodes.append(helper.make_node("Identity", node.input[:1], node.output))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    bare = graph.with_suffix(".bare.onnx")
    onnx.save(model, bare)
    return bare
