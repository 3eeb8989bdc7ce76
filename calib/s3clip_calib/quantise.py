"""Explicit Q/DQ: a graph whose layers read 8-bit activations and hold 8-bit weights.

ONNX Runtime's quantiser changes the graph, with the scales that were chosen here. Two of its habits are
mended: the rounded tensor goes to all readers, also to the residual stream,
and E4M3's scales come from a standard deviation.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from s3clip_calib.layers import Layer
from s3clip_calib.ranges import TOP, Bits

FP8_OPSET = 19
"""The first with FLOAT8E4M3FN."""

_TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal number: a scale below would be inexact or zero."""


def quantise(
    model: onnx.ModelProto, layers: Sequence[Layer], limits: Mapping[str, float], bits: Bits
) -> onnx.ModelProto:
    """A copy of a graph in which these layers compute in 8 bits.

    Weights have a symmetric scale for each output channel, activations one for the tensor; all else stays.
    The opset of an fp8 graph becomes 19.

    Args:
        model: a graph whose layers are float32; see `widened` for a float16 one.
        layers: of `find_layers` of this graph, those to be changed; none gives an unchanged copy.
        limits: layer to the largest absolute value that its activation shall represent; layers that read the
            same activation have the same.
        bits: "int8" or "fp8", which is E4M3.
    """
    made = _raised(model, bits)
    if not layers:
        return made
    kind: Any = importlib.import_module("onnxruntime.quantization").QuantType
    wanted = kind.QInt8 if bits == "int8" else kind.QFLOAT8E4M3FN
    names = [layer.name for layer in layers]
    outputs = list(made.graph.output)
    del made.graph.output[:]  # it would round an output that a layer reads
    quantizer = importlib.import_module("onnxruntime.quantization.qdq_quantizer").QDQQuantizer(
        made,
        per_channel=True,
        reduce_range=False,
        weight_qType=wanted,
        activation_qType=wanted,
        tensors_range=_no_ranges({layer.activation for layer in layers}),
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"],
            "TensorQuantOverrides": _scales(made, layers, limits, bits, wanted),
        },
    )
    quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    result.graph.output.extend(outputs)
    _give_back(result, model, frozenset(names))
    quantizer.model.topological_sort()
    return result


def widened(model: onnx.ModelProto, layers: Sequence[Layer]) -> onnx.ModelProto:
    """A copy of a float16 graph in which these layers are float32, between casts; all else stays float16.

    `quantise` wants it so: a builder fuses the casts away, and the products run in 8 bits all the same. With
    Q/DQ in float16 it multiplies by the two scales only after the product, which it stores in float16 before:
    the scales' product is subnormal there and the sums pass 65504 (plan of TensorRT for RTX 1.7, never run).

    Args:
        model: a float16 graph.
        layers: of `find_layers` of it; those that are float32 already stay as they are.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    half = {o.name for o in layers if constants[o.weight].data_type == TensorProto.FLOAT16}
    cast: set[str] = set()
    wide: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        if node.name not in half:
            nodes.append(node)
            continue
        source = node.input[0]
        if source not in cast:
            cast.add(source)
            nodes.append(_cast(source, f"{source}_wide", TensorProto.FLOAT))
        node.input[0] = f"{source}_wide"
        for position, name in enumerate(node.input[1:], 1):  # others may read the narrow ones
            node.input[position] = f"{name}_wide"
            if name not in wide:
                wide.add(name)
                values = numpy_helper.to_array(constants[name]).astype(np.float32)
                made.graph.initializer.append(numpy_helper.from_array(values, f"{name}_wide"))
        target = node.output[0]
        node.output[0] = f"{target}_wide"
        nodes.append(node)
        nodes.append(_cast(f"{target}_wide", target, TensorProto.FLOAT16))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for tensor in [constants[name] for name in wide - read]:
        made.graph.initializer.remove(tensor)
    return made


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _raised(model: onnx.ModelProto, bits: Bits) -> onnx.ModelProto:
    """A copy in the opset that the 8-bit type needs."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if bits == "fp8" and opset < FP8_OPSET:
        return version_converter.convert_version(model, FP8_OPSET)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def _scales(
    model: onnx.ModelProto, layers: Sequence[Layer], limits: Mapping[str, float], bits: Bits, kind: object
) -> dict[str, list[dict[str, Any]]]:
    """Scales in the form that the quantiser takes: a list with one entry a channel."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    zero = np.zeros((), _stored(bits))
    wanted: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        weight = numpy_helper.to_array(constants[layer.weight])
        kept = {"quant_type": kind, "zero_point": zero}
        columns = column_scales(weight, layer.out_axis, bits)
        wanted[layer.weight] = [{"axis": layer.out_axis, "scale": scale, **kept} for scale in columns]
        scale = max(limits[layer.name] / TOP[bits], _TINY)
        wanted[layer.activation] = [{"scale": np.array(scale, np.float32), **kept}]
    return wanted


def column_scales(weight: NDArray[np.float32], axis: int, bits: Bits) -> NDArray[np.float32]:
    """One symmetric scale for each index of the output axis; 1 for a column of zeros."""
    largest = np.abs(weight.astype(np.float64)).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    scales = np.where(largest > 0, largest / TOP[bits], 1.0).astype(np.float32)
    return np.asarray(np.maximum(scales, _TINY))


def _stored(bits: Bits) -> type[np.generic]:
    if bits == "int8":
        return np.int8
    float8: type[np.generic] = importlib.import_module("ml_dtypes").float8_e4m3fn
    return float8


def _no_ranges(tensors: Collection[str]) -> object:
    """Ranges that the quantiser asks for and does not use, as every tensor has its scale."""
    calibrate = importlib.import_module("onnxruntime.quantization.calibrate")
    unused = (np.float32(-1), np.float32(1))
    return calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, dict.fromkeys(tensors, unused))


def _give_back(made: onnx.ModelProto, model: onnx.ModelProto, changed: Collection[str]) -> None:
    """All nodes but the layers read again what they read before, also a weight that a layer shares."""
    before = {node.output[0]: node for node in model.graph.node if node.name not in changed}
    for node in made.graph.node:  # known by what they make, as not all have a name
        if node.output[0] in before:
            node.input[:] = before[node.output[0]].input
    kept = {tensor.name for tensor in made.graph.initializer}
    read = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        tensor for tensor in model.graph.initializer if tensor.name in read and tensor.name not in kept
    )
