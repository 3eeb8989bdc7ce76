"""Explicit Q/DQ: a graph whose layers read 8-bit activations and hold 8-bit weights.

ONNX Runtime's quantiser changes the graph, with the scales that were chosen here. Two of its habits are mended:
it gives the rounded tensor to all readers, also to the residual stream, and has its own idea of E4M3's scales.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, version_converter

from s3clip_calib.layers import Layer
from s3clip_calib.ranges import TOP, Bits

FLOAT16_OPSET = 19
"""The first with float16 scales and with FLOAT8E4M3FN. TensorRT's builders type a dequantised tensor by its
scale, and refuse to add it to another type."""


def quantise(
    model: onnx.ModelProto, layers: Sequence[Layer], limits: Mapping[str, float], bits: Bits
) -> onnx.ModelProto:
    """A copy of a graph in which these layers compute in 8 bits.

    Weights have a symmetric scale for each output channel, activations one for the tensor; all else keeps its
    type. The opset becomes 19 where the types demand it.

    Args:
        model: a float32 or float16 graph.
        layers: of `find_layers` of this graph, those to be changed; none gives an unchanged copy.
        limits: layer to the largest absolute value that its activation shall represent; layers that read the
            same activation have the same.
        bits: "int8" or "fp8", which is E4M3.
    """
    made = _raised(model, bits, layers)
    if not layers:
        return made
    kind: Any = importlib.import_module("onnxruntime.quantization").QuantType
    wanted = kind.QInt8 if bits == "int8" else kind.QFLOAT8E4M3FN
    names = [layer.name for layer in layers]
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
    _give_back(result, model, frozenset(names))
    return result


def _raised(model: onnx.ModelProto, bits: Bits, layers: Sequence[Layer]) -> onnx.ModelProto:
    """A copy in the opset that the 8-bit types need."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    half = any(constants[layer.weight] == TensorProto.FLOAT16 for layer in layers)
    opset = next(entry for entry in made.opset_import if not entry.domain)
    if (half or bits == "fp8") and opset.version < FLOAT16_OPSET:
        made = version_converter.convert_version(made, FLOAT16_OPSET)
    return made


def _scales(
    model: onnx.ModelProto, layers: Sequence[Layer], limits: Mapping[str, float], bits: Bits, kind: Any
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
        # Not below the smallest normal number of the type: smaller ones are inexact or zero.
        scale = max(limits[layer.name] / TOP[bits], float(np.finfo(weight.dtype).tiny))
        wanted[layer.activation] = [{"scale": np.array(scale, weight.dtype), **kept}]
    return wanted


def column_scales(weight: NDArray[Any], axis: int, bits: Bits) -> NDArray[Any]:
    """One symmetric scale for each index of the output axis, of the weight's own type; 1 for a zero column."""
    largest = np.abs(weight.astype(np.float64)).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    scales: NDArray[Any] = np.where(largest > 0, largest / TOP[bits], 1.0).astype(weight.dtype)
    return np.maximum(scales, np.finfo(weight.dtype).tiny)


def _stored(bits: Bits) -> Any:
    return np.int8 if bits == "int8" else importlib.import_module("ml_dtypes").float8_e4m3fn


def _no_ranges(tensors: Collection[str]) -> Any:
    """Ranges that the quantiser asks for and does not use, as every tensor has its scale."""
    calibrate = importlib.import_module("onnxruntime.quantization.calibrate")
    unused = (np.float32(-1), np.float32(1))
    return calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, dict.fromkeys(tensors, unused))


def _give_back(made: onnx.ModelProto, model: onnx.ModelProto, changed: Collection[str]) -> None:
    """All nodes but the layers read again what they read before, also a weight that they share with a layer."""
    before = {node.name: node for node in model.graph.node}
    for node in made.graph.node:
        if node.name in before and node.name not in changed:
            node.input[:] = before[node.name].input
    kept = {tensor.name for tensor in made.graph.initializer}
    read = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        tensor for tensor in model.graph.initializer if tensor.name in read and tensor.name not in kept
    )
