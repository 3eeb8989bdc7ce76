"""Scale migration: outlier channels move from activations into weights, where each column has its own scale.

After SmoothQuant (Xiao et al., 2023), equation 4. A LayerNormalization's scale and offset are divided by a
factor for each channel and the rows of the weights behind it multiplied by the same: exact but for rounding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from s3clip_calib.layers import Layer
from s3clip_calib.observe import Observed

LEAST = 1e-5
"""Smallest largest value of a channel: one that is always zero keeps a factor that can be divided by."""

LIMITS = (2.0**-10, 2.0**10)
"""Of a factor, so that float16 graphs hold the scales."""

Factors = Mapping[str, NDArray[np.float64]]
"""LayerNormalization to the factor of each of its channels."""


def factors(
    model: onnx.ModelProto, layers: Sequence[Layer], observed: Mapping[str, Observed], exponent: float
) -> Factors:
    """How far each channel of each LayerNormalization is to be scaled down.

    Args:
        model: a float32 graph with these layers.
        layers: of `find_layers`.
        observed: of their activations.
        exponent: from 0, all range stays in the activations, to 1, all goes into the weights.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    behind: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.norm is not None:
            behind[layer.norm].append(layer)
    result = {}
    for norm, readers in behind.items():
        weights = np.max([_row_max(numpy_helper.to_array(constants[r.weight]), r) for r in readers], axis=0)
        seen = observed[readers[0].activation].channel_max.astype(np.float64)
        wanted = np.maximum(seen, LEAST) ** exponent / np.maximum(weights, LEAST) ** (1 - exponent)
        wanted /= np.exp(np.log(wanted).mean())  # the tensor's range is free: only ratios matter
        result[norm] = np.clip(wanted, *LIMITS)
    return result


def migrate(model: onnx.ModelProto, layers: Sequence[Layer], by: Factors) -> onnx.ModelProto:
    """A copy of a graph, float32 or float16, with its scales moved.

    Args:
        model: a graph with layers of these names.
        layers: of `find_layers` of it.
        by: of `factors`, maybe of the same graph in another precision.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = {node.name: node for node in made.graph.node}
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    readers = Counter(name for node in made.graph.node for name in node.input)

    def own(node: onnx.NodeProto, position: int) -> str:
        """The constant there, or a copy if others read it too, such as a norm with the same offset."""
        name = str(node.input[position])
        if readers[name] == 1:
            return name
        readers[name] -= 1
        copy = made.graph.initializer.add()
        copy.CopyFrom(constants[name])
        copy.name = node.input[position] = f"{name}_{node.name}_{position}"
        constants[copy.name] = copy
        return str(copy.name)

    def scale(name: str, factor: NDArray[np.float64]) -> None:
        array = numpy_helper.to_array(constants[name])
        changed = (array.astype(np.float64) * factor).astype(array.dtype)
        constants[name].CopyFrom(numpy_helper.from_array(changed, name))

    for norm, factor in by.items():
        node = nodes[norm]
        for position in range(1, len(node.input)):  # scale, and offset where there is one
            if node.input[position]:
                scale(own(node, position), 1 / factor)
    for layer in layers:
        if layer.norm in by:
            factor = by[str(layer.norm)]
            scale(layer.weight, factor[:, None] if layer.in_axis == 0 else factor[None, :])
    return made


def _row_max(weight: NDArray[np.float32], layer: Layer) -> NDArray[np.float64]:
    largest: NDArray[np.float64] = np.abs(weight.astype(np.float64)).max(axis=layer.out_axis)
    return largest
