"""Float16 graphs on hand-made ones: the range audit, the typing rules, overflows, and a bundle."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fp16_graphs import casts, inferred_types
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import embedding_of, manifest_of, tokens_of, write_tiny_bundle

from s3clip_export.fp16 import isolated
from s3clip_export.fp16.audit import (
    GRAPH_INPUT,
    RangeReport,
    audit_ranges,
    node_name,
    round_stored,
)
from s3clip_export.fp16.convert import BOUND, audit_feeds, convert, overflowing, tail_nodes, write_fp16
from s3clip_export.fp16.isolated import run_isolated
from s3clip_export.fp16.narrow import to_fp16
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
NO_BOUND = float("inf")
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def hand_made(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    *,
    x: int = FLOAT,
    y: Sequence[int | str] = ("N", 3),
) -> onnx.ModelProto:
    """A graph from x (N, 4) to y. Nodes are named by their first output."""
    for node in nodes:
        node.name = f"node_{node.output[0]}"
    graph = helper.make_graph(
        list(nodes),
        "hand",
        [helper.make_tensor_value_info("x", x, ["N", 4])],
        [helper.make_tensor_value_info("y", FLOAT, list(y))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def scaled_chain(factor: float) -> onnx.ModelProto:
    """relu(x W factor) / factor + 1, with a last product so that the tail is short."""
    return hand_made(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Mul", ["a", "up"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Mul", ["c", "down"], ["d"]),
            helper.make_node("MatMul", ["d", "w2"], ["y"]),
        ],
        {
            "w": WEIGHT,
            "up": np.array(factor, np.float32),
            "down": np.array(1 / factor, np.float32),
            "w2": np.eye(3, dtype=np.float32),
        },
    )


def chain_truth() -> NDArray[np.float32]:
    truth: NDArray[np.float32] = np.maximum(X @ WEIGHT, 0)
    return truth


# The audit.


def test_the_audit_is_numpys_maximum_of_every_tensor() -> None:
    model = scaled_chain(1000.0)
    audit = audit_ranges(model, [{"x": X[:2]}, {"x": X[2:]}])
    product = X @ WEIGHT
    expected = {
        "x": X,
        "a": product,
        "b": product * 1000,
        "c": np.maximum(product * 1000, 0),
        "d": np.maximum(product, 0),
        "y": np.maximum(product, 0),
    }
    assert audit.runs == 2
    assert {n.tensor: n.largest for n in audit.nodes} == pytest.approx(
        {name: np.abs(array).max() for name, array in expected.items()}, rel=1e-5
    )
    assert [n.largest for n in audit.nodes] == sorted((n.largest for n in audit.nodes), reverse=True)
    by_tensor = {n.tensor: n for n in audit.nodes}
    assert (by_tensor["b"].node, by_tensor["b"].op) == ("node_b", "Mul")
    assert by_tensor["x"].op == GRAPH_INPUT
    assert audit.weights[0].name == "up"
    assert {w.name: w.largest for w in audit.weights}["w"] == pytest.approx(np.abs(WEIGHT).max())


def test_a_graph_that_is_not_finite_in_float32_is_refused() -> None:
    model = hand_made([helper.make_node("Log", ["x"], ["y"])], {}, y=("N", 4))
    with pytest.raises(BundleError, match=r"not finite even in float32, first node_y \(Log\) nan"):
        audit_ranges(model, [{"x": X}])
    with pytest.raises(BundleError, match="at least one clip"):
        audit_ranges(model, [])


# The typing rules.


def test_neighbours_in_float32_have_no_cast_between_them() -> None:
    model = scaled_chain(1.0)
    narrow = to_fp16(model, {"node_b", "node_c", "node_d"})
    types = inferred_types(narrow)
    assert [types[name] for name in "abcd"] == [FLOAT16, FLOAT, FLOAT, FLOAT]
    # x to float16, a to float32, d to float16, y to float32
    assert casts(narrow) == 4
    assert casts(to_fp16(model, set())) == 2
    every = {node_name(node) for node in model.graph.node}
    assert to_fp16(model, every) == model


def test_a_float16_output_keeps_its_name_and_type_also_where_nodes_inside_read_it() -> None:
    model = hand_made(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Relu", ["y"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["z"]),
        ],
        {"w": WEIGHT, "w2": np.eye(3, dtype=np.float32)},
    )
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, ["N", 3]))
    narrow = to_fp16(model, set())
    assert [output.name for output in narrow.graph.output] == ["y", "z"]
    assert casts(narrow) == 3
    found = run_isolated(narrow, [{"x": X}], graph="hand")[0]
    np.testing.assert_allclose(found["y"], X @ WEIGHT, atol=4e-3)
    np.testing.assert_allclose(found["z"], chain_truth(), atol=4e-3)
    assert found["y"].dtype == np.float32


def test_a_weight_that_both_kinds_read_is_kept_in_both() -> None:
    model = hand_made(
        [
            helper.make_node("Mul", ["x", "k"], ["a"]),
            helper.make_node("Mul", ["a", "k"], ["y"]),
        ],
        {"k": np.array(1 / 3, np.float32)},
        y=("N", 4),
    )
    narrow = to_fp16(model, {"node_y"})
    weights = {w.name: numpy_helper.to_array(w) for w in narrow.graph.initializer}
    assert {name: array.dtype for name, array in weights.items()} == {
        "k": np.dtype(np.float32),
        "k_fp16": np.dtype(np.float16),
    }
    assert weights["k"] == np.float32(1 / 3)  # not one that went through float16


def test_what_an_operator_fixes_stays_float32() -> None:
    """Scales of Resize, DequantizeLinear's output of opset 13, and constants that carry their own type."""
    model = hand_made(
        [
            helper.make_node("Unsqueeze", ["x", "front"], ["picture"]),
            helper.make_node("Resize", ["picture", "", "scales"], ["big"], mode="nearest"),
            helper.make_node("ReduceMax", ["big"], ["top"], keepdims=0),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["offset"]),
            helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones(1, np.float32))),
            helper.make_node("Add", ["offset", "one"], ["sum"]),
            helper.make_node("Mul", ["top", "sum"], ["product"]),
            helper.make_node("Add", ["x", "product"], ["y"]),
        ],
        {
            "front": np.array([0, 1]),
            "scales": np.array([1, 1, 2, 2], np.float32),
            "q": np.array([3], np.int8),
            "scale": np.array(0.5, np.float32),
        },
        y=("N", 4),
    )
    narrow = to_fp16(model, set())
    types = inferred_types(narrow)
    assert [types[n] for n in ("big", "offset", "one", "sum")] == [FLOAT16, FLOAT, FLOAT, FLOAT16]
    assert types["scales"] == FLOAT
    found = run_isolated(narrow, [{"x": X}], graph="hand")[0]["y"]
    np.testing.assert_allclose(found, X + X.max() * 2.5, atol=1e-2)


