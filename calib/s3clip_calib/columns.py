"""Int8 weights for the encoder: a scale a column, behind DequantizeLinear, so that any backend can read them.

What multiplies activations by these weights in int8 (OpenVINO) takes the activations' scales anew for every
token: no calibration is needed. `quantise` is the other way, with one scale a tensor that was chosen before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from s3clip_calib.layers import find_layers
from s3clip_calib.quantise import column_scales
from s3clip_calib.ranges import TOP
from s3clip_runtime.errors import BundleError


def write_int8(source: Path, target: Path) -> int:
    """Write a graph whose linear layers have int8 weights; all else stays as it is.

    Args:
        source: an ONNX file in float32.
        target: the file to write.

    Returns:
        How many weights were changed: constant matrices that activations are multiplied by.

    Raises:
        BundleError: the graph has none.
    """
    model = onnx.load(source)
    layers = {layer.weight: layer for layer in find_layers(model) if len(layer.shape) == 2}
    if not layers:
        raise BundleError(f"{source}: has no product with a constant matrix, so nothing becomes int8")
    constants = {constant.name: constant for constant in model.graph.initializer}
    made = []
    for layer in layers.values():
        values, scales = per_column(numpy_helper.to_array(constants[layer.weight]), layer.out_axis)
        names = [f"{layer.weight}_int8", f"{layer.weight}_scale"]
        model.graph.initializer.remove(constants[layer.weight])
        model.graph.initializer.append(numpy_helper.from_array(values, names[0]))
        model.graph.initializer.append(numpy_helper.from_array(scales, names[1]))
        made.append(helper.make_node("DequantizeLinear", names, [layer.weight], axis=layer.out_axis))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*made, *nodes])
    onnx.save(model, target)
    return len(layers)


def per_column(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix to int8 with one symmetric scale for each index of `axis`.

    Args:
        weight: float32 (rows, columns).
        axis: 0 or 1, the one that is not summed over in the product.

    Returns:
        int8 of the same shape, and float32 scales; their product is at most half a scale from `weight`.
    """
    scales: NDArray[np.float32] = column_scales(weight, axis, "int8")
    wide = scales[:, None] if axis == 0 else scales[None, :]
    return np.clip(np.rint(weight / wide), -TOP["int8"], TOP["int8"]).astype(np.int8), scales
