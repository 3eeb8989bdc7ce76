"""Float16 graphs of a bundle: audited, converted and tried for overflow before they are written.

A node stays float32 where float16 is known to hurt (LayerNormalization, Softmax, what stands behind the last
matrix product) and where the range audit saw numbers beyond `BOUND`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import torch
from onnx import TensorProto

from s3clip_export.fp16.audit import (
    Feed,
    NodeRange,
    RangeAudit,
    RangeReport,
    add_probes,
    audit_ranges,
    node_name,
    read_probes,
)
from s3clip_export.fp16.isolated import run_isolated
from s3clip_export.fp16.narrow import LARGEST, to_fp16
from s3clip_export.onnx import OPSET, graph_problems
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.manifest import PLAIN, Artefact, Attachment, Manifest, Role
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.records import sha256_file

BOUND = 1e4
"""Nodes with larger numbers stay float32. Float16 ends at 65504: the factor of six is for unseen crops."""

SENSITIVE_OPS = frozenset({"LayerNormalization", "Softmax"})
"""They add up squares or exponentials; TensorRT computes both in float32 anyway, so this costs nothing."""

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul", "LayerNormalization"})
"""Where the search for the tail of a graph ends."""

AUDIT_FILE = "range_audit.json"


@dataclass(frozen=True)
class Converted:
    """A float16 graph, and the nodes that stayed float32 because of their range."""

    model: onnx.ModelProto
    kept: tuple[str, ...]


def write_fp16(folder: Path, manifest: Manifest, clips: Sequence[Clip], *, bound: float = BOUND) -> Manifest:
    """Add the float16 graphs and `range_audit.json` to a draft bundle.

    Args:
        folder: holds the float32 graphs.
        manifest: names them; it is not written here.
        clips: real ones, on which ranges are measured.
        bound: see `BOUND`.

    Returns:
        The manifest with three artefacts and one attachment more.

    Raises:
        BundleError: there are no clips, or a graph overflows float16.
    """
    if not clips:
        raise BundleError(f"bundle {folder}: the range audit needs crops; give at least one clip")
    draft = Bundle(folder, manifest)
    feeds = audit_feeds(draft, clips)
    artefacts: list[Artefact] = []
    audits: dict[Role, RangeAudit] = {}
    kept: dict[Role, tuple[str, ...]] = {}
    for role in get_args(Role):
        model = onnx.load(draft.file(role, PLAIN))
        audits[role] = audit_ranges(model, feeds[role])
        converted = convert(model, audits[role], feeds[role], graph=role, bound=bound)
        kept[role] = converted.kept
        artefacts.append(_write_graph(folder, role, converted.model))
    path = folder / AUDIT_FILE
    report = RangeReport(bound=bound, graphs=audits, kept=kept)
    path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    attachment = Attachment(file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size)
    return manifest.changed(
        artefacts=(*manifest.artefacts, *artefacts),
        attachments={**manifest.attachments, "range_audit": attachment},
    )


def read_ranges(folder: Path, manifest: Manifest) -> RangeReport:
    """The range audit of a bundle that has one."""
    file = folder / manifest.attachments["range_audit"].file
    return RangeReport.model_validate_json(file.read_text("utf-8"))


def audit_feeds(draft: Bundle, clips: Sequence[Clip]) -> dict[Role, list[Feed]]:
    """For each float32 graph of a draft one feed a clip: crops, and for `encode` the tokens made of them.

    Without any LR clip `enhance` gets the HR crops, shrunk; without any HR clip `patchify` gets the LR ones.
    """
    lr = [clip for clip in clips if not clip.hr] or clips
    hr = [clip for clip in clips if clip.hr] or clips
    enhance: list[Feed] = [{"crops": lr_batch(clip.crops)} for clip in lr]
    patchify: list[Feed] = [{"crops": hr_batch(clip.crops)} for clip in hr]
    threads = torch.get_num_threads()
    sessions = {r: OrtSession(draft.file(r, PLAIN), threads=threads) for r in ("enhance", "patchify")}
    encode: list[Feed] = []
    for clip in clips:
        crops = (hr_batch if clip.hr else lr_batch)(clip.crops)
        tokens = sessions["patchify" if clip.hr else "enhance"].run({"crops": crops})["tokens"]
        encode.append({"tokens": tokens[None], "platform": np.array([clip.platform], np.int64)})
    return {"enhance": enhance, "patchify": patchify, "encode": encode}


def convert(
    model: onnx.ModelProto,
    audit: RangeAudit,
    feeds: Sequence[Feed],
    *,
    graph: str = "",
    bound: float = BOUND,
) -> Converted:
    """Choose what stays float32, convert the rest, and run the result on the audit's crops.

    Args:
        model: the float32 graph; it is left as it is.
        audit: of this graph.
        feeds: what it was audited on.
        graph: what messages call it; the graph's own name by default.
        bound: see `BOUND`.

    Raises:
        BundleError: a weight does not fit in float16, or a node overflows in spite of the bound.
    """
    name = graph or model.graph.name
    kept = nodes_beyond(model, audit, bound)
    sensitive = {node_name(n) for n in model.graph.node if n.op_type in SENSITIVE_OPS}
    try:
        narrow = to_fp16(model, {*kept, *sensitive, *tail_nodes(model)})
    except BundleError as error:
        raise BundleError(f"graph {name}: {error}") from error
    found = overflowing(narrow, feeds, graph=name)
    if found:
        raise BundleError(
            f"graph {name}: {len(found)} nodes overflow float16 (largest {LARGEST:g}) on the audit's crops: "
            f"{', '.join(map(str, found))}; export fp32 only or lower the bound ({bound:g})"
        )
    return Converted(narrow, kept)


def nodes_beyond(model: onnx.ModelProto, audit: RangeAudit, bound: float) -> tuple[str, ...]:
    """Names of the nodes that read or write a number, or hold a weight, whose |x| is above `bound`."""
    largest = {n.tensor: n.largest for n in audit.nodes} | {w.name: w.largest for w in audit.weights}
    return tuple(
        node_name(node)
        for node in model.graph.node
        if any(largest.get(tensor, 0.0) > bound for tensor in (*node.input, *node.output))
    )


def tail_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes behind the last matrix products: mean over frames, L2 norm, rounding of pictures."""
    producer = {name: node for node in model.graph.node for name in node.output if name}
    tail: set[str] = set()
    waiting = [value.name for value in model.graph.output]
    while waiting:
        node = producer.get(waiting.pop())
        if node is not None and node.op_type not in PRODUCTS and node_name(node) not in tail:
            tail.add(node_name(node))
            waiting += node.input
    return tail


