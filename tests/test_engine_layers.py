"""Precisions of built engines, read from the forms in which TensorRT tells them."""

from __future__ import annotations

import json

import pytest

from s3clip_export.tensorrt.layers import (
    Layer,
    check_precisions,
    layers_from_inspector,
    layers_from_log,
)
from s3clip_runtime.errors import BackendError

RTX_LOG = (
    "Layers:\n"
    "Name: __mye1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , "
    "StreamId: 0, Metadata: \n"
    "Name: conv_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,4,256,128], "
    "Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: b, Dimensions: [1], "
    "Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: c, "
    "Dimensions: [-1,768,16,8], Strides: [98304,1], Datatype: Half, Format: (NHWC) Channel major format }], "
    "TacticName: x, StreamId: 0, Metadata: [ONNX Layer: node_Conv][ONNX Layer: cast0]\n\n"
    "I/O Tensors:\n Name: crops, IOMode: Input, DataType: UInt8, Dimensions: [-1,256,128,3]\n"
)

OLD_LOG = (
    "Layers:\nName: /ff/MatMul_myl0_7, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [1,40], "
    "Format/Datatype: Half }], Outputs: [ { Name: b, Dimensions: [1,40], Format/Datatype: Half }, { Name: c, "
    "Dimensions: [1], Format/Datatype: Float }], TacticName: sm80, StreamId: 0, "
    "Metadata: [ONNX Layer: /ff/MatMul]"
)


def test_layers_of_the_build_log() -> None:
    assert layers_from_log(RTX_LOG) == (
        Layer("__mye1_0", "shape_call", (), (), ()),
        Layer("conv_myl0_2", "correlation", ("fp16",), ("fp16",), ("node_Conv", "cast0")),
    )
    assert layers_from_log(OLD_LOG) == (
        Layer("/ff/MatMul_myl0_7", "gemm", ("fp16",), ("fp16", "fp32"), ("/ff/MatMul",)),
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"Format/Datatype": "Row major linear FP16 format"}, "fp16"),
        ({"Format/Datatype": "Channel major FP32 format where channel % 4 == 0"}, "fp32"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Format/Datatype": "Half"}, "fp16"),
        ({"Datatype": "Float", "Format": "(Linear) Row major linear format"}, "fp32"),
        ({"Datatype": "BFloat16"}, "bf16"),
        ({"Datatype": "E8M0"}, "E8M0"),
    ],
)
def test_layers_of_the_inspector(kind: dict[str, str], expected: str) -> None:
    entry = {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [1, 3], "Format/Datatype": "Row major linear FP32"}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 3], **kind}],
        "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
    }
    (layer,) = layers_from_inspector(json.dumps({"Layers": [entry], "Bindings": ["x", "y"]}))
    assert layer == Layer("conv + relu", "CaskConvolution", ("fp32",), (expected,), ("conv", "relu"))
    assert layer.is_product


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["conv + relu"]}', '{"Layers": [{"Name": "x"}]}'])
def test_an_inspector_without_types_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match=r"inspector"):
        layers_from_inspector(text)


def test_a_log_of_another_form_is_refused() -> None:
    with pytest.raises(BackendError, match="lists no layers with their types"):
        layers_from_log("")
    with pytest.raises(BackendError, match="cannot be read"):
        layers_from_log("Layers:\nName: x, LayerType: gemm, Results: none")


def products(half: int, single: int) -> list[Layer]:
    halves = [Layer(f"h{i}", "gemm", ("fp16",), ("fp16",), (f"half_{i}",)) for i in range(half)]
    return [
        *halves,
        *(Layer(f"s{i}", "runtime_fusion", ("fp32",), ("fp32",), (f"single_{i}",)) for i in range(single)),
        Layer("norm", "kgen", ("fp32",), ("fp32", "fp16"), ("norm",)),
    ]


def test_an_fp16_engine_may_have_few_fp32_products() -> None:
    check_precisions(products(19, 1), "fp16")
    with pytest.raises(
        BackendError, match=r"90\.5% of the engine's 21 products write fp16.*not s0 \(fp32\), s1"
    ):
        check_precisions(products(19, 2), "fp16")


def test_what_the_graph_keeps_in_fp32_is_not_counted() -> None:
    check_precisions(products(10, 2), "fp16", fp32_nodes={"single_0", "single_1"})
    with pytest.raises(BackendError, match="not s1"):
        check_precisions(products(10, 2), "fp16", fp32_nodes={"single_0"})


def test_an_fp32_engine_has_no_fp16_product() -> None:
    check_precisions(products(0, 5), "fp32")
    with pytest.raises(BackendError, match=r"not h0 \(fp16\)"):
        check_precisions(products(1, 50), "fp32")


def test_an_engine_without_products_cannot_be_judged() -> None:
    with pytest.raises(BackendError, match="no layer whose precision can be judged among kgen"):
        check_precisions(products(0, 0), "fp16")
