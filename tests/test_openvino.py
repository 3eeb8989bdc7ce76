"""OpenVINO on the CPU: the same numbers as numpy, in the precision that was asked for, or a refusal."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tiny_bundle import DIM, HR_SCALE, LR_SCALE, embedding_of, manifest_of, tokens_of, write_tiny_bundle
from tiny_graphs import perceptron, write_graph

from s3clip_export.int8 import per_column, write_int8
from s3clip_export.tiers import BF16, INT8, add_tiers
from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference import targets
from s3clip_runtime.inference.backends import openvino
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.backends.openvino import OpenVinoSession, openvino_problem
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.cpus import cpu_flags, lacking_instructions
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.evidence import Speed
from s3clip_runtime.inference.manifest import PLAIN, TARGETS, Precision, Target
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.speeds import Place, with_speeds

TIERS = (BF16, INT8)
AVX512 = {"avx512f", "avx512_bf16", "avx512_vnni"}

rounds_here = pytest.mark.skipif(
    any(lacking_instructions(tier.precision, cpu_flags()) for tier in TIERS),
    reason="this CPU does not compute in bfloat16 and int8: the refusal is tested instead",
)


def tokens(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, 8, 16)).astype(np.float32)


def error_of(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def run(path: Path, precision: Precision, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    session = OpenVinoSession(path, precision=precision, threads=1)
    try:
        found: NDArray[np.float32] = session.run({"x": inputs})["y"]
    finally:
        session.close()
    return found


def test_float32_is_what_onnxruntime_computes(tmp_path: Path) -> None:
    path = perceptron(tmp_path / "graph.onnx")
    session = OrtSession(path, threads=1)
    for rows in (3, 1, 8, 70):  # the batch is free, and above 64 it is cut
        expected = session.run({"x": tokens(rows)})["y"]
        np.testing.assert_allclose(run(path, "fp32", tokens(rows)), expected, rtol=1e-5, atol=1e-5)
    session.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_side_by_side_give_what_a_batch_gives(tmp_path: Path, threads: int) -> None:
    """Also where the last one is padded, and where threads finish in another order each time."""
    path = perceptron(tmp_path / "graph.onnx")
    plain = OrtSession(path, threads=1)
    session = OpenVinoSession(path, precision="fp32", threads=threads, piece=2)
    assert session.inputs["x"].shape == (None, 8, 16)
    for rows in (*range(1, 10), *[8] * 100):
        found, expected = (s.run({"x": tokens(rows, seed=rows)})["y"] for s in (session, plain))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    session.close()
    plain.close()


@rounds_here
def test_bfloat16_rounds_like_bfloat16(tmp_path: Path) -> None:
    """8 bits of mantissa: about 2^-9 a factor, far more than float32."""
    path = perceptron(tmp_path / "graph.onnx")
    error = error_of(run(path, "bf16", tokens(16)), run(path, "fp32", tokens(16)))
    assert 2**-12 < error < 2**-6


def wide(path: Path, seed: int = 0) -> Path:
    """A product that is wide enough for int8: 256 inputs, of which three are fifty times larger."""
    weight = np.random.default_rng(seed).normal(size=(256, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return write_graph(path, nodes, weights={"w": weight}, inputs={"x": (1, ("N", 8, 256))})


def wide_input() -> NDArray[np.float32]:
    values = np.random.default_rng(3).normal(size=(4, 8, 256)).astype(np.float32)
    values[:, 1] *= 50  # one token of each: a scale of the whole tensor would leave nothing of the others
    return values


@rounds_here
def test_int8_has_a_scale_a_token(tmp_path: Path) -> None:
    plain = wide(tmp_path / "plain.onnx")
    assert write_int8(plain, tmp_path / "int8.onnx") == 1
    found = run(tmp_path / "int8.onnx", "int8", wide_input())
    expected = run(plain, "fp32", wide_input())
    by_token = [error_of(found[:, i], expected[:, i]) for i in range(8)]
    assert max(by_token) < 0.02
    # One scale for the tensor: steps of 1.2 where the other tokens' values are about 1.
    step = np.abs(wide_input()).max() / 127
    crude = (np.rint(wide_input() / step) * step) @ numpy_helper.to_array(
        onnx.load(plain).graph.initializer[0]
    )
    assert max(error_of(crude[:, i], expected[:, i]) for i in range(8)) > 0.05


@rounds_here
def test_int8_products_are_not_computed_in_floats(tmp_path: Path) -> None:
    """The activations are rounded too: with exact ones only the weights' rounding would be left."""
    plain = wide(tmp_path / "plain.onnx")
    write_int8(plain, tmp_path / "int8.onnx")
    session = OrtSession(tmp_path / "int8.onnx", threads=1)
    weights_only = session.run({"x": wide_input()})["y"]
    session.close()
    assert error_of(run(tmp_path / "int8.onnx", "int8", wide_input()), weights_only) > 1e-3


