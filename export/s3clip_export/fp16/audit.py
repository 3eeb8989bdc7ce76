"""The range audit: the largest number that each tensor of a graph takes on real crops.

Float16 ends at 65504. Which nodes come near it depends on the trained weights, so it is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from s3clip_export.fp16.isolated import open_session
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.manifest import Role

Feed = Mapping[str, NDArray[Any]]
"""Inputs of one run of a graph, by name."""

GRAPH_INPUT = "(input)"
"""Stands for the node of a tensor that is an input of the graph."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeRange(_Record):
    """Largest |x| of one output of one node; not finite where the graph gave such a number."""

    node: str
    op: str
    tensor: str
    largest: float

    def __str__(self) -> str:
        return f"{self.node} ({self.op}) {self.largest:.4g}"


class WeightRange(_Record):
    """Largest |x| of one float initializer."""

    name: str
    largest: float


class RangeAudit(_Record):
    """What `audit_ranges` measured on `runs` runs. Both lists begin with the largest value."""

    runs: int
    nodes: tuple[NodeRange, ...]
    weights: tuple[WeightRange, ...]


class RangeReport(_Record):
    """Content of a bundle's `range_audit.json`.

    Attributes:
        bound: nodes that read, hold or write larger numbers stay float32.
        graphs: what was measured.
        kept: the names of these nodes.
    """

    bound: float
    graphs: dict[Role, RangeAudit]
    kept: dict[Role, tuple[str, ...]]


def audit_ranges(model: onnx.ModelProto, feeds: Iterable[Feed]) -> RangeAudit:
    """Run a float32 graph on the CPU and note how large its tensors and weights are.

    The maxima are taken inside the graph right behind each node, so memory stays near that of a plain run.

    Raises:
        BundleError: there are no feeds, or the graph gives a number that is not finite.
    """
    weights = [
        WeightRange(name=w.name, largest=float(np.abs(numpy_helper.to_array(w)).max(initial=0.0)))
        for w in model.graph.initializer
        if w.data_type == TensorProto.FLOAT
    ]
    probed, tensors = add_probes(model, TensorProto.FLOAT)
    with tempfile.TemporaryDirectory(prefix="s3clip-") as folder:
        path = Path(folder, "probed.onnx")
        path.write_bytes(probed.SerializeToString())
        del probed  # it holds all weights again
        threads = torch.get_num_threads()
        session = open_session(path, optimisation="none", threads=threads)  # no tensor is fused away
    runs = [session.run(None, dict(feed)) for feed in tqdm(feeds, desc="range audit", unit="run")]
    if not runs:
        raise BundleError(
            f"graph {model.graph.name}: the range audit has no crops to run on; give at least one clip"
        )
    nodes = read_probes(tensors, runs)
    broken = [str(n) for n in nodes if not isfinite(n.largest)]
    if broken:
        raise BundleError(
            f"graph {model.graph.name}: {len(broken)} nodes are not finite even in float32, "
            f"first {broken[0]}; check the training run"
        )
    return RangeAudit(
        runs=len(runs),
        nodes=tuple(sorted(nodes, key=lambda n: -n.largest)),
        weights=tuple(sorted(weights, key=lambda w: -w.largest)),
    )


def add_probes(model: onnx.ModelProto, element: int) -> tuple[onnx.ModelProto, list[NodeRange]]:
    """A copy of `model` that measures its inputs and node outputs of one element type.

    Its outputs are two numbers for each of the tensors that are returned with it: max |x| and sum |x|.

    Float16 tensors are also made to be rounded: ONNX Runtime computes most float16 nodes in float32 on a CPU
    and drops the pairs of casts between them, unless an Identity stands there and optimisation is off.

    Args:
        model: any graph without subgraphs.
        element: TensorProto.FLOAT or TensorProto.FLOAT16.
    """
    types = element_types(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.node[:], graph.output[:], graph.value_info[:]
    tensors: list[NodeRange] = []

    def probe(tensor: str, node: str, op: str) -> None:
        nodes, outputs = _probe(tensor, len(tensors))
        graph.node.extend(nodes)
        graph.output.extend(outputs)
        tensors.append(NodeRange(node=node, op=op, tensor=tensor, largest=0.0))

    for value in graph.input:
        if types[value.name] == element:
            probe(value.name, GRAPH_INPUT, GRAPH_INPUT)
    for node in model.graph.node:
        measured = [name for name in node.output if name and types[name] == element]
        if element == TensorProto.FLOAT16:
            graph.node.extend(_rounded(node, measured))
        else:
            graph.node.append(node)
        for name in measured:
            probe(name, node_name(node), node.op_type)
    return copy, tensors


def read_probes(tensors: Sequence[NodeRange], runs: Iterable[Sequence[NDArray[Any]]]) -> list[NodeRange]:
    """The tensors with their largest |x| over all runs; a run is the list of its outputs (`add_probes`)."""
    largest = [0.0] * len(tensors)
    for outputs in runs:
        for i in range(len(tensors)):
            top, total = float(outputs[2 * i]), float(outputs[2 * i + 1])
            # ReduceMax of ONNX Runtime passes over NaN, a sum cannot.
            largest[i] = _larger(largest[i], total if isnan(total) else top)
    return [t.model_copy(update={"largest": top}) for t, top in zip(tensors, largest, strict=True)]


def round_stored(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every float16 tensor really is rounded on a CPU, see `add_probes`.

    It shows what a GPU computes that adds up in float32 and stores float16. Run it without optimisation.
    """
    types = element_types(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in model.graph.node:
        copy.graph.node.extend(
            _rounded(node, [n for n in node.output if types.get(n) == TensorProto.FLOAT16])
        )
    return copy


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or its first output where it has none."""
    return node.name or node.output[0]


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type (TensorProto.DataType) of every tensor by name."""
    graph = model.graph
    types = {w.name: w.data_type for w in graph.initializer}
    types |= _declared(graph)
    if any(name not in types for node in graph.node for name in node.output if name):
        types |= _declared(onnx.shape_inference.infer_shapes(model, strict_mode=True).graph)
    return types


def _declared(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _probe(tensor: str, number: int) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]:
    size, top, total = (f"probe_{number}_{part}" for part in ("abs", "max", "sum"))
    nodes = [
        helper.make_node("Cast", [tensor], [f"{size}_of"], to=TensorProto.FLOAT),
        helper.make_node("Abs", [f"{size}_of"], [size]),
        helper.make_node("ReduceMax", [size], [top], keepdims=0),
        helper.make_node("ReduceSum", [size], [total], keepdims=0),
    ]
    return nodes, [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in (top, total)]


def _rounded(node: onnx.NodeProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    raw = {name: f"{name}_unrounded" for name in outputs}
    copy.output[:] = [raw.get(name, name) for name in node.output]
    return [copy, *(helper.make_node("Identity", [raw[name]], [name]) for name in outputs)]


def _larger(a: float, b: float) -> float:
    """The larger one; NaN beats everything."""
    return nan if isnan(a) or isnan(b) else max(a, b)