def test_pixels_become_float16_at_once_and_are_exact() -> None:
    model = hand_made(
        [
            helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        {"w": np.eye(4, dtype=np.float32)},
        x=TensorProto.UINT8,
        y=("N", 4),
    )
    narrow = to_fp16(model, set())
    assert inferred_types(narrow)["f"] == FLOAT16
    pixels = np.arange(256, dtype=np.uint8).reshape(64, 4)
    found = run_isolated(round_stored(narrow), [{"x": pixels}], graph="hand", optimisation="none")[0]["y"]
    np.testing.assert_array_equal(found, pixels)


def test_a_lost_cast_does_not_pass_the_check() -> None:
    """Negative control: the check that each conversion ends with sees mixed types."""
    narrow = to_fp16(scaled_chain(1.0), {"node_d"})
    cast = next(node for node in narrow.graph.node if node.op_type == "Cast" and node.input[0] == "c")
    reader = next(node for node in narrow.graph.node if cast.output[0] in node.input)
    reader.input[0] = "c"
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(narrow, full_check=True)


def test_the_tail_ends_at_the_last_products() -> None:
    model = hand_made(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("ReduceL2", ["a", "last"], ["norm"], keepdims=1),
            helper.make_node("Div", ["a", "norm"], ["y"]),
        ],
        {"w": WEIGHT, "last": np.array([1])},
    )
    assert tail_nodes(model) == {"node_norm", "node_y"}


