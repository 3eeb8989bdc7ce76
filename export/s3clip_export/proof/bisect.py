"""Where the error of a graph enters: its blocks' outputs against those of the PyTorch network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s3clip.clips import unit_range
from s3clip.models.model import S3Clip, embedding
from s3clip_export.fp16.audit import round_stored
from s3clip_export.fp16.isolated import run_isolated
from s3clip_export.onnx import block_outputs
from s3clip_runtime.inference.manifest import Role
from s3clip_runtime.inference.measure import relative_error


@dataclass(frozen=True, slots=True)
class BlockError:
    """Error of a block's output as a share of its largest absolute value."""

    block: str
    error: float


def block_errors(
    model: S3Clip, role: Role, path: Path, feeds: Mapping[str, NDArray[Any]]
) -> list[BlockError]:
    """Run a graph and the network on the same input and compare every block, in the order of the graph.

    Blocks whose output has another shape in the graph are left out, but for one that keeps the class token
    alone: this is compared.

    Args:
        model: the network that the graph was exported from, without any rewrite.
        role: of the graph.
        path: the ONNX file, of any precision.
        feeds: the graph's inputs.
    """
    graph = onnx.load(path)
    tensors = {node.output[0] for node in graph.graph.node}
    blocks = {name: tensor for name, tensor in block_outputs(graph).items() if tensor in tensors}
    expected = _network_outputs(model, role, feeds, set(blocks))
    found = _graph_outputs(graph, feeds, list(blocks.values()))
    pairs = [(name, found[tensor], expected[name]) for name, tensor in blocks.items() if name in expected]
    return [
        BlockError(name, relative_error(ours.astype(np.float32), theirs[:, : ours.shape[1]]))
        for name, ours, theirs in pairs
        if ours.shape in (theirs.shape, theirs[:, :1].shape)
    ]


def first_fault(errors: list[BlockError], bound: float) -> str:
    """A clause that names the first block beyond the bound and its error, with the one before it."""
    for place, one in enumerate(errors):
        if not one.error <= bound:
            before = f", {errors[place - 1].error:.1e} after {errors[place - 1].block}" if place else ""
            return f"the error enters in {one.block} ({one.error:.1e}{before})"
    return (
        "no single block is beyond the bound: the error is at the graph's end, or grows from block to block"
    )


def _graph_outputs(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], tensors: list[str]
) -> dict[str, NDArray[Any]]:
    # float16 is really rounded where a GPU would: ONNX Runtime alone computes most of it in float32 on a CPU.
    shown = round_stored(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    (found,) = run_isolated(shown, [feeds], graph=model.graph.name, optimisation="none")
    return found


def _network_outputs(
    model: S3Clip, role: Role, feeds: Mapping[str, NDArray[Any]], wanted: set[str]
) -> dict[str, NDArray[np.float32]]:
    """Outputs of modules of the network by their names, and tokens or embeddings as `visual`."""
    outputs: dict[str, NDArray[np.float32]] = {}

    def keep(name: str) -> Any:  # noqa: ANN401  a hook
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.float().numpy()

        return hook

    handles = [
        module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name in wanted
    ]
    try:
        with torch.no_grad():
            result = _run(model, role, {name: torch.from_numpy(feed) for name, feed in feeds.items()})
    finally:
        for handle in handles:
            handle.remove()
    return {**outputs, "visual": result.numpy()}


def _run(model: S3Clip, role: Role, feeds: Mapping[str, Tensor]) -> Tensor:
    """What a graph of this role stands for."""
    if role == "encode":
        return embedding(model.visual(feeds["tokens"], feeds["platform"]))
    crops = unit_range(feeds["crops"].permute(0, 3, 1, 2))
    frames = crops if role == "patchify" else model.enhance(crops)
    return model.visual.patch_tokens(model.normalise(frames))
