"""What is observed of activations, and the ranges chosen from it, beside numpy and ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import numpy as np
import pytest
from calib_graphs import (
    F32,
    F64,
    block,
    demo,
    demo_feeds,
    graph_of,
    matrix,
    outputs,
    residual,
    rounded,
    values,
    with_outputs,
)
from onnx import helper
from onnxruntime.quantization.calibrate import HistogramCollector

from s3clip_calib.layers import find_layers
from s3clip_calib.methods import operations, prepare
from s3clip_calib.observe import BINS, Observed, edges, observe, of_values, total
from s3clip_calib.ranges import METHODS, TOP, Bits, Method, range_of
from s3clip_runtime.errors import BackendError, ConfigError

# What is observed


def bin_of(numbers: F32) -> np.ndarray:
    """The bin of each number by the edges alone."""
    return np.searchsorted(edges(), np.abs(numbers).astype(np.float64).reshape(-1), side="right") - 1


def test_edges_rise_up_to_infinity() -> None:
    borders = edges()
    assert borders.shape == (BINS + 1,)
    assert borders[0] == 0
    assert borders[-1] == np.inf
    finite = borders[np.isfinite(borders)]
    assert (np.diff(finite) > 0).all()
    assert np.isinf(borders[len(finite) :]).all()
    assert np.finfo(np.float32).max > finite[-1]
    normal = finite[finite >= np.finfo(np.float32).tiny]
    assert (normal[1:] / normal[:-1]).max() <= 1 + 1 / 32


@pytest.mark.parametrize("seed", range(20))
def test_the_bins_hold_every_float32(seed: int) -> None:
    """Random bit patterns: subnormals, zeros and the largest ones among them."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, 5000, dtype=np.uint32)
    few = np.array([0, 1 << 31, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32)
    subnormal = bits[:1000] & np.uint32(0x807FFFFF)
    numbers = np.concatenate([bits, few, subnormal]).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    counts = of_values(numbers[:, None], channel_axis=-1).counts
    assert counts.sum() == len(numbers)
    np.testing.assert_array_equal(counts, np.bincount(bin_of(numbers), minlength=BINS))


def test_statistics_are_those_of_the_arrays() -> None:
    """The middle tensors of a graph as ONNX Runtime gives them, and the graph's own input."""
    model = block()
    layers = find_layers(model)
    clips = [values(2, seed) for seed in range(3)]
    found = observe(model, layers, [{"x": clip} for clip in clips], threads=1)
    assert [layer.activation for layer in layers] == ["normed", "active", "normed", "normed_late"]
    for clip, seen in zip(clips, found, strict=True):
        probed = outputs(with_outputs(model, ["normed", "active", "normed_late"]), {"x": clip})
        assert seen.keys() == {"normed", "active", "normed_late"}
        for name, statistics in seen.items():
            np.testing.assert_array_equal(
                statistics.channel_max, np.abs(probed[name]).max(axis=(0, 1)), err_msg=name
            )
            expected = np.bincount(bin_of(probed[name]), minlength=BINS)
            np.testing.assert_array_equal(statistics.counts, expected, err_msg=name)
            assert statistics.largest == np.abs(probed[name]).max()
    assert [value.name for value in model.graph.output] == ["y"]


def test_statistics_add_up_in_any_order() -> None:
    model = block()
    layers = find_layers(model)
    clips = [values(2, seed) * np.float32(seed + 1) for seed in range(4)]
    feeds = [{"x": clip} for clip in clips]
    single = observe(model, layers, feeds, threads=1)
    whole = total(observe(model, layers, [{"x": np.concatenate(clips)}], threads=1))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        added = total(single[i] for i in order)
        for name, statistics in whole.items():
            np.testing.assert_array_equal(added[name].counts, statistics.counts)
            np.testing.assert_array_equal(added[name].channel_max, statistics.channel_max)


def test_an_input_that_a_layer_reads_is_observed() -> None:
    x = values(2)
    model = residual(matrix(16, 16))
    (seen,) = observe(model, find_layers(model), [{"x": x}], threads=1)
    np.testing.assert_array_equal(seen["x"].channel_max, np.abs(x).max(axis=(0, 1)))
    assert seen["x"].counts.sum() == x.size


def test_channels_of_a_convolution_are_its_second_axis() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    model = graph_of(nodes, {"w": weight}, {"x": ("N", 3, 8, 8)})
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (seen,) = observe(model, find_layers(model), [{"x": x}], threads=1)
    np.testing.assert_array_equal(seen["x"].channel_max, np.abs(x).max(axis=(0, 2, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_is_refused(bad: float) -> None:
    x = values(1)
    x[0, 3, 5] = bad
    model = residual(matrix(16, 16))
    with pytest.raises(BackendError, match="activation x must be finite, found NaN or infinity; check the"):
        observe(model, find_layers(model), [{"x": x}], threads=1)


def test_migrated_graphs_are_observed_behind_their_norms_alone() -> None:
    """Every tensor's statistics are those of a graph observed as a whole."""
    feeds = [{"x": values(2, seed)} for seed in range(2)]
    plain, moved = prepare(block(outliers=20), feeds, (None, 0.5))
    assert not np.array_equal(plain.observed["normed"].counts, moved.observed["normed"].counts)
    whole = total(observe(moved.model, moved.layers, feeds, threads=1))
    for name in ("normed", "active", "normed_late"):
        np.testing.assert_allclose(moved.observed[name].channel_max, whole[name].channel_max, rtol=1e-5)


def test_operations_are_multiply_adds() -> None:
    """Counted from the shapes that the encoder's products really get."""
    model = demo("encode")
    layers = find_layers(model)
    feeds = demo_feeds(2)
    (plain,) = prepare(model, feeds, (None,))
    probed = outputs(with_outputs(model, [layer.activation for layer in layers]), feeds[0])
    for layer in layers:
        rows = probed[layer.activation].size // probed[layer.activation].shape[-1]
        assert operations(plain, 2)[layer.name] == rows * layer.shape[0] * layer.shape[1]


# Ranges


def gaussian(rng: np.random.Generator) -> F64:
    return rng.normal(size=100_000)


def laplace(rng: np.random.Generator) -> F64:
    return rng.laplace(size=100_000)


def outliers(rng: np.random.Generator) -> F64:
    return np.concatenate([rng.normal(size=100_000), [100.0, -80.0]])


def outlier_channel(rng: np.random.Generator) -> F64:
    """One channel of 500 is twenty times as large."""
    return np.concatenate([rng.normal(size=100_000), 20 * rng.normal(size=200)])


def rectified(rng: np.random.Generator) -> F64:
    return np.maximum(rng.normal(size=100_000), 0)


def decades(rng: np.random.Generator) -> F64:
    """Sizes over so many powers of two that E4M3's subnormals matter."""
    return np.asarray(np.exp(3 * rng.normal(size=100_000)) * rng.choice([-1, 1], 100_000))


Draw = Callable[[np.random.Generator], F64]
DATA = (gaussian, laplace, outliers, outlier_channel, rectified, decades)


def drawn(draw: Draw) -> tuple[F32, Observed]:
    numbers = draw(np.random.default_rng(3)).astype(np.float32)
    return numbers, of_values(numbers[:, None], channel_axis=-1)


@pytest.mark.parametrize("draw", DATA)
def test_max_is_exact(draw: Draw) -> None:
    numbers, seen = drawn(draw)
    assert range_of(seen, "max", "int8") == range_of(seen, "max", "fp8") == np.abs(numbers).max()


@pytest.mark.parametrize("draw", DATA)
def test_the_percentile_is_numpys_within_a_bin(draw: Draw) -> None:
    numbers, seen = drawn(draw)
    expected = np.percentile(np.abs(numbers), 99.99, method="inverted_cdf")
    found = range_of(seen, "percentile", "int8")
    assert expected <= found <= min(expected * (1 + 1 / 32), np.abs(numbers).max())


def squared_error(numbers: F32, limit: float, bits: Bits) -> float:
    """Of numbers that are really rounded."""
    return float(np.mean((numbers - rounded(numbers, limit / TOP[bits], bits)) ** 2))


@pytest.mark.parametrize("bits", ["int8", "fp8"])
@pytest.mark.parametrize("draw", DATA)
def test_mse_finds_nearly_the_least_error(draw: Draw, bits: Bits) -> None:
    """Against every range in steps of 2 %, with numbers that are really rounded."""
    numbers, seen = drawn(draw)
    largest = float(np.abs(numbers).max())
    least = min(squared_error(numbers, largest * 2 ** -(i / 32), bits) for i in range(8 * 32))
    found = squared_error(numbers, range_of(seen, "mse", bits), bits)
    assert found <= (1.05 if bits == "int8" else 1.1) * least


def test_mse_saturates_where_it_pays() -> None:
    """Few outliers of a large tensor go, and half the squared error with them; E4M3 keeps them."""
    numbers, seen = drawn(outlier_channel)
    assert range_of(seen, "mse", "int8") < 0.8 * np.abs(numbers).max()
    gain = squared_error(numbers, range_of(seen, "mse", "int8"), "int8")
    assert gain < 0.75 * squared_error(numbers, range_of(seen, "max", "int8"), "int8")


def of_onnxruntime(numbers: F32) -> float:
    """Range by ONNX Runtime's entropy calibrator, 16 bins for each of 128 levels."""
    collector = HistogramCollector("entropy", True, 2048, 128, 99.99, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        collector.collect({"x": numbers})
        low, high, *_ = collector.compute_collection_result()["x"]
    return float(max(-low, high))


@pytest.mark.parametrize("draw", [gaussian, laplace, outliers])
def test_entropy_is_near_what_onnxruntime_chooses(draw: Draw) -> None:
    """The same order of magnitude: theirs has half the levels, finer steps, and fills empty bins a little."""
    numbers, seen = drawn(draw)
    ratio = range_of(seen, "entropy", "int8") / of_onnxruntime(numbers)
    assert 1 / 3 < ratio < 3


def test_entropy_cuts_lone_outliers_off() -> None:
    """Those at 80 and 100 standard deviations of the bulk, which itself is kept."""
    _, seen = drawn(outliers)
    assert 3 < range_of(seen, "entropy", "int8") < 10


def test_entropy_keeps_an_even_distribution_whole() -> None:
    numbers = np.random.default_rng(0).uniform(-1, 1, (50_000, 1)).astype(np.float32)
    assert range_of(of_values(numbers, channel_axis=-1), "entropy", "int8") > 0.9


def test_entropy_is_not_for_fp8() -> None:
    _, seen = drawn(gaussian)
    with pytest.raises(ConfigError, match="method entropy is for int8, found fp8; use max, percentile"):
        range_of(seen, "entropy", "fp8")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_ranges_scale_with_their_numbers(method: Method, exponent: int) -> None:
    """By a power of two exactly, as bins and candidates do."""
    numbers = laplace(np.random.default_rng(8)).astype(np.float32)
    ranges = [
        range_of(of_values((numbers * np.float32(factor))[:, None], channel_axis=-1), method, "int8")
        for factor in (1.0, 2.0**exponent)
    ]
    assert ranges[1] == pytest.approx(ranges[0] * 2.0**exponent, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_a_range(method: Method) -> None:
    zeros = of_values(np.zeros((4, 5), np.float32), channel_axis=-1)
    assert zeros.largest == 0
    assert range_of(zeros, method, "int8") > 0


@pytest.mark.parametrize("method", METHODS)
def test_equal_numbers_are_not_cut(method: Method) -> None:
    one = of_values(np.full((300, 1), 0.37, np.float32), channel_axis=-1)
    assert range_of(one, method, "int8") == pytest.approx(0.37, rel=0.04)