# Overflow.


def test_nodes_beyond_the_bound_stay_float32_and_the_result_stays_right() -> None:
    model = scaled_chain(1e5)
    before = model.SerializeToString()
    feeds = [{"x": X}]
    converted = convert(model, audit_ranges(model, feeds), feeds)
    assert converted.kept == ("node_b", "node_c", "node_d")
    assert model.SerializeToString() == before
    found = run_isolated(round_stored(converted.model), feeds, graph="hand", optimisation="none")[0]["y"]
    np.testing.assert_allclose(found, chain_truth(), atol=4e-3)


def test_without_the_bound_the_overflow_is_named_once_where_it_begins() -> None:
    model = scaled_chain(6e4)  # the factor itself fits in float16
    feeds = [{"x": X}]
    audit = audit_ranges(model, feeds)
    with pytest.raises(
        BundleError,
        match=r"graph test: 1 nodes overflow float16 \(largest 65504\) .*: node_b \(Mul\) inf; "
        r"export fp32 only or lower the bound \(inf\)",
    ):
        convert(model, audit, feeds, graph="test", bound=NO_BOUND)


def test_onnxruntime_alone_would_hide_the_overflow() -> None:
    """Why tensors are rounded by force: on a CPU it keeps numbers in float32 between float16 nodes."""
    narrow = to_fp16(scaled_chain(6e4), set())
    found = run_isolated(narrow, [{"x": X}], graph="hand")[0]["y"]
    assert np.isfinite(found).all()
    rounded = run_isolated(round_stored(narrow), [{"x": X}], graph="hand", optimisation="none")[0]["y"]
    assert not np.isfinite(rounded).all()


def test_a_weight_beyond_float16_is_refused_not_clamped() -> None:
    model = scaled_chain(1e5)
    feeds = [{"x": X}]
    with pytest.raises(BundleError, match=r"graph hand: weight up holds 1e\+05, float16 ends at 65504"):
        convert(model, audit_ranges(model, feeds), feeds, bound=NO_BOUND)


def test_an_output_that_overflows_is_refused_or_kept() -> None:
    model = hand_made([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT * np.float32(4e4)})
    feeds = [{"x": X}]
    audit = audit_ranges(model, feeds)
    with pytest.raises(BundleError, match=r"1 nodes overflow .*: node_y \(MatMul\) inf"):
        convert(model, audit, feeds, bound=NO_BOUND)
    converted = convert(model, audit, feeds)
    assert converted.kept == ("node_y",)
    assert converted.model == model


# Processes.


