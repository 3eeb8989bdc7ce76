"""Float32 graphs to float16 ones, typed node by node.

The converter of onnxruntime.transformers is not used: it sends a tensor between two float32 nodes through
float16, where it overflows, and clamps weights without a word.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from s3clip_export.fp16.audit import element_types, node_name
from s3clip_runtime.errors import BundleError

LARGEST = float(np.finfo(np.float16).max)
"""65504, the largest float16."""

_FLOAT16 = "tensor(float16)"
_FLOAT_ALONE = {"tensor(float)"}
"""Types of an input that the operator itself demands in float32, like the scales of Resize."""


def to_fp16(model: onnx.ModelProto, keep_fp32: AbstractSet[str]) -> onnx.ModelProto:
    """A float16 copy of a graph; its inputs and outputs keep their types.

    Casts stand only where a float16 and a float32 node meet; a weight that both kinds read is there twice.

    Args:
        model: a float32 graph without subgraphs; it is left as it is.
        keep_fp32: names of nodes (`node_name`) that stay float32, as do operators without a float16 form.

    Raises:
        BundleError: a weight of a float16 node does not fit in float16.
    """
    return _Narrowing(model, keep_fp32).result()


class _Narrowing:
    """One conversion: walks over the nodes in order and gives every tensor its type."""

    def __init__(self, model: onnx.ModelProto, keep_fp32: AbstractSet[str]) -> None:
        self._model = model
        self._opset = next(entry.version for entry in model.opset_import if not entry.domain)
        self._float = {n for n, kind in element_types(model).items() if kind == TensorProto.FLOAT}
        self._weights = {w.name: w for w in model.graph.initializer}
        self._wide = {node_name(n) for n in model.graph.node if not self._narrowable(n)} | keep_fp32
        self._types: dict[str, int] = {v.name: TensorProto.FLOAT for v in model.graph.input}
        self._outputs = {value.name for value in model.graph.output}
        self._renamed: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._used: dict[str, onnx.TensorProto] = {}

    def result(self) -> onnx.ModelProto:
        for node in self._model.graph.node:
            self._add(node)
        for name in sorted(self._outputs & self._renamed.keys()):
            self._cast(self._renamed[name], name, TensorProto.FLOAT)
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        graph = made.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._used.values())
        graph.value_info.extend(self._value_infos())
        onnx.checker.check_model(made, full_check=True)
        return made

    def _add(self, node: onnx.NodeProto) -> None:
        kind = TensorProto.FLOAT if node_name(node) in self._wide else TensorProto.FLOAT16
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for i, name in enumerate(node.input):
            fixed = name in self._float and self._input_types(node, i) == _FLOAT_ALONE
            new.input[i] = self._input(name, TensorProto.FLOAT if fixed else kind)
        for i, name in enumerate(node.output):
            if name in self._float:
                new.output[i] = self._output(name, kind)
        if kind == TensorProto.FLOAT16 and node.op_type == "Cast":
            for attribute in new.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        self._nodes.append(new)

    def _input(self, name: str, kind: int) -> str:
        """The name under which a node finds this tensor in the given type."""
        if name in self._weights:
            return self._weight(name, kind)
        source = self._renamed.get(name, name)
        if name not in self._float or self._types[source] == kind:
            return source
        target = f"{name}_as_{'fp16' if kind == TensorProto.FLOAT16 else 'fp32'}"
        if target not in self._types:
            self._cast(source, target, kind)
        return target

    def _output(self, name: str, kind: int) -> str:
        if name in self._outputs and kind == TensorProto.FLOAT16:
            self._renamed[name] = f"{name}_as_fp16"
        made = self._renamed.get(name, name)
        self._types[made] = kind
        self._sources[made] = name
        return made

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind))
        self._types[target] = kind
        self._sources[target] = self._sources.get(source, source)

    def _weight(self, name: str, kind: int) -> str:
        weight = self._weights[name]
        if name not in self._float or kind == TensorProto.FLOAT:
            self._used[name] = weight
            return name
        target = f"{name}_fp16"
        if target not in self._used:
            array: NDArray[np.float32] = numpy_helper.to_array(weight)
            top = float(np.abs(array).max(initial=0.0))
            if not top <= LARGEST:
                raise BundleError(
                    f"weight {name} holds {top:.4g}, float16 ends at {LARGEST:g}; keep the nodes that read "
                    "it in float32 (lower the bound) or export fp32 only"
                )
            self._used[target] = numpy_helper.from_array(array.astype(np.float16), target)
        return target

    def _value_infos(self) -> list[onnx.ValueInfoProto]:
        """Shapes as they were, types as they are now."""
        graph = self._model.graph
        known = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
        public = {v.name for v in (*graph.input, *graph.output)}
        infos = []
        for node in self._nodes:
            for name in node.output:
                source = known.get(self._sources.get(name, name))
                if source is None or name in public:
                    continue
                info = onnx.ValueInfoProto()
                info.CopyFrom(source)
                info.name = name
                if name in self._types:
                    info.type.tensor_type.elem_type = self._types[name]
                infos.append(info)
        return infos

    def _narrowable(self, node: onnx.NodeProto) -> bool:
        """Whether the operator takes float16 where this node has float32 and no attribute fixes the type."""
        if any(a.name == "dtype" or a.type == onnx.AttributeProto.TENSOR for a in node.attribute):
            return False
        reads = [self._input_types(node, i) for i, name in enumerate(node.input) if name in self._float]
        writes = [self._output_types(node, i) for i, name in enumerate(node.output) if name in self._float]
        free = [types for types in reads if types != _FLOAT_ALONE]
        return all(_FLOAT16 in types for types in (*free, *writes))

    def _input_types(self, node: onnx.NodeProto, i: int) -> AbstractSet[str]:
        formal = onnx.defs.get_schema(node.op_type, self._opset, node.domain).inputs
        return formal[min(i, len(formal) - 1)].types  # the last one may be variadic

    def _output_types(self, node: onnx.NodeProto, i: int) -> AbstractSet[str]:
        formal = onnx.defs.get_schema(node.op_type, self._opset, node.domain).outputs
        return formal[min(i, len(formal) - 1)].types
