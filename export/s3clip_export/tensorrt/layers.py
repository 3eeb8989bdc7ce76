"""What a built engine really computes in: its fused layers, and the rule that they keep their precision."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.manifest import Precision

MIN_HALF_SHARE = 0.95
"""Least share of an FP16 engine's products that write FP16.

Products that write FP16, measured with TensorRT-RTX 1.7 on the full-size graphs: enhance 130 of 130,
patchify 1 of 1, encode 110 of 112; of the FP32 graphs 0 of 154, 0 of 1 and 0 of 135. So any bound between
would do here; the 5 % are for builders that let a first or last product write the FP32 of the edge.
"""

MIN_EIGHT_BIT_SHARE = 0.95
"""Least share of a graph's quantised products that an engine must compute in 8 bits.

Measured with TensorRT-RTX 1.7 on the full-size graphs with every constant weight quantised: enhance 153 of
153 (in 105 layers), patchify 1 of 1, encode 87 of 87, in int8 and in FP8. With the quantised products in
float16 instead of float32 encode came to 85: two were widened to FP16 first. With weights alone quantised,
none does.
"""

_EIGHT_BITS: dict[Precision, str] = {"int8-fp16": "int8", "fp8-fp16": "fp8"}
"""Precision to the type that its quantised products take."""

_PRODUCT = re.compile(r"gemm|conv|correlation|fusion|matmul|matrix_?multiply|mha|attention", re.IGNORECASE)
"""Kinds of layers with matrix products or convolutions: there time and weights are. TensorRT-RTX names
them gemm, correlation and runtime_fusion; TensorRT also CaskConvolution or MatrixMultiply."""

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<inputs>\[.*?\]), (?:Constants: .*?, )?"
    r"Outputs: (?P<outputs>\[.*?\]), (?:TacticName|StreamId|Metadata): "
)
_LOG_TYPE = re.compile(r"\b(?:Format/)?Datatype: ([^,}]+)")
_LOG_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_NAMES = {
    "half": "fp16",
    "fp16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "uint8": "uint8",
    "fp8": "fp8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One fused layer of an engine.

    Attributes:
        name: the builder's own.
        kind: the builder's word for what it is, like gemm or kgen.
        inputs: precision of every input, like int8; TensorRT-RTX lists weights apart, not here.
        outputs: precision of every output, like fp16.
        nodes: names of the ONNX nodes that were fused into it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices or convolves. A fused attention tells so by its name alone."""
        return _PRODUCT.search(self.kind) is not None or "_mha_" in self.name

    def multiplies(self, kind: str) -> bool:
        """Whether it is a product whose activations come in and are multiplied as `kind`, like int8.

        A runtime_fusion is none: those with 8-bit inputs that were seen (CastMulFc) widen them first.
        """
        return self.is_product and "fusion" not in self.kind.lower() and self.inputs[:1] == (kind,)


def layers_from_log(text: str) -> tuple[Layer, ...]:
    """Layers of the build log's message that starts with `Layers:` (VERBOSE, at DETAILED verbosity).

    Raises:
        BackendError: the message has another form than this reader knows.
    """
    listed = [line for line in text.splitlines() if ", LayerType: " in line]
    layers = []
    for line in listed:
        match = _LINE.search(line)
        if match is None:
            raise BackendError(
                f"a layer of the build log cannot be read: {line[:200]!r}; report it with TensorRT's version"
            )
        inputs, outputs = (
            tuple(_precision(name) for name in _LOG_TYPE.findall(match[side]))
            for side in ("inputs", "outputs")
        )
        nodes = _nodes(line[match.end() :])
        layers.append(Layer(match["name"], match["kind"].strip(), inputs, outputs, nodes))
    return _some(layers, "the build log")


def layers_from_inspector(text: str) -> tuple[Layer, ...]:
    """Layers of what the engine inspector says as JSON.

    Raises:
        BackendError: the engine was not built with DETAILED verbosity, so that its layers have no types.
    """
    try:
        entries = json.loads(text)["Layers"]
        layers = [_from_entry(entry) for entry in entries if isinstance(entry, Mapping)]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"the engine inspector's JSON cannot be read ({error!r}); report it with TensorRT's version"
        ) from error
    return _some(layers, "the engine inspector")


def eight_bit_products(layers: Sequence[Layer], precision: Precision) -> tuple[Layer, ...]:
    """The layers that multiply in the 8 bits of a precision, like int8 for "int8-fp16".

    Layers are fused: one may be several products of the graph, like those of queries, keys and values.
    """
    return tuple(layer for layer in layers if layer.multiplies(_EIGHT_BITS[precision]))