def test_int8_weights_are_within_half_a_step() -> None:
    weight = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    weight[:, 3] = 0
    for axis in (0, 1):
        values, scales = per_column(weight, axis)
        assert values.dtype == np.int8
        for i in range(weight.shape[axis]):  # the slow, obvious version
            column, rounded = np.take(weight, i, axis), np.take(values, i, axis)
            assert np.abs(column - rounded * scales[i]).max() <= scales[i] / 2 + 1e-7
            assert np.abs(rounded).max() == (127 if column.any() else 0)


def test_shared_and_transposed_weights_become_int8_once(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(2).normal(size=(16, 16)).astype(np.float32)}
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["b"], transB=1),
        helper.make_node("Gemm", ["b", "w"], ["y"], transB=1),
    ]
    path = write_graph(tmp_path / "g.onnx", nodes, weights={**weights, "rows": np.array([-1, 16])})
    assert write_int8(path, tmp_path / "q.onnx") == 1
    session, plain = OrtSession(tmp_path / "q.onnx", threads=1), OrtSession(path, threads=1)
    found, expected = (s.run({"x": tokens(2)})["y"] for s in (session, plain))
    assert 1e-4 < error_of(found, expected) < 0.03


def test_a_graph_without_constant_products_has_nothing_to_round(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    with pytest.raises(BundleError, match="no product with a constant matrix, so nothing becomes int8"):
        write_int8(path, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


# A session's manners


def test_results_are_the_callers_own(tmp_path: Path) -> None:
    session = OpenVinoSession(perceptron(tmp_path / "g.onnx"), precision="fp32", threads=1)
    first = session.run({"x": tokens(2)})["y"]
    kept = first.copy()
    session.run({"x": tokens(2, seed=9)})
    np.testing.assert_array_equal(first, kept)
    session.close()
    np.testing.assert_array_equal(first, kept)


def test_a_closed_session_says_so(tmp_path: Path) -> None:
    session = OpenVinoSession(perceptron(tmp_path / "g.onnx"), precision="fp32", threads=1)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.run({"x": tokens(1)})


def test_wrong_inputs_and_files_are_refused(tmp_path: Path) -> None:
    session = OpenVinoSession(perceptron(tmp_path / "g.onnx"), precision="fp32", threads=1)
    with pytest.raises(BackendError, match=r"input x must be float32 \(\?, 8, 16\), got float64"):
        session.run({"x": tokens(1).astype(np.float64)})
    session.close()
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"broken\.onnx: OpenVINO cannot load it in fp32"):
        OpenVinoSession(tmp_path / "broken.onnx", precision="fp32")
    with pytest.raises(BackendError, match="threads must be at least 1, found 0"):
        OpenVinoSession(tmp_path / "g.onnx", precision="fp32", threads=0)


# What a CPU can compute


@pytest.mark.parametrize(
    ("precision", "flags", "lacks"),
    [
        ("fp32", set(), None),
        ("bf16", AVX512, None),
        ("int8", AVX512, None),
        ("bf16", {"amx_bf16"}, None),
        ("int8", {"amx_bf16", "amx_int8"}, None),
        ("bf16", {"avx2", "avx_vnni"}, "bf16 needs a CPU with one of amx_bf16, avx512_bf16"),
        ("int8", {"avx2", "avx_vnni"}, "int8 needs a CPU with one of amx_bf16, avx512_bf16"),
        ("int8", {"avx512_bf16"}, "int8 needs a CPU with one of amx_int8, avx512_vnni, avx_vnni"),
        ("bf16", set(), "bf16 needs a CPU"),
    ],
)
def test_instructions_decide(precision: Precision, flags: set[str], lacks: str | None) -> None:
    found = lacking_instructions(precision, flags)
    assert found is None if lacks is None else found is not None and found.startswith(lacks)


def test_what_openvino_itself_says_of_this_cpu() -> None:
    import openvino as library

    able = "BF16" in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (openvino_problem("bf16") is None) == able


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    problem = openvino_problem("fp32")
    assert problem is not None
    assert 'pip install "s3clip[openvino]"' in problem


# In a bundle


def tiered(folder: Path) -> Path:
    write_tiny_bundle(folder)
    plain = manifest_of(folder)
    proofs = [plain.proofs[0].model_copy(update={"target": str(tier)}) for tier in TIERS]
    manifest = add_tiers(folder, plain, TIERS).changed(proofs=(*plain.proofs, *proofs))
    write_manifest(folder, manifest)
    return folder


def test_tiers_share_the_plain_files_but_for_the_encoder(tmp_path: Path) -> None:
    bundle = Bundle.open(tiered(tmp_path / "bundle"))
    assert bundle.manifest.schema_version == 4
    assert bundle.targets == (PLAIN, *TIERS)
    assert bundle.file("enhance", INT8) == bundle.file("enhance", PLAIN)
    assert bundle.file("encode", BF16) == bundle.file("encode", PLAIN)
    assert bundle.file("encode", INT8).name == "encode.int8.onnx"


def test_a_flipped_byte_of_the_int8_encoder_is_found(tmp_path: Path) -> None:
    folder = tiered(tmp_path / "bundle")
    path = folder / "encode.int8.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"encode\.int8\.onnx: SHA-256 must be"):
        Bundle.open(folder)


@rounds_here
@pytest.mark.parametrize("tier", TIERS, ids=str)
def test_a_bundle_embeds_as_numpy_does(tmp_path: Path, tier: Target) -> None:
    rng = np.random.default_rng(5)
    clips = [
        Clip(
            tuple(rng.integers(0, 256, (8, height, height // 2, 3), dtype=np.uint8)), platform, height >= 128
        )
        for height, platform in ((40, 0), (160, 1))
    ]
    with Embedder(Bundle.open(tiered(tmp_path / "bundle")), device="cpu", target=tier, threads=2) as embedder:
        assert (embedder.device, embedder.target) == ("cpu", tier)
        found = embedder.embed(clips)
    assert found.shape == (2, DIM)
    for row, clip in zip(found, clips, strict=True):
        batch = hr_batch(clip.crops) if clip.hr else lr_batch(clip.crops)
        expected = embedding_of(tokens_of(batch, HR_SCALE if clip.hr else LR_SCALE), clip.platform)
        assert float(row @ expected) > 0.9999
        np.testing.assert_allclose(row, expected, atol=0.01)


def test_auto_and_cpu_take_what_runs_and_int8_once_it_has_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs of three kinds; and what is not used is said with its reason."""
    folder = tiered(tmp_path / "bundle")
    unmeasured = Bundle.open(folder)
    times_ms = zip((PLAIN, BF16, INT8), (30, 20, 10), strict=True)
    won = [
        Speed(
            target=str(target), **Place.here("cpu")._asdict(), lr_ms=ms, hr_ms=ms,
            measured=unmeasured.manifest.created,
        )
        for target, ms in times_ms
    ]  # fmt: skip
    write_manifest(folder, with_speeds(unmeasured.manifest, won))
    measured = Bundle.open(folder)
    machines: list[tuple[Bundle, set[str], Target]] = [
        (unmeasured, AVX512, BF16),
        (measured, AVX512, INT8),
        (measured, {"avx512_bf16"}, BF16),
        (measured, set(), PLAIN),
    ]
    for device, (bundle, flags, expected) in product(("auto", "cpu"), machines):
        monkeypatch.setattr(
            targets, "openvino_problem", lambda tier, flags=flags: lacking_instructions(tier, flags)
        )
        choice = targets.choose_target(bundle, device, None)
        assert choice[:2] == (expected, "cpu")
        assert str(expected) in choice.reason
        for unused in TIERS:
            left = lacking_instructions(unused.precision, flags) is not None
            assert (f"{unused} is left unused: {unused.precision} needs a CPU" in choice.reason) == left


def test_a_tier_is_obeyed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiered(tmp_path / "bundle"))
    assert targets.choose_target(bundle, "auto", BF16)[:2] == (BF16, "cpu")
    with pytest.raises(BackendError, match="openvino-bf16 runs on cpu, not on cuda"):
        targets.choose_target(bundle, "cuda", BF16)
    monkeypatch.setattr(openvino, "cpu_flags", frozenset)
    with pytest.raises(BackendError, match="cannot run in bf16 with OpenVINO: bf16 needs a CPU with one of"):
        Embedder(bundle, device="cpu", target=BF16)


def test_targets_are_a_closed_list() -> None:
    assert {target.precision for target in TARGETS} == set(get_args(Precision))
    assert Target.parse("openvino-int8") == INT8
