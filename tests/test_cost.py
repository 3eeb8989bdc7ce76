"""Costs of graphs against counts by hand, and against PyTorch's own counter on the same networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import Shape
from tiny_run import tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s3clip.models.model import build_model
from s3clip_export.cost import GraphCost, OpCost, graph_cost
from s3clip_export.onnx import export_graph, graph_sources
from s3clip_runtime.errors import BundleError, ConfigError

FLOAT, HALF, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8
Weights = Mapping[str, NDArray[np.generic]]


def floats(*shape: int) -> NDArray[np.generic]:
    return np.ones(shape, np.float32)


def cost(
    nodes: Sequence[onnx.NodeProto],
    weights: Weights | None = None,
    *,
    batch: int = 2,
    inputs: dict[str, tuple[int, Shape]] | None = None,
    opset: int = 18,
) -> GraphCost:
    """Of a graph from `x`, float (N, 3, 8) unless `inputs` says otherwise, to `y`."""
    sources = inputs or {"x": (FLOAT, ("N", 3, 8))}
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in sources.items()],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    domains = {node.domain for node in nodes} - {""}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return graph_cost(helper.make_model(graph, opset_imports=imports, ir_version=11), batch)


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:  # noqa: ANN401
    return helper.make_node(kind, list(inputs), ["y"], **attributes)


# Products


def test_a_product_with_weights() -> None:
    """(2, 3, 8) by (8, 5): 30 outputs of 8 multiply-accumulates."""
    found = cost([node("MatMul", "x", "w")], {"w": floats(8, 5)})
    assert (found.nodes, found.flops, found.product_flops, found.linear_flops) == (1, 480, 480, 480)
    assert (found.weight_bytes, found.activation_bytes) == (8 * 5 * 4, (2 * 3 * 8 + 30) * 4)
    assert found.boundary_bytes == found.activation_bytes
    assert found.by_op == {"MatMul": OpCost(1, 480, 480, 480, 160, 312)}
    assert found.unknown == ()


def test_a_product_of_activations_has_no_weights() -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("MatMul", "x", "t")]
    found = cost(nodes)
    assert found.product_flops == 2 * (2 * 3 * 3) * 8
    assert found.linear_flops == found.weight_bytes == 0
    assert found.by_op["Transpose"].activation_bytes == 2 * (2 * 3 * 8) * 4
    assert found.by_op["MatMul"].activation_bytes == (48 + 48 + 18) * 4


IMAGE: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ("N", 4, 10, 6))}
ROWS: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ("N", 8))}
COLUMNS: dict[str, tuple[int, Shape]] = {"x": (FLOAT, (8, "N"))}
TOKENS: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ("N", 7, 12)), "k": (FLOAT, ("N", 9, 12))}


@pytest.mark.parametrize(
    ("one", "weights", "inputs", "products", "rest"),
    [
        (node("Gemm", "x", "w", "b"), {"w": floats(8, 5), "b": floats(5)}, ROWS, 2 * 2 * 5 * 8, 10),
        (node("Gemm", "x", "w", transA=1, transB=1), {"w": floats(5, 8)}, COLUMNS, 2 * 2 * 5 * 8, 0),
        # Two groups of two input channels; 3x3 kernel, no padding, stride 2: 4x2 positions.
        (
            node("Conv", "x", "w", "b", group=2, strides=[2, 2]),
            {"w": floats(6, 2, 3, 3), "b": floats(6)},
            IMAGE,
            2 * (2 * 6 * 4 * 2) * (2 * 9),
            2 * 6 * 4 * 2,
        ),
        (node("ConvTranspose", "x", "w"), {"w": floats(4, 5, 2, 2)}, IMAGE, 2 * (2 * 4 * 10 * 6) * 5 * 4, 0),
        (node("Einsum", "x", "w", equation="bij, jk -> bik"), {"w": floats(8, 5)}, None, 480, 0),
        (node("Einsum", "x", "w", equation="...j,jk->...k"), {"w": floats(8, 5)}, None, 480, 0),
        (node("Einsum", "x", "k", equation="bqd,bkd->bqk"), {}, TOKENS, 2 * 2 * 7 * 9 * 12, 0),
    ],
)
def test_products_by_hand(
    one: onnx.NodeProto,
    weights: Weights,
    inputs: dict[str, tuple[int, Shape]] | None,
    products: int,
    rest: int,
) -> None:
    found = cost([one], weights, inputs=inputs)
    assert (found.product_flops, found.flops - found.product_flops) == (products, rest)
    assert found.linear_flops == (products if weights else 0)
    assert found.weight_bytes == sum(array.nbytes for array in weights.values())


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_two_products_and_a_softmax(masked: bool) -> None:
    """Seven queries, nine keys, three heads of four; values of two."""
    inputs = {**TOKENS, "v": (FLOAT, ("N", 9, 6))}
    names, weights = ["x", "k", "v"], {}
    if masked:
        names, weights = [*names, "m"], {"m": floats(7, 9)}
    found = cost([node("Attention", *names, q_num_heads=3, kv_num_heads=3)], weights, inputs=inputs, opset=23)
    pairs = 2 * 3 * 7 * 9
    assert found.product_flops == 2 * pairs * (4 + 2)
    assert found.flops - found.product_flops == pairs * (6 + masked)
    assert found.linear_flops == 0
    assert found.activation_bytes == 2 * (7 * 12 + 9 * 12 + 9 * 6 + 7 * 6) * 4


def test_attention_with_heads_of_its_own_axis_is_the_same() -> None:
    inputs: dict[str, tuple[int, Shape]] = {
        "x": (FLOAT, ("N", 3, 7, 4)),
        "k": (FLOAT, ("N", 3, 9, 4)),
        "v": (FLOAT, ("N", 3, 9, 2)),
    }
    found = cost([node("Attention", "x", "k", "v")], inputs=inputs, opset=23)
    assert found.product_flops == 2 * (2 * 3 * 7 * 9) * 6


# Everything else


@pytest.mark.parametrize(
    ("one", "weights", "flops", "moved"),
    [
        (node("Add", "x", "w"), {"w": floats(8)}, 48, 96),
        (node("Mul", "x", "x"), {}, 48, 96),  # one tensor is read once
        (node("Softmax", "x"), {}, 5 * 48, 96),
        (node("LayerNormalization", "x", "g", "b"), {"g": floats(8), "b": floats(8)}, 7 * 48, 96),
        (node("ReduceMean", "x", "a", keepdims=0), {"a": np.array([2])}, 48, 48 + 6),
        (node("Reshape", "x", "s"), {"s": np.array([-1, 24])}, 0, 0),
        (
            node("Slice", "x", "i", "j", "a"),
            {"i": np.array([0]), "j": np.array([1]), "a": np.array([1])},
            0,
            2 * 16,
        ),
        (node("Gather", "x", "i", axis=1), {"i": np.array([0, 2])}, 0, 2 * 32),
        (node("Concat", "x", "x", axis=1), {}, 0, 48 + 96),
        (node("Cast", "x", to=HALF), {}, 0, 48 + 24),
    ],
)
def test_other_operators_by_hand(one: onnx.NodeProto, weights: Weights, flops: int, moved: int) -> None:
    found = cost([one], weights)
    assert (found.flops, found.product_flops, found.activation_bytes) == (flops, 0, moved * 4)
    assert found.unknown == ()


def test_bicubic_resize_has_sixteen_taps() -> None:
    sizes = {"f": np.array([1, 1, 2, 2], np.float32)}
    found = cost([node("Resize", "x", "", "f", mode="cubic")], sizes, inputs=IMAGE)
    assert found.flops == 2 * 16 * (2 * 4 * 20 * 12)


def test_fusing_alone_saves_no_flop() -> None:
    constants = {
        "r": np.array(2**0.5, np.float32),
        "o": np.array(1, np.float32),
        "h": np.array(0.5, np.float32),
    }
    apart = [
        helper.make_node("Div", ["x", "r"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "o"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["d"]),
        node("Mul", "d", "h"),
    ]
    whole, parts = cost([node("Gelu", "x")], opset=20), cost(apart, constants, opset=20)
    assert whole.flops == parts.flops == 5 * 48
    assert (whole.nodes, parts.nodes) == (1, 5)
    assert parts.activation_bytes == 192 * (2 + 2 + 2 + 3 + 2)
    assert whole.activation_bytes == 192 * 2


def test_tensors_have_their_own_width() -> None:
    half = cost(
        [node("MatMul", "x", "w")], {"w": np.ones((8, 5), np.float16)}, inputs={"x": (HALF, ("N", 8))}
    )
    assert (half.weight_bytes, half.activation_bytes) == (80, (16 + 10) * 2)
    bytes_ = {"w": np.ones((8, 5), np.int8)}
    whole = cost([node("MatMulInteger", "x", "w")], bytes_, inputs={"x": (INT8, ("N", 8))})
    assert (whole.linear_flops, whole.weight_bytes, whole.activation_bytes) == (160, 40, 16 + 10 * 4)


def test_quantised_weights_are_read_as_they_are_stored() -> None:
    """The dequantised copy depends on no input: it is neither work nor traffic of a run."""
    weights: Weights = {"q": np.ones((8, 5), np.int8), "s": np.array(0.1, np.float32)}
    unpack = helper.make_node("DequantizeLinear", ["q", "s"], ["w"])
    found = cost([unpack, node("MatMul", "x", "w")], weights)
    assert (found.nodes, found.flops, found.linear_flops) == (2, 480, 480)
    assert (found.weight_bytes, found.activation_bytes) == (40 + 4, 312)
    narrow = np.ones((8, 5)).astype(ml_dtypes.int4)
    found = cost([unpack, node("MatMul", "x", "w")], {**weights, "q": narrow}, opset=21)
    assert found.weight_bytes == 20 + 4


def test_a_weight_is_counted_once_and_an_unread_one_never() -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["t"]), node("Mul", "t", "w")]
    found = cost(nodes, {"w": floats(8), "unread": floats(100)})
    assert found.weight_bytes == 32
    assert [one.weight_bytes for one in found.by_node] == [32, 0]


def test_an_unknown_operator_is_element_wise_and_named() -> None:
    nodes = [helper.make_node("Riddle", ["x"], ["r"], domain="elsewhere"), node("MatMul", "r", "w")]
    found = cost(nodes, {"w": floats(8, 5)})
    assert found.unknown == ("elsewhere:Riddle",)
    assert found.by_op["elsewhere:Riddle"] == OpCost(1, 48, 0, 0, 0, 2 * 48 * 4)
    assert found.product_flops == 480  # what comes after it is counted too


def test_products_of_onnx_runtime() -> None:
    weights: Weights = {"w": np.ones((5, 1, 8), np.uint8), "s": floats(5)}
    packed = node("MatMulNBits", "x", "w", "s", domain="com.microsoft", K=8, N=5, bits=8, block_size=16)
    found = cost([packed], weights)
    assert (found.linear_flops, found.weight_bytes, found.unknown) == (480, 40 + 20, ())


def test_the_batch_scales_all_but_the_weights() -> None:
    one, many = (cost([node("MatMul", "x", "w")], {"w": floats(8, 5)}, batch=batch) for batch in (1, 8))
    assert many.flops == 8 * one.flops
    assert many.activation_bytes == 8 * one.activation_bytes
    assert many.weight_bytes == one.weight_bytes


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch must be at least 1, found 0"):
        cost([node("Relu", "x")], batch=0)
    with pytest.raises(BundleError, match=r"free dimensions \['M', 'N'\], and only a batch may be free"):
        cost([node("Relu", "x")], inputs={"x": (FLOAT, ("N", "M"))})
    with pytest.raises(BundleError, match="the shape of y, made by NonZero, is not known at batch 2"):
        cost([node("NonZero", "x")])


# Whole networks


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[GraphCost, int]]:
    """Role to the cost of its exported graph at batch 3 and what PyTorch counts in the same module."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    found = {}
    for source in graph_sources(build_model(tiny_config(Path("none"))).eval().requires_grad_(False)):
        export_graph(source, folder / f"{source.role}.onnx")
        inputs = [torch.zeros(3, *example.shape[1:], dtype=example.dtype) for example in source.example]
        # The counter knows products, and not the CPU's fused attention.
        plain_attention = sdpa_kernel(SDPBackend.MATH)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), plain_attention:
            source.module(*inputs)
        found[source.role] = (
            graph_cost(onnx.load(folder / f"{source.role}.onnx"), 3),
            counter.get_total_flops(),
        )
    return found


@pytest.mark.parametrize("role", ["enhance", "patchify", "encode"])
def test_products_are_those_that_pytorch_counts(
    networks: dict[str, tuple[GraphCost, int]], role: str
) -> None:
    found, counted = networks[role]
    assert counted > 1e6
    assert found.product_flops == counted
    assert found.unknown == ()
    for field in ("nodes", "flops", "product_flops", "linear_flops", "weight_bytes", "activation_bytes"):
        sums = {sum(getattr(one, field) for one in costs) for costs in (found.by_op.values(), found.by_node)}
        assert sums == {getattr(found, field)}


def test_weights_are_those_of_the_file(networks: dict[str, tuple[GraphCost, int]]) -> None:
    """Patchify's are a matrix and a bias; few bytes are shapes."""
    weights = 32 * (3 * 16 * 16 + 1) * 4
    assert weights < networks["patchify"][0].weight_bytes < weights + 100
