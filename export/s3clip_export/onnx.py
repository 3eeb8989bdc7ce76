"""PyTorch modules to simplified ONNX files with a dynamic batch and nothing else dynamic."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import torch
from torch import Tensor, nn

from s3clip.models.model import S3Clip
from s3clip_export.fixed_shapes import write_down_shapes
from s3clip_export.graphs import Encode, Enhance, Patchify
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.spec import BATCH_PROFILE, CLIP_LENGTH, FRAME_SIZE, LR_SIZE, PLATFORMS

OPSET = 18
"""LayerNormalization is one op from 17; JetPack 6's TensorRT reads up to 20."""

BLOCKS = "s3clip.blocks"
"""Key of the graph's note on its blocks, by which a failing graph is searched."""

_BLOCK = re.compile(r"(sr|up|visual)(\.[a-z_][a-z_0-9]*)?|(sr|visual)(\.[a-z_][a-z_0-9]*)+\.\d+")
"""Children of both networks, and the entries of their lists of layers."""

FORBIDDEN_OPS = frozenset({"Loop", "If", "Scan", "Shape", "NonZero"})


@dataclass(frozen=True)
class GraphSource:
    """One graph to export: role (also the file's stem), module, example inputs and tensor names."""

    role: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def graph_sources(model: S3Clip) -> list[GraphSource]:
    """The three graphs of the contract (design: enhance, patchify, encode)."""
    batch = 2  # 0 and 1 are specialised by torch.export
    width = model.visual.config.width
    lr = torch.zeros(batch, *LR_SIZE, 3, dtype=torch.uint8)
    hr = torch.zeros(batch, *FRAME_SIZE, 3, dtype=torch.uint8)
    tokens = torch.zeros(batch, CLIP_LENGTH, model.visual.config.patches, width)
    platform = torch.arange(batch) % len(PLATFORMS)
    return [
        GraphSource("enhance", Enhance(model), (lr,), ("crops",), ("tokens", "picture")),
        GraphSource("patchify", Patchify(model), (hr,), ("crops",), ("tokens",)),
        GraphSource("encode", Encode(model), (tokens, platform), ("tokens", "platform"), ("embedding",)),
    ]


def export_graph(source: GraphSource, path: Path) -> None:
    """Trace, simplify (the exporter folds constants and drops dead nodes), check and save one graph.

    Raises:
        BundleError: a forbidden operator, another opset, or a dynamic dimension beside the batch.
    """
    batch = torch.export.Dim("N", min=1, max=BATCH_PROFILE[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            source.module.eval(),
            source.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(source.inputs),
            output_names=list(source.outputs),
            dynamic_shapes=tuple({0: batch} for _ in source.example),
            verbose=False,
        )
    if program is None:
        raise BundleError(f"graph {source.role}: the exporter returned nothing; update torch and onnxscript")
    graph = program.model_proto
    blocks = _block_outputs(graph)
    _strip_traces(graph)
    onnx.helper.set_model_props(graph, {BLOCKS: json.dumps(blocks)})
    write_down_shapes(graph)
    problems = graph_problems(graph)
    if problems:
        raise BundleError(
            f"graph {source.role} breaks the contract: {'; '.join(problems)}; a network of your own must "
            "leave the batch free: reshape(-1, ...), no int(x.shape[0]) and no expand to it"
        )
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: stack traces with paths of the exporting machine."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""


def _block_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Name of a module's block to the tensor that holds its output, in the order of the graph."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        for scope in ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]")):
            name = scope.removeprefix("model.")
            if _BLOCK.fullmatch(name):
                found.pop(name, None)  # so that the order is that of the blocks' ends
                found[name] = node.output[0]
    return found


def block_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """What `export_graph` noted in the graph: module path of each block to its output tensor."""
    notes = {entry.key: entry.value for entry in model.metadata_props}
    return cast(dict[str, str], json.loads(notes.get(BLOCKS, "{}")))


def graph_problems(graph: onnx.ModelProto) -> list[str]:
    """What a graph has that a bundle must not hold; empty when it is fine."""
    problems = []
    counts = Counter(node.op_type for node in graph.graph.node)
    problems += [f"{counts[op]} x {op}, allowed 0" for op in sorted(FORBIDDEN_OPS & counts.keys())]
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    if opsets != {"": OPSET}:
        problems.append(f"opset is {opsets}, must be {OPSET} of the standard domain alone")
    for value in (*graph.graph.input, *graph.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims[0].dim_param:
            problems.append(f"{value.name}: the batch dimension is fixed to {dims[0].dim_value}")
        problems += [
            f"{value.name}: dimension {i} is dynamic" for i, dim in enumerate(dims) if i and dim.dim_param
        ]
    return problems
