"""What the tests of float16 graphs ask of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from s3clip_export.fp16.audit import Feed, element_types, round_stored
from s3clip_export.fp16.isolated import run_isolated


def op_types(model: onnx.ModelProto, op: str) -> set[int]:
    """Element types that the nodes of one operator write."""
    types = inferred_types(model)
    return {types[n.output[0]] for n in model.graph.node if n.op_type == op}


def inferred_types(model: onnx.ModelProto) -> dict[str, int]:
    """Types by ONNX's own inference alone: what the graph declares inside is thrown away first."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    return element_types(inferred)


def casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)


def rounded_run(model: onnx.ModelProto, feeds: Sequence[Feed], name: str) -> list[NDArray[Any]]:
    """One output of a float16 graph for each feed, every float16 tensor rounded."""
    runs = run_isolated(round_stored(model), feeds, graph="test", optimisation="none")
    return [run[name] for run in runs]
