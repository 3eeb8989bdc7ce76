"""The search for layers in 8 bits: pieces, losses, and the walk, beside slow versions of them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest
from calib_graphs import F64, block, demo, demo_feeds, graph_of, matrix, outputs, values
from onnx import helper

from s3clip_calib.fidelity import Fidelity, fidelity
from s3clip_calib.front import Point, allowed, faults_of, order_of, walk
from s3clip_calib.layers import find_layers
from s3clip_calib.methods import prepare
from s3clip_calib.pieces import pieces
from s3clip_calib.quantise import quantise
from s3clip_calib.run import Feed
from s3clip_calib.sensitivity import Sensitivity, embed, sensitivities

# Pieces


def check_pieces(model: onnx.ModelProto, feed: Feed, stream: str) -> list[str]:
    """Every layer is in one piece, and pieces in a row give what the whole gives; the cuts' names."""
    layers = find_layers(model)
    found = list(pieces(model, layers, stream))
    assert [layer for piece in found for layer in piece.layers] == list(layers)
    expected, current = outputs(model, feed), dict(feed)
    for number, piece in enumerate(found):
        for graph in (piece.inner, piece.after):
            if graph is not None:
                onnx.checker.check_model(graph, full_check=True)
        assert {layer.name for layer in piece.layers} <= {node.name for node in piece.inner.graph.node}
        assert (piece.after is None) == (number == len(found) - 1)
        current |= outputs(piece.inner, {i.name: current[i.name] for i in piece.inner.graph.input})
        given = current
        if piece.after is not None:
            names = {node.name for node in piece.after.graph.node}
            assert {layer.name for later in found[number + 1 :] for layer in later.layers} <= names
            assert not {layer.name for earlier in found[: number + 1] for layer in earlier.layers} & names
            given = outputs(piece.after, {i.name: current[i.name] for i in piece.after.graph.input})
        for name, array in expected.items():
            np.testing.assert_array_equal(given[name], array, err_msg=f"{piece.cut}: {name}")
    return [piece.cut for piece in found]


def test_an_encoder_is_cut_where_its_stream_is_alone() -> None:
    for feed in demo_feeds(2):
        cuts = check_pieces(demo("encode"), feed, "tokens")
        assert cuts[0] == "tokens"
        assert len(set(cuts)) == 9


def test_a_residual_graph_is_cut_behind_its_sum_and_norm() -> None:
    assert check_pieces(block(), {"x": values(2)}, "x") == ["x", "normed_late"]