def check_precisions(
    layers: Sequence[Layer],
    precision: Precision,
    *,
    fp32_nodes: Collection[str] = frozenset(),
    quantised_nodes: Collection[str] = frozenset(),
) -> None:
    """Compare the engine's products with the precision that was asked for.

    Args:
        layers: all layers of the engine.
        precision: of the ONNX graph that it was built from.
        fp32_nodes: ONNX nodes that an FP16 graph keeps in FP32 on purpose; layers with one are left out.
        quantised_nodes: ONNX nodes that must compute in 8 bits, see `quantised_products`. Only the 8-bit
            precisions look at them.

    Raises:
        BackendError: too few products have the precision; names them with their share and the bound. Or an
            8-bit precision is asked of a graph without quantised nodes.
    """
    kept = frozenset(fp32_nodes)
    if precision in _EIGHT_BITS:
        _check_quantised(layers, precision, quantised_nodes)
        kept |= frozenset(quantised_nodes)
    products = [layer for layer in layers if layer.is_product and kept.isdisjoint(layer.nodes)]
    if precision in _EIGHT_BITS:
        _check_rest(products)
    elif not products:
        raise BackendError(
            f"the engine has no layer whose precision can be judged among {_kinds(layers)}; "
            "report it with TensorRT's version"
        )
    else:
        wrong = [layer for layer in products if set(layer.outputs) != {precision}]
        _check_share(products, wrong, precision, MIN_HALF_SHARE if precision == "fp16" else 1.0)


def _check_quantised(layers: Sequence[Layer], precision: Precision, nodes: Collection[str]) -> None:
    """Every quantised product must be part of a layer that multiplies in 8 bits."""
    if not nodes:
        raise BackendError(
            f"the graph has no product of quantised activations and weights, and {precision} needs some; "
            "make its graphs again with s3clip-calib"
        )
    quick = {node for layer in eight_bit_products(layers, precision) for node in layer.nodes}
    wrong = [node for node in nodes if node not in quick]
    share = 1 - len(wrong) / len(nodes)
    if share < MIN_EIGHT_BIT_SHARE:
        raise BackendError(
            f"{share:.1%} of the graph's {len(nodes)} quantised products compute in "
            f"{_EIGHT_BITS[precision]}, bound {MIN_EIGHT_BIT_SHARE:.0%}: not {_some_of(wrong)}; "
            "use the fp16 engines, and report it with TensorRT's version"
        )


def _check_rest(products: Sequence[Layer]) -> None:
    """What is not quantised must be FP16. It may write what a quantised or an FP32 neighbour takes."""
    wrong = [layer for layer in products if {"fp16"} not in (set(layer.inputs), set(layer.outputs))]
    _check_share(products, wrong, "fp16", MIN_HALF_SHARE)


def _check_share(products: Sequence[Layer], wrong: Sequence[Layer], precision: str, bound: float) -> None:
    share = 1 - len(wrong) / max(len(products), 1)
    if share < bound:
        some = _some_of([f"{layer.name} ({'+'.join(sorted(set(layer.outputs)))})" for layer in wrong])
        raise BackendError(
            f"{share:.1%} of the engine's {len(products)} products write {precision}, bound {bound:.0%}: "
            f"not {some}; export again from the {precision} graph"
        )


def _some_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' * (len(names) > 5)}"


def _from_entry(entry: Mapping[str, object]) -> Layer:
    inputs, outputs = (_tensor_precisions(entry.get(side, [])) for side in ("Inputs", "Outputs"))
    nodes = _nodes(str(entry.get("Metadata", "")))
    return Layer(str(entry["Name"]), str(entry["LayerType"]), inputs, outputs, nodes)


def _tensor_precisions(tensors: object) -> tuple[str, ...]:
    assert isinstance(tensors, list)
    return tuple(_precision(str(t.get("Datatype", t.get("Format/Datatype")))) for t in tensors)


def _precision(text: str) -> str:
    """Our word for "Half", "Row major linear FP16 format" and their like; the builder's own if it is new."""
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        if word in _NAMES:
            return _NAMES[word]
    return text.strip()


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(_LOG_NODE.findall(metadata))


def _kinds(layers: Iterable[Layer]) -> str:
    return ", ".join(sorted({layer.kind for layer in layers})) or "none"


def _some(layers: Sequence[Layer], source: str) -> tuple[Layer, ...]:
    if not layers:
        raise BackendError(f"{source} lists no layers with their types; build with DETAILED verbosity")
    return tuple(layers)
