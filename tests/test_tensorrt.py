"""The engine builder on tiny graphs: what it builds and writes down, what it refuses and how it stops."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from quantised_graphs import EightBits, quantise
from tiny_graphs import perceptron, write_graph
from tqdm import tqdm

from s3clip_export.cli import main
from s3clip_export.tensorrt import build as builder
from s3clip_export.tensorrt import watch
from s3clip_export.tensorrt.build import EngineReport, TensorRT, build_engine
from s3clip_export.tensorrt.engines import add_engines, open_tensorrt, rebuild_engines
from s3clip_export.tensorrt.layers import check_precisions
from s3clip_export.tensorrt.operators import operator_types, unsupported_operators
from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference.backends import cuda
from s3clip_runtime.inference.bundle import Bundle, attachment_of, write_manifest
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.manifest import Artefact, Contract, Manifest, Precision, Role, Target
from s3clip_runtime.inference.records import sha256_file

rtx = pytest.mark.rtx

NO_TENSORRT: Any = None
"""For what must be refused before TensorRT is asked."""


@pytest.fixture
def trt() -> TensorRT:
    module: TensorRT = pytest.importorskip("tensorrt_rtx")
    return module


def build(trt: TensorRT, graph: Path, **overrides: object) -> EngineReport:
    options: dict[str, Any] = {"target_capabilities": ("8.6",), **overrides}
    return build_engine(trt, graph, graph.with_suffix(".engine"), **options)


@rtx
def test_an_engine_and_its_report(trt: TensorRT, tmp_path: Path) -> None:
    graph = perceptron(tmp_path / "tiny.onnx", half=True)
    report = build(trt, graph)
    check_precisions(report.layers, "fp16")
    assert {name: str(info) for name, info in report.inputs.items()} == {"x": "float32 (?, 8, 16)"}
    assert {name: str(info) for name, info in report.outputs.items()} == {"y": "float32 (?, 8, 16)"}
    assert report.onnx_sha256 == sha256_file(graph)
    assert report.opset == 18
    assert report.bytes == (tmp_path / "tiny.engine").stat().st_size
    assert report.activation_bytes is not None
    assert report.weights_bytes is not None
    assert report.weights_bytes < 4096  # 1024 weights of 2 bytes
    assert {node for layer in report.layers for node in layer.nodes} >= {"first", "second"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.engine", "tiny.onnx"]


@rtx
def test_an_fp32_graph_does_not_pass_for_fp16(trt: TensorRT, tmp_path: Path) -> None:
    report = build(trt, perceptron(tmp_path / "tiny.onnx"))
    check_precisions(report.layers, "fp32")
    with pytest.raises(BackendError, match=r"0\.0% of the engine's 2 products write fp16, bound 95%"):
        check_precisions(report.layers, "fp16")


@rtx
def test_mixed_types_are_refused_with_the_node(trt: TensorRT, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16, name="into"),
        helper.make_node("Add", ["half", "x"], ["y"], name="sloppy"),
    ]
    with pytest.raises(
        BackendError, match=r"node sloppy \(Add\).*Float and Half|node sloppy.*Half and Float"
    ):
        build(trt, write_graph(tmp_path / "tiny.onnx", nodes))
    assert not (tmp_path / "tiny.engine").exists()


@rtx
def test_bytes_cannot_be_transposed(trt: TensorRT, tmp_path: Path) -> None:
    """Why the exported graphs cast first: TensorRT has UINT8 at the edge alone."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1], name="early"),
        helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT, name="late"),
    ]
    graph = write_graph(tmp_path / "tiny.onnx", nodes, inputs={"x": (TensorProto.UINT8, ("N", 8, 16))})
    with pytest.raises(BackendError, match=r"node early \(Transpose\).*UInt8"):
        build(trt, graph)


