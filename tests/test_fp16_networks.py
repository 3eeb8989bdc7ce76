"""Float16 graphs of the real networks, tiny: PyTorch's hooks as the truth, accuracy, planted overflows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fp16_graphs import casts, inferred_types, op_types, rounded_run
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from tiny_run import tiny_tree
from torch import Tensor, nn

from s3clip.clips import load_crops
from s3clip.config import DataSettings, parse_config
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip.models.model import S3Clip, build_model
from s3clip_export.fp16 import isolated
from s3clip_export.fp16.audit import (
    Feed,
    audit_ranges,
    node_name,
)
from s3clip_export.fp16.convert import BOUND, convert, nodes_beyond, tail_nodes
from s3clip_export.fp16.isolated import run_isolated
from s3clip_export.fp16.narrow import LARGEST, to_fp16
from s3clip_export.onnx import export_graph, graph_sources
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.manifest import Role
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
NO_BOUND = float("inf")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> S3Clip:
    torch.manual_seed(0)
    return build_model(parse_config(tiny_tree(tmp_path_factory.mktemp("none")), "test")).eval()


@pytest.fixture(scope="module")
def graphs(model: S3Clip, tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    return exported(model, tmp_path_factory.mktemp("graphs"), ("enhance", "patchify", "encode"))


@pytest.fixture(scope="module")
def feeds(tiny_world: Path, graphs: dict[str, onnx.ModelProto]) -> dict[Role, list[Feed]]:
    """Crops of the block world, and tokens that PyTorch's own graphs make of them."""
    tracklets = protocol_tracklets(read_protocols(DataSettings(root=tiny_world)))
    chosen = [t for kind in (False, True) for t in [t for t in tracklets if t.hr == kind][:2]]
    clips = [Clip(tuple(load_crops(t, spread_indices(len(t)))), t.platform, t.hr) for t in chosen]
    return real_feeds(clips, graphs)


def real_feeds(clips: Sequence[Clip], graphs: Mapping[str, onnx.ModelProto]) -> dict[Role, list[Feed]]:
    lr: list[Feed] = [{"crops": lr_batch(clip.crops)} for clip in clips if not clip.hr]
    hr: list[Feed] = [{"crops": hr_batch(clip.crops)} for clip in clips if clip.hr]
    tokens = [*plain_run(graphs["enhance"], lr, "tokens"), *plain_run(graphs["patchify"], hr, "tokens")]
    encode: list[Feed] = [{"tokens": t[None], "platform": np.array([i % 2])} for i, t in enumerate(tokens)]
    return {"enhance": lr, "patchify": hr, "encode": encode}


def exported(model: S3Clip, folder: Path, roles: Sequence[str]) -> dict[str, onnx.ModelProto]:
    graphs = {}
    for source in graph_sources(model):
        if source.role in roles:
            export_graph(source, folder / f"{source.role}.onnx")
            graphs[source.role] = onnx.load(folder / f"{source.role}.onnx")
    return graphs


def plain_run(model: onnx.ModelProto, feeds: Sequence[Feed], name: str) -> list[NDArray[Any]]:
    session = isolated.open_session(model.SerializeToString(), optimisation="basic", threads=1)
    return [session.run([name], dict(feed))[0] for feed in feeds]


