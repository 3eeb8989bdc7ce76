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

Products that write FP16, measured with TensorRT-RTX 1.7 on the full-size graphs: enhance 106 of 106,
patchify 1 of 1, encode 121 of 121; of the FP32 graphs 0 of 154, 0 of 1 and 0 of 169. So any bound between
would do here; the 5 % are for builders that let a first or last product write the FP32 of the edge.
"""

_PRODUCT = re.compile(r"gemm|conv|correlation|fusion|matmul|matrix_?multiply|mha|attention", re.IGNORECASE)
"""Kinds of layers with matrix products or convolutions: there time and weights are. TensorRT-RTX names
them gemm, correlation and runtime_fusion; TensorRT also CaskConvolution or MatrixMultiply."""

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: .*?, Outputs: (?P<outputs>\[.*?\]), "
    r"(?:TacticName|StreamId|Metadata): "
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
        outputs: precision of every output, like fp16.
        nodes: names of the ONNX nodes that were fused into it.
    """

    name: str
    kind: str
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices or convolves."""
        return _PRODUCT.search(self.kind) is not None


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
        outputs = tuple(_precision(name) for name in _LOG_TYPE.findall(match["outputs"]))
        layers.append(Layer(match["name"], match["kind"].strip(), outputs, _nodes(line[match.end() :])))
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


def check_precisions(
    layers: Sequence[Layer], precision: Precision, *, fp32_nodes: Collection[str] = frozenset()
) -> None:
    """Compare the engine's products with the precision that was asked for.

    Args:
        layers: all layers of the engine.
        precision: of the ONNX graph that it was built from.
        fp32_nodes: ONNX nodes that an FP16 graph keeps in FP32 on purpose; layers with one are left out.

    Raises:
        BackendError: too few products write the precision; names them with their share and the bound.
    """
    kept = frozenset(fp32_nodes)
    products = [layer for layer in layers if layer.is_product and kept.isdisjoint(layer.nodes)]
    if not products:
        raise BackendError(
            f"the engine has no layer whose precision can be judged among {_kinds(layers)}; "
            "report it with TensorRT's version"
        )
    wrong = [layer for layer in products if set(layer.outputs) != {precision}]
    share = 1 - len(wrong) / len(products)
    bound = MIN_HALF_SHARE if precision == "fp16" else 1.0
    if share < bound:
        some = ", ".join(f"{layer.name} ({'+'.join(sorted(set(layer.outputs)))})" for layer in wrong[:5])
        raise BackendError(
            f"{share:.1%} of the engine's {len(products)} products write {precision}, bound {bound:.0%}: "
            f"not {some}{', ...' * (len(wrong) > 5)}; export again from the {precision} graph"
        )


def _from_entry(entry: Mapping[str, object]) -> Layer:
    outputs = entry.get("Outputs", [])
    assert isinstance(outputs, list)
    kinds = tuple(_precision(str(out.get("Datatype", out.get("Format/Datatype")))) for out in outputs)
    return Layer(str(entry["Name"]), str(entry["LayerType"]), kinds, _nodes(str(entry.get("Metadata", ""))))


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