@rtx
@pytest.mark.parametrize("shape", [(2, 8, 16), ("N", "H", 16)])
def test_only_the_batch_may_be_dynamic(trt: TensorRT, tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    graph = write_graph(tmp_path / "tiny.onnx", nodes, inputs={"x": (TensorProto.FLOAT, shape)})
    with pytest.raises(BackendError, match="the batch of input x must be dynamic and nothing else"):
        build(trt, graph)


@rtx
def test_a_refused_profile_is_an_error(trt: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"refuses the batches \(9, 8, 64\)"):
        build(trt, perceptron(tmp_path / "tiny.onnx"), batches=(9, 8, 64))


@rtx
def test_too_little_workspace_quotes_the_log(trt: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"built no engine: .*(?i:memory|workspace)"):
        build(trt, perceptron(tmp_path / "tiny.onnx"), workspace_bytes=1)


@rtx
def test_an_unknown_target_is_refused(trt: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"cannot build for compute capability 8\.7"):
        build(trt, perceptron(tmp_path / "tiny.onnx"), target_capabilities=("8.7",))


def test_an_unsupported_operator_is_named_before_parsing(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("FusedMatMul", ["d", "d"], ["y"], name="fused", domain="com.microsoft"),
    ]
    graph = write_graph(tmp_path / "tiny.onnx", nodes)
    assert unsupported_operators(onnx.load(graph)) == ["1 x Det", "1 x com.microsoft.FusedMatMul"]
    with pytest.raises(BackendError, match=r"parser has no 1 x Det, 1 x com\.microsoft\.FusedMatMul"):
        build(NO_TENSORRT, graph)


def test_a_newer_opset_is_refused_before_parsing(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"its opset is 21, TensorRT 10\.3 reads 9 to 20"):
        build(NO_TENSORRT, perceptron(tmp_path / "tiny.onnx", opset=21))


@rtx
def test_the_operator_table_names_what_the_parser_knows(trt: TensorRT) -> None:
    """TensorRT-RTX's parser is newer than any in the table, so it must know all of it."""
    rtx_module: Any = trt
    log = rtx_module.Logger(rtx_module.Logger.ERROR)
    parser = rtx_module.OnnxParser(rtx_module.Builder(log).create_network(1), log)
    assert [name for name in operator_types() if not parser.supports_operator(name)] == []
    assert not parser.supports_operator("Det")
    assert len(operator_types()) > 140


def fake_gpu(monkeypatch: pytest.MonkeyPatch, problem: str | None, capability: str = "8.6") -> None:
    monkeypatch.setattr(cuda, "driver_problem", lambda: problem)
    monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("NVIDIA Test", capability, "999.1"))


def test_without_a_driver_tensorrt_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "libcuda.so.1 cannot be opened")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it would raise
    with pytest.raises(BackendError, match=r"none can be used: libcuda\.so\.1 cannot be opened; export on"):
        add_engines(tmp_path, draft(tmp_path), "fp32")


def test_a_missing_tensorrt_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="tensorrt cannot be imported"):
        add_engines(tmp_path, draft(tmp_path), "fp32")


def test_engines_need_the_graphs_of_their_precision(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no fp16 ONNX graph enhance, patchify, encode"):
        add_engines(tmp_path, draft(tmp_path), "fp16")


def draft(folder: Path) -> Manifest:
    """A draft bundle whose three graphs are tiny."""
    artefacts = []
    for role in get_args(Role):
        graph = perceptron(folder / f"{role}.onnx")
        artefacts.append(
            Artefact(
                role=role,
                file=graph.name,
                precision="fp32",
                backend="onnx",
                opset=18,
                sha256=sha256_file(graph),
                bytes=graph.stat().st_size,
            )
        )
    return Manifest(
        name="tiny",
        created=datetime.now(UTC),
        s3clip_version="0",
        embedding_space="0" * 64,
        contract=Contract.current(32, 48),
        artefacts=tuple(artefacts),
        training={},
        proofs=(),
    )


def with_inspector(trt: TensorRT, kind: str, taken: str | None = None) -> SimpleNamespace:
    """TensorRT-RTX whose engines can be inspected, which a real one can only with a GPU.

    They tell of one layer that has both products of `perceptron`, takes `taken` and writes `kind`.
    """
    layer = {
        "Name": "l",
        "LayerType": "gemm",
        "Inputs": [{"Datatype": taken or kind}],
        "Outputs": [{"Datatype": kind}],
        "Metadata": "[ONNX Layer: first][ONNX Layer: second]",
    }
    inspector = SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": [layer]}))
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _: engine)
    return SimpleNamespace(**(vars(trt) | {"Runtime": lambda _: runtime}))


