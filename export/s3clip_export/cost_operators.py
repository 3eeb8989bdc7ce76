"""What each ONNX operator computes: multiply-accumulates of products, FLOPs of everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import onnx

from s3clip_export.cost_shapes import Tensor, attribute

Tensors = Mapping[str, Tensor]

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size"})
"""The same values under another shape, or no values at all."""

PICKS = frozenset({"Slice", "Gather", "GatherElements", "GatherND"})

_MOVES = frozenset({
    "Transpose", "Concat", "Split", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Cast",
    "Constant", "ConstantOfShape", "Range", "ScatterElements", "ScatterND", "Trilu", "OneHot",
})  # fmt: skip
"""They write what they read. A Cast is a conversion, which runtimes do while they load or store."""

_PER_OUTPUT = {
    **dict.fromkeys([
        "Abs", "Add", "And", "Ceil", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Greater",
        "GreaterOrEqual", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
        "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Tan", "Tanh",
        "Where", "Xor",
    ], 1),
    "Clip": 2,  # two comparisons
    "LeakyRelu": 2,
    "PRelu": 2,
    "QuickGelu": 3,  # x * sigmoid(a * x)
    "Gelu": 5,  # 0.5 * x * (1 + erf(x / sqrt 2))
    "HardSigmoid": 4,
    "HardSwish": 5,
    "Softplus": 3,
    "BatchNormalization": 2,  # folded to a factor and a summand
    "Softmax": 5,  # maximum, difference, exponential, sum, quotient
    "LogSoftmax": 5,
    "LayerNormalization": 7,  # mean, difference, square, sum; factor, gamma, beta
    "InstanceNormalization": 7,
    "GroupNormalization": 7,
    "RMSNormalization": 4,  # square, sum; factor, gamma
    "QuantizeLinear": 3,  # quotient, rounding, zero point
    "DequantizeLinear": 2,
    "DynamicQuantizeLinear": 5,  # and minimum and maximum
}  # fmt: skip
"""FLOPs of one element of the first output."""

_PER_INPUT = {
    **dict.fromkeys([
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ArgMax", "ArgMin", "CumSum",
        "GlobalAveragePool", "GlobalMaxPool",
    ], 1),
    "ReduceL1": 2,
    "ReduceL2": 2,
    "ReduceSumSquare": 2,
    "LpNormalization": 3,
}  # fmt: skip
"""FLOPs of one element of the first input."""

_BIAS_INPUT = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2}
"""Where a bias is: one FLOP an output element."""

_ROW_PRODUCTS = frozenset({
    "MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
})  # fmt: skip
_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "QLinearConv"})
_SECOND_OPERAND = {"QLinearMatMul": 3, "QLinearConv": 3}
"""Input with the second operand, where it is not the input 1."""


def is_known(node: onnx.NodeProto) -> bool:
    """Whether there is a better count for the operator than one FLOP an output element."""
    name = node.op_type
    listed = (VIEWS, PICKS, _MOVES, _PER_OUTPUT, _PER_INPUT, _PRODUCTS)
    return any(name in kind for kind in listed) or name in ("Resize", "AveragePool", "MaxPool")


def product_macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Multiply-accumulates of a matrix product, convolution or attention; 0 of all others."""
    count = _PRODUCTS.get(node.op_type)
    return 0 if count is None else count(node, tensors)


def has_weights(node: onnx.NodeProto, constant: set[str]) -> bool:
    """Whether an operand of the product is constant.

    Args:
        node: any; without products none is.
        constant: names of the tensors that depend on no input.
    """
    if node.op_type not in _PRODUCTS or node.op_type == "Attention":
        return False
    operands = node.input if node.op_type == "Einsum" else (node.input[0], _second(node))
    return any(name in constant for name in operands)


def element_flops(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Arithmetic beside the products; see the module `cost` for what one FLOP is."""
    name, made = node.op_type, tensors[node.output[0]].elements
    if name in VIEWS or name in PICKS or name in _MOVES:
        return 0
    if name == "Attention":
        return _softmax_flops(node, tensors)
    if name in _PRODUCTS:
        place = _BIAS_INPUT.get(name)
        return made if place is not None and len(node.input) > place and node.input[place] else 0
    if name in _PER_INPUT:
        return _PER_INPUT[name] * tensors[node.input[0]].elements
    if name in ("AveragePool", "MaxPool"):
        return made * prod(attribute(node, "kernel_shape", [1]))
    if name == "Resize":
        return _resize_flops(node, tensors)
    return _PER_OUTPUT.get(name, 1) * made


def _second(node: onnx.NodeProto) -> str:
    return node.input[_SECOND_OPERAND.get(node.op_type, 1)]


def _row_macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Every output is a row times a column."""
    rows = tensors[node.input[0]].shape
    depth = rows[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else rows[-1]
    return tensors[node.output[0]].elements * depth


def _convolution_macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Every output reads its group's channels below the kernel."""
    return tensors[node.output[0]].elements * prod(tensors[_second(node)].shape[1:])


def _transposed_macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Every input goes to its group's channels below the kernel."""
    return tensors[node.input[0]].elements * prod(tensors[_second(node)].shape[1:])


def _einsum_macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    """All indices of the equation in one loop; with three operands and more that is the naive count."""
    left = attribute(node, "equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(left, node.input, strict=True):
        shape = list(tensors[name].shape)
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after) if dots else 0
        labels = [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return prod(sizes.values()) * max(len(left) - 1, 1)


def _heads(node: onnx.NodeProto, tensors: Tensors) -> tuple[int, int, int, int, int]:
    """Of an Attention: batch x query heads, queries, keys, depth of a key, depth of a value."""
    query, key, value = (tensors[name].shape for name in node.input[:3])
    past = tensors[node.input[4]].shape[2] if len(node.input) > 4 and node.input[4] else 0
    if len(query) == 4:
        return query[0] * query[1], query[2], key[2] + past, query[3], value[3]
    heads, shared = attribute(node, "q_num_heads", 1), attribute(node, "kv_num_heads", 1)
    return query[0] * heads, query[1], key[1] + past, query[2] // heads, value[2] // shared


def _attention_macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Queries by keys, and weights by values; of a causal one the whole square."""
    heads, queries, keys, depth, width = _heads(node, tensors)
    return heads * queries * keys * (depth + width)


def _softmax_flops(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Scale, mask if there is one, and softmax."""
    heads, queries, keys, _, _ = _heads(node, tensors)
    masked = len(node.input) > 3 and bool(node.input[3])
    return heads * queries * keys * (1 + masked + _PER_OUTPUT["Softmax"])


def _resize_flops(node: onnx.NodeProto, tensors: Tensors) -> int:
    """Weighted taps of every resized axis at once."""
    taps = {b"linear": 2, b"cubic": 4}.get(attribute(node, "mode", b"nearest"))
    if taps is None:
        return 0
    before, after = tensors[node.input[0]].shape, tensors[node.output[0]]
    axes = sum(a != b for a, b in zip(before, after.shape, strict=True))
    return 2 * after.elements * taps**axes


_PRODUCTS: dict[str, Callable[[onnx.NodeProto, Tensors], int]] = {
    **dict.fromkeys(_ROW_PRODUCTS, _row_macs),
    **dict.fromkeys(_CONVOLUTIONS, _convolution_macs),
    "ConvTranspose": _transposed_macs,
    "Einsum": _einsum_macs,
    "Attention": _attention_macs,
}