def cosines(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> NDArray[Any]:
    x, y = np.concatenate(a).astype(np.float64), np.concatenate(b).astype(np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    result: NDArray[Any] = (x * y).sum(axis=-1) / norms
    return result


@pytest.mark.parametrize("role", ["enhance", "encode"])
def test_the_audit_sees_what_pytorchs_hooks_see(
    role: Role, model: S3Clip, graphs: dict[str, onnx.ModelProto], feeds: dict[Role, list[Feed]]
) -> None:
    """The LayerNorms in the order of their calls: what goes in is a block's residual stream."""
    seen: list[list[float]] = []
    run: list[float] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        run.extend([float(inputs[0].abs().max()), float(output.abs().max())])

    source = next(s for s in graph_sources(model) if s.role == role)
    hooks = [m.register_forward_hook(note) for m in source.module.modules() if isinstance(m, nn.LayerNorm)]
    with torch.no_grad():
        for feed in feeds[role]:
            run.clear()
            source.module.eval()(*(torch.from_numpy(feed[name]) for name in source.inputs))
            seen.append(list(run))
    for hook in hooks:
        hook.remove()
    largest = {n.tensor: n.largest for n in audit_ranges(graphs[role], feeds[role]).nodes}
    norms = [n for n in graphs[role].graph.node if n.op_type == "LayerNormalization"]
    found = [largest[tensor] for n in norms for tensor in (n.input[0], n.output[0])]
    assert len(found) == 12
    np.testing.assert_allclose(found, np.max(seen, axis=0), rtol=1e-4)


@pytest.mark.parametrize("role", ["enhance", "patchify", "encode"])
def test_float16_graphs_compute_what_float32_graphs_do(
    role: Role, graphs: dict[str, onnx.ModelProto], feeds: dict[Role, list[Feed]]
) -> None:
    model = graphs[role]
    before = model.SerializeToString()
    converted = convert(model, audit_ranges(model, feeds[role]), feeds[role])
    assert converted.kept == ()
    assert model.SerializeToString() == before
    again = convert(model, audit_ranges(model, feeds[role]), feeds[role])
    assert again.model.SerializeToString() == converted.model.SerializeToString()

    types = inferred_types(converted.model)
    for op in ("LayerNormalization", "Softmax", "ReduceL2", "ReduceMean"):
        assert op_types(converted.model, op) <= {FLOAT}
    for op in ("Conv", "MatMul"):
        assert op_types(converted.model, op) <= {FLOAT16}
    for node in converted.model.graph.node:
        if node_name(node) in tail_nodes(model):
            assert types[node.output[0]] != FLOAT16
    declared = {v.name: v.type.tensor_type.elem_type for v in converted.model.graph.value_info}
    assert declared == {name: types[name] for name in declared}
    assert {o for n in converted.model.graph.node for o in n.output} <= {
        *declared,
        *(o.name for o in model.graph.output),
    }

    output = "embedding" if role == "encode" else "tokens"
    plain = plain_run(model, feeds[role], output)
    for found in (
        rounded_run(converted.model, feeds[role], output),
        [r[output] for r in run_isolated(converted.model, feeds[role], graph=role)],
    ):
        assert cosines(plain, found).min() >= 0.9995
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(plain), atol=1e-2)


def test_casts_are_few_and_the_mask_of_shifted_windows_is_exact(graphs: dict[str, onnx.ModelProto]) -> None:
    model = graphs["enhance"]
    sensitive = {node_name(n) for n in model.graph.node if n.op_type in ("LayerNormalization", "Softmax")}
    narrow = to_fp16(model, sensitive | tail_nodes(model))
    # One before and one after each, less where the tail or another one follows.
    assert casts(narrow) - casts(model) <= 2 * len(sensitive) + 4
    weights = {w.name: numpy_helper.to_array(w) for w in narrow.graph.initializer}
    masks = [w for w in weights.values() if w.dtype == np.float16 and w.min(initial=0) < -99]
    assert [mask.shape for mask in masks] == [(4, 2, 64, 64)]  # kinds of windows, heads
    # Beside the learnt biases nothing lies between "seen" and "not seen": e^-99 is 0 in any float.
    assert ((masks[0] > -1) | (masks[0] < -99)).all()


def test_a_planted_overflow_is_kept_in_float32_and_caught_without_the_bound(
    model: S3Clip, feeds: dict[Role, list[Feed]], tmp_path: Path
) -> None:
    """fc1 of one block times 1e5 and fc2 times 1e-5: weights still fit in float16, activations do not."""
    planted = copy.deepcopy(model)
    weights = dict(planted.named_parameters())
    with torch.no_grad():
        weights["visual.transformer.resblocks.1.mlp.c_fc.weight"].mul_(1e5)
        weights["visual.transformer.resblocks.1.mlp.c_proj.weight"].mul_(1e-5)
    graph = exported(planted, tmp_path, ("encode",))["encode"]
    large = {w.name for w in graph.graph.initializer if w.name and _largest(w) > 1e3}
    fc1 = next(node for node in graph.graph.node if not large.isdisjoint(node.input))
    audit = audit_ranges(graph, feeds["encode"])
    assert next(n.largest for n in audit.nodes if n.node == node_name(fc1)) > LARGEST

    converted = convert(graph, audit, feeds["encode"])
    chain = _chain(graph, fc1)
    assert set(converted.kept) == chain
    ops = {n.op_type for n in graph.graph.node if node_name(n) in chain}
    assert ops == {"Add", "Concat", "Mul", "Sigmoid", "MatMul"}
    types = inferred_types(converted.model)
    for node in converted.model.graph.node:
        if node_name(node) in chain:
            assert {types[t] for t in (*node.input, *node.output)} == {FLOAT}
    plain = plain_run(graph, feeds["encode"], "embedding")
    assert cosines(plain, rounded_run(converted.model, feeds["encode"], "embedding")).min() >= 0.9995

    with pytest.raises(BundleError) as refused:
        convert(graph, audit, feeds["encode"], graph="encode", bound=NO_BOUND)
    assert "graph encode: 1 nodes overflow float16" in str(refused.value)
    assert f": {node_name(fc1)} (MatMul) inf;" in str(refused.value)


def _largest(weight: onnx.TensorProto) -> float:
    return float(np.abs(numpy_helper.to_array(weight)).max(initial=0))


def _chain(graph: onnx.ModelProto, fc1: onnx.NodeProto) -> set[str]:
    """fc1 and all that follows it up to and with the next MatMul."""
    chain, tensors = {node_name(fc1)}, set(fc1.output)
    for node in graph.graph.node:
        if not tensors.isdisjoint(node.input):
            chain.add(node_name(node))
            if node.op_type != "MatMul":
                tensors |= set(node.output)
    return chain


def test_a_weight_beyond_float16_stays_float32_or_refuses_the_graph(
    model: S3Clip, feeds: dict[Role, list[Feed]], tmp_path: Path
) -> None:
    planted = copy.deepcopy(model)
    with torch.no_grad():
        planted.visual.conv1.weight.mul_(1e9)  # the graph has it divided by 255 and the pixels' deviation
    graph = exported(planted, tmp_path, ("patchify",))["patchify"]
    audit = audit_ranges(graph, feeds["patchify"])
    with pytest.raises(BundleError, match=r"graph patchify: weight \S*embed holds .*65504"):
        convert(graph, audit, feeds["patchify"], graph="patchify", bound=NO_BOUND)
    converted = convert(graph, audit, feeds["patchify"])
    assert op_types(converted.model, "MatMul") == {FLOAT}
    assert set(nodes_beyond(graph, audit, BOUND)) == set(converted.kept)
    plain = plain_run(graph, feeds["patchify"], "tokens")
    assert cosines(plain, rounded_run(converted.model, feeds["patchify"], "tokens")).min() >= 0.9995
