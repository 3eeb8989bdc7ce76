"""TensorRT-RTX really builds the graphs of the full-size network, on the CPU, with the batches of deployment.

Nothing is run: an engine needs a GPU. What is held is that every node is taken, that the products compute in
the precision that was asked for, and how much memory the engine will want.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from quantised_graphs import EightBits, quantise

from s3clip.config import parse_config
from s3clip.models.model import build_model
from s3clip_export.fp16.audit import node_name
from s3clip_export.fp16.convert import SENSITIVE_OPS, tail_nodes
from s3clip_export.fp16.narrow import to_fp16
from s3clip_export.onnx import OPSET, export_graph, graph_sources
from s3clip_export.tensorrt.build import build_engine
from s3clip_export.tensorrt.layers import check_precisions, eight_bit_products
from s3clip_export.tensorrt.operators import MAX_OPSET, unsupported_operators
from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.manifest import Precision

pytestmark = [pytest.mark.rtx, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]


class Budget(NamedTuple):
    """Most bytes of activations at batch 64 and of weights."""

    activations: int
    weights: int


BUDGETS: dict[tuple[str, Precision], Budget] = {
    ("enhance", "fp32"): Budget(755_000_000, 12_000_000),  # measured 686 MB and 10.8 MB
    ("enhance", "fp16"): Budget(205_000_000, 6_000_000),  # 186 and 5.44
    ("patchify", "fp32"): Budget(65_000_000, 2_600_000),  # 58.5 and 2.36
    ("patchify", "fp16"): Budget(37_000_000, 1_310_000),  # 33.4 and 1.18
    ("encode", "fp32"): Budget(3_060_000_000, 429_000_000),  # 2778 and 389
    ("encode", "fp16"): Budget(1_415_000_000, 215_000_000),  # 1286 and 195
}
"""A tenth above what TensorRT-RTX 1.7 planned."""

FLOOR = 0.5
"""Least part of its budget that an engine must want: less, and it is not the full-size network."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float16 as an export makes it where the audit finds no large numbers."""
    sensitive = {node_name(node) for node in model.graph.node if node.op_type in SENSITIVE_OPS}
    return to_fp16(model, sensitive | tail_nodes(model))


@pytest.mark.parametrize("role", ["enhance", "patchify", "encode"])
def test_a_full_size_graph_builds_in_every_precision(role: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    config = parse_config(
        tomllib.loads((ROOT / "configs/seeded-full.toml").read_text("utf-8")), "seeded-full"
    )
    torch.manual_seed(0)
    (source,) = [s for s in graph_sources(build_model(config).eval()) if s.role == role]
    graph = tmp_path / f"{role}.fp32.onnx"
    export_graph(source, graph)
    build_and_check(role, "fp32", graph)
    half = tmp_path / f"{role}.fp16.onnx"
    onnx.save(to_half(onnx.load(graph)), half)
    build_and_check(role, "fp16", half)
    build_eight_bits(half, "int8", "8.6", MATRICES[role])
    build_eight_bits(half, "fp8", "8.9", MATRICES[role])


MATRICES = {"enhance": 146, "patchify": 1, "encode": 84}
"""Products with a constant matrix."""


def build_eight_bits(half: Path, kind: EightBits, capability: str, products: int) -> None:
    import tensorrt_rtx as trt

    graph = half.with_suffix(f".{kind}.onnx")
    names = quantise(half, graph, kind)
    report = build_engine(trt, graph, graph.with_suffix(".engine"), target_capabilities=(capability,))
    assert report.quantised_nodes == names
    precision: Precision = "int8-fp16" if kind == "int8" else "fp8-fp16"
    check_precisions(report.layers, precision, quantised_nodes=names)
    quick = {node for layer in eight_bit_products(report.layers, precision) for node in layer.nodes}
    assert (len(names), len(quick & set(names))) == (products, products)


def build_and_check(role: str, precision: Precision, graph: Path) -> None:
    import tensorrt_rtx as trt

    assert unsupported_operators(onnx.load(graph)) == []
    report = build_engine(trt, graph, graph.with_suffix(".engine"), target_capabilities=("8.6",))
    assert report.opset == OPSET <= MAX_OPSET
    check_precisions(report.layers, precision)
    other: Precision = "fp32" if precision == "fp16" else "fp16"
    # Where a product feeds an FP32 node, TensorRT lets it write FP32: two of the 112 of encode do.
    with pytest.raises(BackendError, match=rf"[0-2]\.\d% of the engine's \d+ products write {other}"):
        check_precisions(report.layers, other)
    products = [layer for layer in report.layers if layer.is_product]
    print(
        f"\n{role} {precision}: parse {report.parse_s:.1f} s, build {report.build_s:.1f} s, "
        f"{report.bytes} bytes, {len(report.layers)} layers, {len(products)} products, "
        f"activations {report.activation_bytes}, weights {report.weights_bytes}, warnings {report.warnings}"
    )
    budget = BUDGETS[role, precision]
    assert report.activation_bytes is not None
    assert report.weights_bytes is not None
    assert FLOOR * budget.activations < report.activation_bytes <= budget.activations
    assert FLOOR * budget.weights < report.weights_bytes <= budget.weights
    names = {name: str(info).partition(" ")[0] for name, info in {**report.inputs, **report.outputs}.items()}
    assert (
        names
        == {
            "enhance": {"crops": "uint8", "tokens": "float32", "picture": "uint8"},
            "patchify": {"crops": "uint8", "tokens": "float32"},
            "encode": {"tokens": "float32", "platform": "int64", "embedding": "float32"},
        }[role]
    )
