"""Precisions of built engines, read from the forms in which TensorRT tells them."""

from __future__ import annotations

import json

import pytest

from s3clip_export.tensorrt.layers import (
    Layer,
    check_precisions,
    eight_bit_products,
    layers_from_inspector,
    layers_from_log,
)
from s3clip_runtime.errors import BackendError

RTX_LOG_OF_8_BITS = (
    "Layers:\n"
    "Name: first_myl0_2, LayerType: gemm, Inputs: [ { Name: q, Dimensions: [-1,768], Strides: [768,1], "
    "Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: w, "
    "Dimensions: [768,3072], Datatype: Int8, Format: x }, { Name: alpha, Dimensions: [1], Datatype: Float, "
    "Format: x }], Outputs: [ { Name: p, Dimensions: [-1,3072], Datatype: Float, Format: x }], "
    "TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: first][ONNX Layer: first_dq]\n"
    "Name: __myl_CastMulFc_myl0_153, LayerType: runtime_fusion, Inputs: [ { Name: q, Dimensions: [-1,768], "
    "Datatype: Int8, Format: x }, { Name: w, Dimensions: [1,768,2304], Datatype: Half, Format: x }], "
    "Constants: [], Outputs: [ { Name: r, Dimensions: [1,-1,2304], Datatype: Half, Format: x }], "
    "TacticName: , StreamId: 0, Metadata: [ONNX Layer: second]\n"
    "Name: _gemm_mha_v2_myl0_6, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [-1,8,64], Datatype: Half, "
    "Format: x }, { Name: b, Dimensions: [-1,64,8], Datatype: Half, Format: x }], Constants: [], Outputs: "
    "[ { Name: c, Dimensions: [-1,8,64], Datatype: Int8, Format: x }], TacticName: _gemm_mha_v2_0x32, "
    "StreamId: 0, Metadata: [ONNX Layer: mix][ONNX Layer: out_q]\n"
)

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


def test_what_takes_8_bits_is_read_from_the_inputs() -> None:
    gemm, fusion, attention = layers_from_log(RTX_LOG_OF_8_BITS)
    assert gemm == Layer("first_myl0_2", "gemm", ("int8",), ("fp32",), ("first", "first_dq"))
    assert fusion.inputs == ("int8", "fp16")
    assert (attention.inputs, attention.outputs) == (("fp16", "fp16"), ("int8",))
    assert all(layer.is_product for layer in (gemm, fusion, attention))
    assert eight_bit_products((gemm, fusion, attention), "int8-fp16") == (gemm,)  # the fusion widens first
    assert eight_bit_products((gemm, fusion, attention), "fp8-fp16") == ()


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


def quantised_layers(eight: int, wide: int, *rest: Layer) -> list[Layer]:
    """Layers of nodes q0, q1, ...: `eight` of them read int8, `wide` fp16; and others."""
    kinds = ["int8"] * eight + ["fp16"] * wide
    return [*(Layer(f"l{i}", "gemm", (k,), ("fp32",), (f"q{i}",)) for i, k in enumerate(kinds)), *rest]


def names(count: int) -> list[str]:
    return [f"q{i}" for i in range(count)]


def test_an_8_bit_engine_may_widen_few_of_its_quantised_products() -> None:
    check_precisions(quantised_layers(19, 1), "int8-fp16", quantised_nodes=names(20))
    with pytest.raises(
        BackendError, match=r"^90\.0% of the graph's 20 quantised products compute in int8, .*: not q18, q19;"
    ):
        check_precisions(quantised_layers(18, 2), "int8-fp16", quantised_nodes=names(20))
    with pytest.raises(BackendError, match=r"^0\.0% of the graph's 20 .* compute in fp8"):
        check_precisions(quantised_layers(20, 0), "fp8-fp16", quantised_nodes=names(20))


def test_a_quantised_product_that_the_log_does_not_name_is_not_taken_for_8_bits() -> None:
    with pytest.raises(BackendError, match=r"^66\.7% .* not q2;"):
        check_precisions(quantised_layers(2, 0), "int8-fp16", quantised_nodes=names(3))
    with pytest.raises(BackendError, match="has no product of quantised activations and weights"):
        check_precisions(quantised_layers(2, 0), "int8-fp16")


def test_several_products_may_have_become_one_layer() -> None:
    fused = Layer("q+k+v", "gemm", ("int8",), ("fp32",), tuple(names(3)))
    check_precisions([fused], "int8-fp16", quantised_nodes=names(3))


def test_what_is_not_quantised_must_be_fp16() -> None:
    mixes = Layer("_gemm_mha_v2_0", "kgen", ("fp16",) * 3, ("int8",), ("mix",))
    edge = Layer("edge", "runtime_fusion", ("fp16", "fp16"), ("fp32",), ("last",))
    check_precisions(quantised_layers(4, 0, mixes, edge), "int8-fp16", quantised_nodes=names(4))
    single = Layer("single", "gemm", ("fp32",), ("fp32",), ("precise",))
    found = quantised_layers(40, 0, mixes, single)
    with pytest.raises(BackendError, match=r"50\.0% of the engine's 2 products write fp16.*not single"):
        check_precisions(found, "int8-fp16", quantised_nodes=names(40))
    check_precisions(found, "int8-fp16", quantised_nodes=names(40), fp32_nodes={"precise"})
    with pytest.raises(
        BackendError, match="not q0;"
    ):  # what is kept in FP32 is no excuse for what is quantised
        check_precisions(quantised_layers(0, 1), "int8-fp16", quantised_nodes=["q0"], fp32_nodes={"q0"})
