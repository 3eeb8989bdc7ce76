"""Which ONNX operators every supported TensorRT reads: facts of its parser's documentation, as data."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from importlib.resources import files

import onnx

MAX_OPSET = 20
"""Newest opset of the ONNX parser of TensorRT 10.1 to 10.3, which JetPack 6 cannot leave."""


@cache
def operator_types() -> dict[str, tuple[str, ...]]:
    """Operators of the standard domain that all supported TensorRTs read, each with its tensor types.

    `operators.json` names the sources and the rule by which they were joined.
    """
    table = json.loads(files(__package__).joinpath("operators.json").read_text("utf-8"))
    return {
        name: tuple(entry["types"]) for name, entry in table["operators"].items() if entry["supported"] == "Y"
    }


def unsupported_operators(model: onnx.ModelProto) -> list[str]:
    """What TensorRT's parser would refuse, like "2 x Det"; empty when it reads the whole graph.

    Operators of other domains, such as the fusions of ONNX Runtime, are refused too.
    """
    known = operator_types()
    found = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in model.graph.node
    )
    return [f"{count} x {name}" for name, count in sorted(found.items()) if name not in known]


def standard_opset(model: onnx.ModelProto) -> int:
    """Version of the standard operators that a model asks for; 0 if it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
