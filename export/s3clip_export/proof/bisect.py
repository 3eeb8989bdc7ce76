"""Where the error of a graph enters: its blocks' outputs against those of the PyTorch modules."""

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

from s3clip_export.fp16.audit import round_stored
from s3clip_export.fp16.isolated import run_isolated
from s3clip_export.onnx import GraphSource, block_outputs
from s3clip_runtime.inference.measure import relative_error


@dataclass(frozen=True, slots=True)
class BlockError:
    """Error of a block's output as a share of its largest absolute value."""

    block: str
    error: float


def block_errors(source: GraphSource, path: Path, feeds: Mapping[str, NDArray[Any]]) -> list[BlockError]:
    """Run a graph and its module on the same input and compare every block, in the order of the graph.

    Blocks whose output has another shape in the graph are left out.

    Args:
        source: the module, as it was exported.
        path: the ONNX file, of any precision.
        feeds: the graph's inputs.
    """
    model = onnx.load(path)
    tensors = {node.output[0] for node in model.graph.node}
    blocks = {name: tensor for name, tensor in block_outputs(model).items() if tensor in tensors}
    expected = _module_outputs(source, feeds, set(blocks))
    found = _graph_outputs(model, feeds, list(blocks.values()))
    return [
        BlockError(name, relative_error(found[tensor].astype(np.float32), expected[name]))
        for name, tensor in blocks.items()
        if name in expected and expected[name].shape == found[tensor].shape
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


def _module_outputs(
    source: GraphSource, feeds: Mapping[str, NDArray[Any]], wanted: set[str]
) -> dict[str, NDArray[np.float32]]:
    outputs: dict[str, NDArray[np.float32]] = {}
    inner = dict(source.module.named_modules())["model"]

    def keep(name: str) -> Any:  # noqa: ANN401  a hook
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.float().numpy()

        return hook

    handles = [
        module.register_forward_hook(keep(name)) for name, module in inner.named_modules() if name in wanted
    ]
    try:
        with torch.no_grad():
            source.module(*(torch.from_numpy(feeds[name]) for name in source.inputs))
    finally:
        for handle in handles:
            handle.remove()
    return outputs