def test_a_graph_that_branches_to_the_end_is_one_piece() -> None:
    """The input is read again by the last node: no other tensor ever stands alone."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="one"),
        helper.make_node("Tanh", ["p"], ["q"], name="tanh"),
        helper.make_node("MatMul", ["q", "b"], ["r"], name="two"),
        helper.make_node("MatMul", ["p", "b2"], ["s"], name="three"),
        helper.make_node("Add", ["r", "s"], ["t"], name="join"),
        helper.make_node("Add", ["t", "x"], ["y"], name="last"),
    ]
    weights = {"a": matrix(16, 16), "b": matrix(16, 16, 2), "b2": matrix(16, 16, 3)}
    model = graph_of(nodes, weights, {"x": ("N", 8, 16)})
    assert check_pieces(model, {"x": values(2)}, "x") == ["x"]


def test_an_early_output_and_a_side_input_do_not_hinder_or_mislead() -> None:
    """A tensor that is an output stays alive; what the side input alone makes is made again behind a cut."""
    nodes = [
        helper.make_node("Sigmoid", ["side"], ["gate"], name="gate"),
        helper.make_node("MatMul", ["x", "a"], ["p"], name="one"),
        helper.make_node("Tanh", ["p"], ["q"], name="tanh"),
        helper.make_node("MatMul", ["q", "b"], ["r"], name="two"),
        helper.make_node("Mul", ["r", "gate"], ["y"], name="last"),
    ]
    weights = {"a": matrix(16, 16), "b": matrix(16, 16, 2)}
    feed = {"x": values(2), "side": values(2, 5)}
    inputs = {"x": ("N", 8, 16), "side": ("N", 8, 16)}
    assert check_pieces(graph_of(nodes, weights, inputs), feed, "x") == ["x", "q"]
    assert check_pieces(graph_of(nodes, weights, inputs, ("y", "p")), feed, "x") == ["x"]


# Sensitivity


def test_each_layer_alone_is_measured_as_in_the_whole_graph() -> None:
    """Layers of the first, a middle and the last piece; those that are known are not measured again."""
    model, feeds = demo("encode"), demo_feeds(5)
    layers = find_layers(model)
    expected = embed(model, feeds)
    (plain,) = prepare(model, feeds[:2], (None,))
    limits = plain.limits("max", "int8")
    todo = [layers[i].name for i in (0, 3, 14, 21, 28)]
    known = {layer.name: made_up(0.5) for layer in layers if layer.name not in todo}
    kept: dict[str, Fidelity] = {}
    operations = {layer.name: number + 1 for number, layer in enumerate(layers)}
    rows = sensitivities(
        model, limits, "int8", feeds, expected, operations, known, lambda name, row: kept.update({name: row})
    )
    assert [row.layer for row in rows] == [layer.name for layer in layers]
    assert [row.operations for row in rows] == list(operations.values())
    assert list(kept) == todo
    for row, layer in zip(rows, layers, strict=True):
        if layer.name in known:
            assert row.fidelity is known[layer.name]
            continue
        whole = fidelity(expected, embed(quantise(model, [layer], limits, "int8"), feeds))
        assert 1e-9 < whole.loss < 0.5
        for name in Fidelity.__slots__:
            assert getattr(row.fidelity, name) == pytest.approx(getattr(whole, name), abs=1e-6), name
        assert kept[layer.name] == row.fidelity


def test_nothing_is_run_when_all_is_known() -> None:
    """The feeds would not fit the graph."""
    model = demo("encode")
    known = {layer.name: made_up(0.1) for layer in find_layers(model)}

    def refuse(name: str, row: Fidelity) -> None:
        raise AssertionError(name)

    counts = dict.fromkeys(known, 1)
    nothing = np.zeros((3, 160), np.float32)
    rows = sensitivities(model, {}, "int8", [{"wrong": nothing}], nothing, counts, known, refuse)
    assert {row.layer: row.fidelity for row in rows} == known


# The walk


def made_up(loss: float) -> Fidelity:
    return Fidelity(1 - loss, 1 - loss, 1 - loss, 1 - loss, 1.0, 1.0)


def rows_of(losses: F64, operations: np.ndarray) -> list[Sensitivity]:
    return [
        Sensitivity(f"layer{i}", int(count), made_up(float(loss)))
        for i, (loss, count) in enumerate(zip(losses, operations, strict=True))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_walk_ends_at_the_longest_allowed_prefix(seed: int) -> None:
    """On a loss that adds up, against all prefixes of an order that is sorted here."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 90))
    losses = np.exp(rng.normal(size=count)) / 100
    operations = rng.choice([1, 2, 3, 4], count) * 1000
    rows = rows_of(losses, operations)
    bound = 1 - losses.sum() * rng.uniform(0, 1.2)
    asked: list[tuple[str, ...]] = []
    by_name = {row.layer: row.fidelity.loss for row in rows}

    def measure(names: Collection[str]) -> Fidelity:
        asked.append(tuple(names))
        return made_up(sum(by_name[name] for name in names))

    points = walk(rows, measure, {"centred_min": bound})
    ordered = [f"layer{i}" for i in np.argsort(losses / operations, kind="stable")]
    good = [n for n in range(count + 1) if 1 - sum(by_name[name] for name in ordered[:n]) >= bound]
    assert allowed(points)[0].layers == tuple(ordered[: max(good)])
    assert len(asked) == len(set(asked)) == len(points) <= 9 + 4  # none is measured twice
    assert points[0].layers == ()
    assert len(points[-1].layers) == count
    for point in points:
        share = sum(operations[int(name.removeprefix("layer"))] for name in point.layers) / operations.sum()
        assert point.share == pytest.approx(share)
        assert bool(point.faults) == (point.fidelity.centred_min < bound)
    assert [point.share for point in points] == sorted(point.share for point in points)


def test_a_layer_that_gains_counts_as_one_without_loss() -> None:
    rows = rows_of(np.array([0.01, 0.0, -0.5, 0.04]), np.array([1, 1, 1, 100]))
    assert [row.layer for row in order_of(rows)] == ["layer1", "layer2", "layer3", "layer0"]


def test_where_no_layer_is_allowed_the_walk_still_begins_without() -> None:
    rows = rows_of(np.full(5, 0.1), np.ones(5, np.int64))
    points = walk(rows, lambda names: made_up(0.1 * len(names)), {"cosine_min": 0.999})
    assert [point.layers for point in allowed(points)] == [()]


def test_faults_tell_both_values_and_nan_is_one() -> None:
    bounds = {"cosine_min": 0.9995, "top1_agreement": 0.99}
    assert faults_of(made_up(0.0), bounds) == ()
    assert faults_of(made_up(0.0005), {"cosine_min": 1 - 0.0005}) == ()
    assert faults_of(made_up(0.25), bounds) == ("cosine_min is 0.75, must be at least 0.9995",)
    assert faults_of(made_up(float("nan")), bounds) == ("cosine_min is nan, must be at least 0.9995",)


def test_allowed_points_come_with_most_layers_first() -> None:
    good, bad = made_up(0.0), ("cosine_min is 0, must be at least 1",)
    points = [
        Point((), 0.0, good, bad),  # even if the float32 graph itself were not good enough
        Point(("a",), 0.3, good, ()),
        Point(("a", "b"), 0.6, good, bad),
        Point(("a", "b", "c"), 1.0, good, ()),
    ]
    assert [point.layers for point in allowed(points)] == [("a", "b", "c"), ("a",), ()]
