"""Small ONNX graphs to build engines from, sound ones and such as TensorRT refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    weights: dict[str, NDArray[np.generic]] | None = None,
    inputs: dict[str, tuple[int, Shape]] | None = None,
    opset: int = 18,
) -> Path:
    """A graph from `x`, float (N, 8, 16) unless `inputs` says otherwise, to `y`, float."""
    sources = inputs or {"x": (TensorProto.FLOAT, ("N", 8, 16))}
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in sources.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    domains = {node.domain for node in nodes} - {""}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def perceptron(path: Path, *, half: bool = False, opset: int = 18) -> Path:
    """Two products with an activation between them; `half` computes in float16, with floats at both ends."""
    kind = np.float16 if half else np.float32
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[np.generic]] = {
        name: rng.normal(size=size).astype(kind) for name, size in (("a", (16, 32)), ("b", (32, 16)))
    }
    inner = [
        helper.make_node("MatMul", ["x16" if half else "x", "a"], ["p"], name="first"),
        helper.make_node("Relu", ["p"], ["q"], name="relu"),
        helper.make_node("MatMul", ["q", "b"], ["y16" if half else "y"], name="second"),
    ]
    if half:
        inner.insert(0, helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16, name="into"))
        inner.append(helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT, name="out"))
    return write_graph(path, inner, weights=weights, opset=opset)