def overflowing(model: onnx.ModelProto, feeds: Sequence[Feed], *, graph: str = "") -> list[NodeRange]:
    """Where a float16 graph leaves float16 on these feeds: the first nodes that do, not those that follow.

    Every float16 tensor is rounded to float16, which ONNX Runtime alone would not do (see `add_probes`).

    Raises:
        BundleError: the graph does not run, see `run_isolated`.
    """
    probed, tensors = add_probes(model, TensorProto.FLOAT16)
    if not tensors:
        return []
    outputs = [value.name for value in probed.graph.output]
    runs = run_isolated(
        probed,
        feeds,
        graph=graph or model.graph.name,
        optimisation="none",
        threads=torch.get_num_threads(),
    )
    ranges = read_probes(tensors, [[run[name] for name in outputs] for run in runs])
    return _first(model, {n.tensor: n for n in ranges if isnan(n.largest) or n.largest >= LARGEST})


def _first(model: onnx.ModelProto, bad: Mapping[str, NodeRange]) -> list[NodeRange]:
    """Those bad tensors that are not made from other bad ones."""
    tainted: set[str] = set()
    first = []
    for node in model.graph.node:
        if tainted.isdisjoint(node.input):
            found = [bad[name] for name in node.output if name in bad]
            first += found
            if not found:
                continue
        tainted |= set(node.output)
    return first


def _write_graph(folder: Path, role: Role, model: onnx.ModelProto) -> Artefact:
    problems = graph_problems(model)
    if problems:
        raise BundleError(f"graph {role} in float16 breaks the contract: {'; '.join(problems)}")
    path = folder / f"{role}.fp16.onnx"
    onnx.save(model, path)
    return Artefact(
        role=role,
        file=path.name,
        precision="fp16",
        backend="onnx",
        opset=OPSET,
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
    )