@rtx
def test_engines_of_a_draft(trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "tensorrt", with_inspector(trt, "Float"))
    before = draft(tmp_path)
    after = add_engines(tmp_path, before, "fp32")
    assert after.artefacts[:3] == before.artefacts
    assert [a.file for a in after.artefacts[3:]] == [f"{role}.fp32.engine" for role in get_args(Role)]
    first = after.artefacts[3]
    assert first.engine is not None
    assert first.sha256 == sha256_file(tmp_path / first.file)
    assert first.engine.onnx_sha256 == before.artefacts[0].sha256
    assert (first.engine.tensorrt, first.engine.gpu) == (trt.__version__, "NVIDIA Test")
    assert first.engine.profile == (1, 8, 64)
    assert first.engine.inputs == {"x": "float32 (?, 8, 16)"}
    assert add_engines(tmp_path, after, "fp32").artefacts[:3] == before.artefacts
    assert len(add_engines(tmp_path, after, "fp32").artefacts) == 6  # built again, not twice there


def half_bundle(folder: Path) -> Path:
    """A valid bundle with FP16 graphs and a reference that nobody reads."""
    folder.mkdir()
    plain = draft(folder)
    half = [a.model_copy(update={"precision": "fp16"}) for a in plain.artefacts]
    (folder / "reference.npz").write_bytes(b"crops")
    manifest = plain.model_copy(
        update={
            "artefacts": (*plain.artefacts, *half),
            "proofs": (proof_of("onnx-fp32", 1.0), proof_of("onnx-fp16", 1.0)),
            "attachments": {"reference": attachment_of(folder / "reference.npz")},
        }
    )
    write_manifest(folder, manifest)
    return folder


def proof_of(target: str, cosine: float) -> Proof:
    return Proof(
        target=target,
        device="cuda (NVIDIA Test)",
        tracklets=2,
        crops=16,
        stages={"encode": 0.0},
        cosine_mean=cosine,
        cosine_p1=cosine,
        cosine_min=cosine,
        max_abs_error=0.0,
        top1_agreement=1.0,
        top10_agreement=1.0,
        kendall_tau=1.0,
        rank1_change=None,
        map_change=None,
        bounds={"cosine_min": 0.9995},
    )