def test_a_child_that_dies_fails_or_hangs_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(script: str) -> None:
        monkeypatch.setattr(isolated, "_command", lambda *_: [sys.executable, "-c", script])

    model = scaled_chain(1.0)
    become("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(BundleError, match="graph encode: ONNX Runtime died of SIGSEGV"):
        run_isolated(model, [{"x": X}], graph="encode")
    become("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(BundleError, match=r"SIGKILL .* give the machine more memory"):
        overflowing(to_fp16(model, set()), [{"x": X}], graph="encode")
    become("import time; time.sleep(60)")
    with pytest.raises(BundleError, match=r"must end within 0\.5 s"):
        run_isolated(model, [{"x": X}], graph="encode", timeout_s=0.5)
    become("raise SystemExit(3)")
    with pytest.raises(BundleError, match="does not run on the CPU \\(exit code 3\\)"):
        run_isolated(model, [{"x": X}], graph="encode")


def test_what_onnxruntime_says_reaches_the_sentence() -> None:
    with pytest.raises(BundleError, match=r"graph encode: .*Invalid input name: z"):
        run_isolated(scaled_chain(1.0), [{"x": X, "z": X}], graph="encode")


# The bundle.


def random_clips(hr: Sequence[bool]) -> list[Clip]:
    rng = np.random.default_rng(5)
    size = {True: (150, 70, 3), False: (40, 20, 3)}
    return [
        Clip(tuple(rng.integers(0, 256, size[h], dtype=np.uint8) for _ in range(8)), i % 2, h)
        for i, h in enumerate(hr)
    ]


def test_write_fp16_adds_graphs_and_the_audit_to_the_bundle(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    clips = random_clips([False, True, True])
    draft = manifest_of(folder)
    manifest = write_fp16(folder, draft, clips)
    proofs = (*draft.proofs, draft.proofs[0].model_copy(update={"target": "onnx-fp16"}))
    write_manifest(folder, manifest.model_copy(update={"proofs": proofs}))
    bundle = Bundle.open(folder)
    assert bundle.targets == (Target("onnx", "fp32"), Target("onnx", "fp16"))

    report = RangeReport.model_validate_json((folder / "range_audit.json").read_text())
    assert report.bound == BOUND
    assert report.graphs.keys() == {"enhance", "patchify", "encode"}
    assert [report.graphs[r].runs for r in ("enhance", "patchify", "encode")] == [1, 2, 3]
    assert report.kept == {"enhance": (), "patchify": (), "encode": ()}
    assert report.graphs["enhance"].nodes[0].largest == 255

    feeds = audit_feeds(bundle, clips)
    for role in ("enhance", "patchify", "encode"):
        plain = OrtSession(bundle.file(role, Target("onnx", "fp32")))
        narrow = OrtSession(bundle.file(role, Target("onnx", "fp16")))
        assert (narrow.inputs, narrow.outputs) == (plain.inputs, plain.outputs)
        model = onnx.load(bundle.file(role, Target("onnx", "fp16")))
        found = run_isolated(round_stored(model), feeds[role], graph=role, optimisation="none")
        for output, feed in zip(found, feeds[role], strict=True):
            for name, array in plain.run(feed).items():
                np.testing.assert_allclose(output[name], array, atol=2e-3)


def test_crops_of_the_other_kind_stand_in_for_a_missing_one(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    bundle = Bundle.open(folder)
    for hr in (False, True):
        clip = random_clips([hr])[0]
        feeds = audit_feeds(bundle, [clip])
        np.testing.assert_array_equal(feeds["enhance"][0]["crops"], lr_batch(clip.crops))
        np.testing.assert_array_equal(feeds["patchify"][0]["crops"], hr_batch(clip.crops))
        crops, scale = (hr_batch(clip.crops), 1 / 200) if hr else (lr_batch(clip.crops), 1 / 64)
        np.testing.assert_allclose(feeds["encode"][0]["tokens"][0], tokens_of(crops, scale), atol=1e-5)
    with pytest.raises(BundleError, match="at least one clip"):
        write_fp16(folder, bundle.manifest, [])


def test_a_refused_graph_names_its_role(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle", encode_weight=1e5)
    clips = random_clips([False])
    with pytest.raises(BundleError, match="graph encode: weight projection holds"):
        write_fp16(folder, manifest_of(folder), clips, bound=1e9)
    report_of = write_fp16(folder, manifest_of(folder), clips)
    assert report_of.attachments.keys() == {"range_audit"}
    report = RangeReport.model_validate_json((folder / "range_audit.json").read_text())
    assert report.kept["encode"]
    # So large a projection drowns the platform.
    found = run_isolated(
        onnx.load(folder / "encode.fp16.onnx"),
        audit_feeds(Bundle(folder, report_of), clips)["encode"],
        graph="encode",
    )[0]["embedding"]
    expected = embedding_of(tokens_of(lr_batch(clips[0].crops), 1 / 64), 0)
    assert float(found[0] @ expected) > 0.9999