@rtx
def test_a_bundle_gets_engines_on_the_machine_of_deployment(
    trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "tensorrt", with_inspector(trt, "Half"))
    seen: list[tuple[str, str]] = []

    def measured(bundle: Bundle, target: Target, device: str) -> Proof:  # needs a GPU
        seen.append((str(target), device))
        return proof_of(str(target), 1.0)

    monkeypatch.setattr("s3clip_export.tensorrt.engines.check_reference", measured)
    folder = half_bundle(tmp_path / "bundle")
    for _ in range(2):  # the second time in the place of the first
        rebuild_engines(folder)
        bundle = Bundle.open(folder)
        assert [str(t) for t in bundle.targets] == ["onnx-fp32", "onnx-fp16", "tensorrt-fp16"]
        assert [p.target for p in bundle.manifest.proofs] == ["onnx-fp32", "onnx-fp16", "tensorrt-fp16"]
    assert seen == [("tensorrt-fp16", "cuda")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def eight_bit_bundle(folder: Path, kind: EightBits) -> Path:
    """`half_bundle` with 8-bit graphs of `enhance` and `patchify`; `encode` stays in float16."""
    precision: Precision = "int8-fp16" if kind == "int8" else "fp8-fp16"
    manifest = Bundle.open(half_bundle(folder)).manifest
    quantised = []
    for role in get_args(Role):
        half = next(a for a in manifest.artefacts if a.role == role and a.precision == "fp16")
        changes: dict[str, Any] = {"precision": precision}
        if role != "encode":
            path = folder / f"{role}.{precision}.onnx"
            quantise(perceptron(folder / "half.onnx", half=True), path, kind)
            changes |= {"file": path.name, "sha256": sha256_file(path), "bytes": path.stat().st_size}
        quantised.append(half.model_copy(update=changes))
    (folder / "half.onnx").unlink()
    proofs = (*manifest.proofs, proof_of(f"onnx-{precision}", 1.0))
    write_manifest(folder, manifest.changed(artefacts=(*manifest.artefacts, *quantised), proofs=proofs))
    return folder


@rtx
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_bundle_gets_8_bit_engines(
    trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: EightBits
) -> None:
    fake_gpu(monkeypatch, None, "8.9")
    taken = {"int8": "Int8", "fp8": "FP8"}[kind]
    monkeypatch.setitem(sys.modules, "tensorrt", with_inspector(trt, "Half", taken))
    monkeypatch.setattr(
        "s3clip_export.tensorrt.engines.check_reference", lambda _, target, __: proof_of(str(target), 1.0)
    )
    folder = eight_bit_bundle(tmp_path / "bundle", kind)
    precision: Precision = "int8-fp16" if kind == "int8" else "fp8-fp16"
    for _ in range(2):  # the second time in the place of the first
        proof = rebuild_engines(folder, precision=precision)
        assert proof.target == f"tensorrt-{precision}"
        bundle = Bundle.open(folder)
        assert [str(t) for t in bundle.targets][-2:] == [f"onnx-{precision}", proof.target]
        assert [p.target for p in bundle.manifest.proofs][-2:] == [f"onnx-{precision}", proof.target]
    engines = {a.role: a for a in bundle.manifest.artefacts if a.backend == "tensorrt"}
    assert [a.file for a in engines.values()] == [f"{role}.{precision}.engine" for role in get_args(Role)]
    assert engines["enhance"].opset == 19
    for role, artefact in engines.items():
        assert artefact.engine is not None
        graph = bundle.file(role, Target("onnx", precision))
        assert artefact.engine.onnx_sha256 == sha256_file(graph)


@rtx
def test_a_shared_fp16_graph_is_judged_as_fp16_and_an_8_bit_one_is_not(
    trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every engine says that it takes and writes halves: right for `encode` alone, which is built last."""
    fake_gpu(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "tensorrt", with_inspector(trt, "Half"))
    folder = eight_bit_bundle(tmp_path / "bundle", "int8")
    with pytest.raises(BackendError, match=r"enhance\.int8-fp16\.engine: 0\.0% of the graph's 2 quantised"):
        rebuild_engines(folder, precision="int8-fp16")
    manifest = Bundle.open(folder).manifest
    half = {a.role: a for a in manifest.artefacts if a.target == Target("onnx", "fp16")}
    shared = tuple(
        half[a.role].model_copy(update={"precision": "int8-fp16"}) if a.precision == "int8-fp16" else a
        for a in manifest.artefacts
    )
    after = add_engines(folder, manifest.changed(artefacts=shared), "int8-fp16")
    assert len(after.artefacts) == len(shared) + 3


@pytest.mark.parametrize("capability", ["8.6", "8.7", "7.5"])
def test_fp8_needs_a_gpu_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    fake_gpu(monkeypatch, None, capability)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it would raise
    folder = eight_bit_bundle(tmp_path / "bundle", "fp8")
    with pytest.raises(BackendError, match=rf"need compute capability 8\.9 or newer, .* has {capability};"):
        rebuild_engines(folder, precision="fp8-fp16")
    assert list(folder.glob("*.engine")) == []


@pytest.mark.parametrize("capability", ["8.9", "9.0", "10.0", "12.0"])
def test_newer_gpus_have_fp8(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    fake_gpu(monkeypatch, None, capability)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())
    assert open_tensorrt("fp8-fp16")[1].compute_capability == capability


def test_8_bit_engines_need_8_bit_graphs(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no onnx-int8-fp16 graphs"):
        rebuild_engines(half_bundle(tmp_path / "bundle"), precision="int8-fp16")
    with pytest.raises(
        BundleError, match=r"holds no fp8-fp16 ONNX graph .*; make them with s3clip-calib first"
    ):
        add_engines(tmp_path, draft(tmp_path), "fp8-fp16")


@pytest.mark.parametrize(
    ("options", "precision"), [((), "fp16"), (("--precision", "int8-fp16"), "int8-fp16")]
)
def test_the_command_hands_the_precision_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], precision: str
) -> None:
    made: list[tuple[object, ...]] = []

    def rebuilt(*arguments: object) -> Proof:  # needs a GPU
        made.append(arguments)
        return proof_of(f"tensorrt-{precision}", 1.0)

    monkeypatch.setattr("s3clip_export.tensorrt.engines.rebuild_engines", rebuilt)
    done = CliRunner().invoke(main, ["engines", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"tensorrt-{precision} on cuda")
    assert made == [(tmp_path, builder.WORKSPACE_BYTES, precision)]
    assert CliRunner().invoke(main, ["engines", str(tmp_path), "--precision", "fp32"]).exit_code == 2


@rtx
def test_engines_that_miss_a_bound_leave_the_bundle_as_it_was(
    trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "tensorrt", with_inspector(trt, "Half"))
    monkeypatch.setattr(
        "s3clip_export.tensorrt.engines.check_reference", lambda *_: proof_of("tensorrt-fp16", 0.9)
    )
    folder = half_bundle(tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        BundleError, match=r"new engines differ from PyTorch: cosine_min is 0\.9, must be at least"
    ):
        rebuild_engines(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_engines_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "there is no driver")
    folder = half_bundle(tmp_path / "bundle")
    with pytest.raises(BackendError, match="there is no driver"):
        rebuild_engines(folder)
    manifest = Bundle.open(folder).manifest
    write_manifest(folder, manifest.model_copy(update={"attachments": {}}))
    with pytest.raises(BundleError, match="holds no reference to prove engines with"):
        rebuild_engines(folder)
    write_manifest(folder, manifest.model_copy(update={"artefacts": manifest.artefacts[:3]}))
    with pytest.raises(BundleError, match="holds no onnx-fp16 graphs"):
        rebuild_engines(folder)


@rtx
def test_an_engine_of_another_precision_is_not_kept(
    trt: TensorRT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_gpu(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "tensorrt", with_inspector(trt, "Half"))
    with pytest.raises(BackendError, match=r"enhance\.fp32\.engine: 0\.0% of the engine's 1 products"):
        add_engines(tmp_path, draft(tmp_path), "fp32")
    assert list(tmp_path.glob("*.engine")) == []


@rtx
def test_an_engine_that_cannot_be_opened_is_not_written(trt: TensorRT, tmp_path: Path) -> None:
    """Without a GPU the real runtime opens nothing; the engine must not pass unread."""
    if gpu_here():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match="cannot open the engine it has just built"):
        build(trt, perceptron(tmp_path / "tiny.onnx"), target_capabilities=None)
    assert not (tmp_path / "tiny.engine").exists()


def gpu_here() -> bool:
    return Path("/dev/nvidiactl").exists()


class TimingConfig:
    """The part of a builder's config that keeps measured kernels; takes caches that begin with `accepts`."""

    def __init__(self, accepts: bytes = b"") -> None:
        self.accepts = accepts
        self.content: bytes | None = None

    def create_timing_cache(self, serialized: bytes) -> bytes:
        return serialized

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = not cache or cache.startswith(self.accepts)
        if fits:
            self.content = cache + b" more"
        return fits

    def get_timing_cache(self) -> SimpleNamespace:
        content = np.frombuffer(self.content or b"", np.uint8)
        return SimpleNamespace(serialize=lambda: content)


def test_the_timing_cache_is_reused_and_a_foreign_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    first: Any = TimingConfig()
    assert builder._attach_timing_cache(first, None) == "unused: none was asked for"
    assert builder._attach_timing_cache(first, path) == "started anew"
    assert builder._save_timing_cache(first, path) == ", saved 5 bytes"
    assert path.read_bytes() == b" more"
    assert builder._attach_timing_cache(TimingConfig(), path) == "started from 5 bytes"  # type: ignore[arg-type]
    other: Any = TimingConfig(accepts=b"other")
    assert builder._attach_timing_cache(other, path) == "is of another GPU or version, started anew"
    builder._save_timing_cache(other, path)
    assert path.read_bytes() == b" more"
    assert [p.name for p in tmp_path.iterdir()] == ["timing.cache"]


@rtx
def test_no_cache_is_written_for_a_gpu_that_is_not_here(trt: TensorRT, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    report = build(trt, perceptron(tmp_path / "tiny.onnx"), timing_cache=cache)
    assert report.timing_cache == "unused: kernels cannot be timed for a GPU that is not here"
    assert not cache.exists()


def test_ctrl_c_stops_the_builder_first() -> None:
    stopped = threading.Event()
    finished = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        finished.append(stopped.wait(20))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a background job
    try:
        with pytest.raises(KeyboardInterrupt):
            watch.interruptible(work, stopped.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert finished == [True]


@rtx
def test_progress_is_shown(
    trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "tqdm", lambda **options: tqdm(**{**options, "disable": False}))
    build(trt, perceptron(tmp_path / "tiny.onnx"))
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("engine of tiny.onnx: 100%"), last


@rtx
def test_a_cancelled_build_gives_no_engine(
    trt: TensorRT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The monitor's answer really stops the builder."""

    def phase_start(self: watch.Progress, phase_name: str, parent: str | None, steps: int) -> None:
        self.cancel()

    monkeypatch.setattr(watch.Progress, "phase_start", phase_start)
    with pytest.raises(BackendError, match="built no engine"):
        build(trt, perceptron(tmp_path / "tiny.onnx"))
