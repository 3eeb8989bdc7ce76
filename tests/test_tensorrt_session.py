"""TensorRT sessions and the chain on the device against the host's, on a fake GPU: no real one runs here."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import GPU, VERSION, Error, FakeGpu, add_engines, write_plan
from numpy.typing import NDArray
from tiny_bundle import (
    LR_SCALE,
    WIDTH,
    crops_graph,
    encode_graph,
    manifest_of,
    write_tiny_bundle,
)

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference import spec
from s3clip_runtime.inference.backends import cuda
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.backends.tensorrt import TensorRtSession
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.chain import HostChain, TensorRtChain
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import Engine, Role, Target
from s3clip_runtime.inference.sessions import open_session

TRT = Target("tensorrt", "fp16")
ROLES: tuple[Role, ...] = ("enhance", "patchify", "encode")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """At the end of every test nothing may be left and nothing may have been misused."""
    made = fake_tensorrt.install(monkeypatch)
    yield made
    assert not made.alive()
    assert not made.violations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_bundle(tmp_path_factory.mktemp("bundle"))
    add_engines(folder)
    return folder


@pytest.fixture
def session(gpu: FakeGpu, folder: Path) -> Iterator[TensorRtSession]:
    opened = open_engine(folder, "enhance")
    yield opened
    opened.close()


def open_engine(folder: Path, role: Role) -> TensorRtSession:
    bundle = Bundle.open(folder)
    entry = bundle.artefact(role, TRT).engine
    assert entry is not None
    return TensorRtSession(bundle.file(role, TRT), entry)


def lr_crops(count: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    tint = rng.random((count, 1, 1, 3))
    return (rng.integers(0, 256, (count, *spec.LR_SIZE, 3)) * tint).astype(np.uint8)


def hr_crops(count: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    tint = rng.random((count, 1, 1, 3))
    return (rng.integers(0, 256, (count, *spec.FRAME_SIZE, 3), np.uint8) * tint).astype(np.uint8)


def open_chain(folder: Path) -> TensorRtChain:
    bundle, stream = Bundle.open(folder), cuda.Stream()
    sessions: dict[Role, TensorRtSession] = {}
    for role in ROLES:
        entry = bundle.artefact(role, TRT).engine
        assert entry is not None
        sessions[role] = TensorRtSession(bundle.file(role, TRT), entry, stream=stream)
    return TensorRtChain(sessions, stream)


def host_chain(folder: Path) -> HostChain:
    return HostChain({role: OrtSession(folder / f"{role}.onnx", threads=1) for role in ROLES})


# The session


@pytest.mark.parametrize("batch", [0, 1, 3, 64, 130])
def test_a_session_gives_what_the_graph_gives(session: TensorRtSession, folder: Path, batch: int) -> None:
    crops = lr_crops(batch)
    expected = OrtSession(folder / "enhance.onnx", threads=1).run({"crops": crops})
    for _ in range(2):  # the second time as a CUDA graph
        found = session.run({"crops": crops})
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_results_are_the_callers_own(session: TensorRtSession) -> None:
    first = session.run({"crops": lr_crops(2)})["tokens"]
    kept = first.copy()
    session.run({"crops": lr_crops(2, seed=1)})
    np.testing.assert_array_equal(first, kept)


def test_it_tells_its_tensors_and_refuses_wrong_ones(session: TensorRtSession) -> None:
    assert session.device == "cuda"
    assert {name: str(info) for name, info in session.inputs.items()} == {"crops": "uint8 (?, 64, 32, 3)"}
    assert set(session.outputs) == {"tokens", "picture"}
    with pytest.raises(BackendError, match=r"enhance.fp16.engine: input crops must be uint8 .* got float32"):
        session.run({"crops": lr_crops(1).astype(np.float32)})
    with pytest.raises(BackendError, match="inputs must be crops; got none"):
        session.run({})


def test_batches_are_padded_to_buckets_and_captured_once(session: TensorRtSession, gpu: FakeGpu) -> None:
    assert not session.graph_captured
    for batch in (1, 3, 4, 5, 8, 33, 64, 3):
        session.run({"crops": lr_crops(batch)})
    assert [len(run["crops"]) for run in gpu.runs] == [1, 4, 4, 8, 8, 64, 64, 4]
    assert gpu.calls["cudaStreamBeginCapture"] == 4
    assert gpu.calls["cudaGraphLaunch"] == 4
    assert session.graph_captured
    assert session.capture_problem is None


def test_padding_of_the_first_run_is_zeros_not_garbage(gpu: FakeGpu, folder: Path) -> None:
    """Platform ids that are garbage would read foreign memory on a GPU."""
    session = open_engine(folder, "encode")
    tokens = np.ones((3, spec.CLIP_LENGTH, spec.PATCHES, WIDTH), np.float32)
    session.run({"tokens": tokens, "platform": np.ones(3, np.int64)})
    assert gpu.runs[0]["platform"].tolist() == [1, 1, 1, 0]
    assert not gpu.runs[0]["tokens"][3].any()
    session.close()


def test_an_upload_does_not_overtake_the_one_before(session: TensorRtSession, folder: Path) -> None:
    """Both go through the same pinned memory, which the first copy may still be reading."""
    first, second = lr_crops(2), lr_crops(2, seed=1)
    for crops in (first, second):
        session.upload("crops", crops)
        session.enqueue(2)
        session.stream.on_device(session.buffer("picture"), 0, session.buffer("crops"), 0, first.nbytes)
        session.upload("crops", second[::-1])
        taken = session.download(["picture"], 1)["picture"]
        assert taken.tobytes()[: first.nbytes] == crops.tobytes()


def test_no_memory_is_allocated_after_the_first_run(session: TensorRtSession, gpu: FakeGpu) -> None:
    session.run({"crops": lr_crops(5)})
    made = {name: gpu.calls[name] for name in ("cudaMalloc", "cudaMallocHost")}
    for batch in (1, 64, 100, 5):
        session.run({"crops": lr_crops(batch)})
    assert made == {name: gpu.calls[name] for name in made}


def test_where_capture_fails_runs_are_enqueued_and_it_is_told(
    session: TensorRtSession, gpu: FakeGpu, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.capturable = False
    crops = lr_crops(6)
    expected = OrtSession(folder / "enhance.onnx", threads=1).run({"crops": crops})["tokens"]
    with caplog.at_level(logging.WARNING):
        for rows in (crops, crops, crops[:3], crops):
            found = session.run({"crops": rows})["tokens"]
            np.testing.assert_array_equal(found, expected[: len(rows)])
    assert gpu.calls["cudaStreamBeginCapture"] == 1  # remembered: not tried for the next bucket
    assert gpu.calls["cudaGraphLaunch"] == 0
    assert not session.graph_captured
    assert "the run on cuda failed" in str(session.capture_problem)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "runs without CUDA graphs" in caplog.text


@pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_refused_capture_is_no_error(session: TensorRtSession, gpu: FakeGpu, name: str) -> None:
    gpu.failing[name] = Error.cudaErrorStreamCaptureUnsupported
    for _ in range(2):
        session.run({"crops": lr_crops(2)})
    assert f"{name} failed: cudaErrorStreamCaptureUnsupported" in str(session.capture_problem)
    assert not session.graph_captured


@pytest.mark.parametrize(
    "name", ["cudaMemcpyAsync", "cudaMallocHost", "cudaStreamSynchronize", "cudaGraphLaunch"]
)
def test_cuda_errors_of_a_run_surface(gpu: FakeGpu, folder: Path, name: str) -> None:
    session = open_engine(folder, "enhance")
    if name == "cudaGraphLaunch":
        session.run({"crops": lr_crops(1)})
    gpu.failing[name] = Error.cudaErrorLaunchFailure
    with pytest.raises(BackendError, match=f"{name} failed: cudaErrorLaunchFailure"):
        session.run({"crops": lr_crops(1)})
    del gpu.failing[name]
    session.close()


@pytest.mark.parametrize("name", ["cudaStreamCreateWithFlags", "cudaMalloc", "cudaMemsetAsync"])
def test_cuda_errors_of_opening_surface_and_nothing_stays(gpu: FakeGpu, folder: Path, name: str) -> None:
    gpu.failing[name] = Error.cudaErrorMemoryAllocation
    with pytest.raises(BackendError, match=f"{name} failed: cudaErrorMemoryAllocation"):
        open_engine(folder, "enhance")


def test_close_frees_everything(gpu: FakeGpu, folder: Path) -> None:
    session = open_engine(folder, "enhance")
    for batch in (1, 2, 64):
        session.run({"crops": lr_crops(batch)})
    assert gpu.alive()["graphs"] == 3
    session.close()
    session.close()
    assert gpu.calls["cudaMalloc"] == gpu.calls["cudaFree"] == 4  # three tensors and the scratch memory
    assert gpu.calls["cudaMallocHost"] == gpu.calls["cudaFreeHost"] == 3
    with pytest.raises(BackendError, match="the session is closed"):
        session.run({"crops": lr_crops(1)})


def test_an_engine_of_a_narrower_profile_cuts_batches_to_it(gpu: FakeGpu, tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path)
    add_engines(folder, profile=(2, 4, 6))
    session = open_engine(folder, "enhance")
    crops = lr_crops(13)
    expected = OrtSession(folder / "enhance.onnx", threads=1).run({"crops": crops})["tokens"]
    np.testing.assert_array_equal(session.run({"crops": crops})["tokens"], expected)
    assert [len(run["crops"]) for run in gpu.runs] == [6, 6, 2]
    session.close()


# What is refused


@pytest.mark.parametrize(
    ("field", "told", "values"),
    [
        ("tensorrt", "by TensorRT", ("10.3.0", VERSION)),
        ("compute_capability", "for compute capability", ("8.7", GPU.compute_capability)),
        ("gpu", "for GPU", ("Orin", GPU.name)),
    ],
)
def test_an_engine_of_another_machine_is_refused(
    gpu: FakeGpu, tmp_path: Path, field: str, told: str, values: tuple[str, str]
) -> None:
    bundle = add_engines(write_tiny_bundle(tmp_path), changes={field: values[0]})
    pattern = (
        rf"enhance.fp16.engine: the engine was built {told} {values[0]}, here is {values[1]}; build it .*"
    )
    with pytest.raises(BackendError, match=pattern + "s3clip-export engines BUNDLE on it"):
        Embedder(bundle)


def test_another_driver_is_no_reason(gpu: FakeGpu, tmp_path: Path) -> None:
    Embedder(add_engines(write_tiny_bundle(tmp_path), changes={"driver": "12.6"})).close()


def test_tensors_other_than_the_manifests_are_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    entry = plan_of(tmp_path)
    wrong: dict[str, dict[str, dict[str, str]]] = {
        r"input crops must be uint8 \(\?, 8\) as the manifest says, the engine has uint8 \(\?, 64, 32, 3\)": {
            "inputs": {"crops": "uint8 (?, 8)"}
        },
        "output tokens must be absent as the manifest says, the engine has float32": {"outputs": {}},
        r"output more must be float32 \(\?, 2\) as the manifest says, the engine has absent": {
            "outputs": {**entry.outputs, "more": "float32 (?, 2)"}
        },
    }
    for message, change in wrong.items():
        with pytest.raises(BackendError, match=message):
            TensorRtSession(tmp_path / "g.engine", entry.model_copy(update=change))


def plan_of(folder: Path, types: Mapping[str, str] | None = None) -> Engine:
    graph = crops_graph(spec.LR_SIZE, LR_SCALE, picture=False, count_batch=False)
    (folder / "g.onnx").write_bytes(graph.SerializeToString())
    return write_plan(folder / "g.onnx", folder / "g.engine", types=types)


def test_unsupported_types_are_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    entry = plan_of(tmp_path, {"tokens": "INT8"})
    with pytest.raises(BackendError, match="tokens has type INT8; supported are UINT8, INT32"):
        TensorRtSession(tmp_path / "g.engine", entry)


def test_files_that_are_no_engines_are_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    entry = plan_of(tmp_path)
    (tmp_path / "g.engine").write_bytes(b"no plan")
    with pytest.raises(BackendError, match=r"g.engine: TensorRT cannot load it"):
        TensorRtSession(tmp_path / "g.engine", entry)
    with pytest.raises(BackendError, match=r"none.engine: cannot be read"):
        TensorRtSession(tmp_path / "none.engine", entry)


def test_a_profile_that_is_not_the_engines_is_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    entry = plan_of(tmp_path).model_copy(update={"profile": (1, 8, 128)})
    session = TensorRtSession(tmp_path / "g.engine", entry)
    with pytest.raises(
        BackendError, match=r"refuses shape \(128, 64, 32, 3\) of input crops, its profile is"
    ):
        session.run({"crops": lr_crops(100)})
    session.close()


def test_missing_tensorrt_is_named(gpu: FakeGpu, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="tensorrt cannot be imported"):
        open_engine(folder, "enhance")


@pytest.mark.skipif(cuda.driver_problem() is None, reason="this machine has a GPU")
def test_the_driver_is_asked_before_tensorrt_is_touched(folder: Path, tmp_path: Path) -> None:
    """Without a driver TensorRT crashes the process; so does this `tensorrt`, as soon as it is imported."""
    (tmp_path / "tensorrt.py").write_text("import os\nos._exit(139)\n")
    code = f"""
import pathlib
from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.inference.embedder import Embedder
bundle = Bundle.open(pathlib.Path({str(folder)!r}))
for options in ({{"device": "cuda"}}, {{"target": Target("tensorrt", "fp16")}}):
    try:
        Embedder(bundle, **options)
    except BackendError as error:
        print(error)
with Embedder(bundle) as embedder:
    print(embedder.device, embedder.target, embedder.device_reason)
import tensorrt
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode == 139  # the trap works: the last line falls into it
    asked, wanted, automatic = done.stdout.splitlines()
    assert asked == wanted
    assert asked.startswith("cuda cannot be used: the NVIDIA driver is not installed")
    assert automatic.startswith("cpu onnx-fp32 ")
    assert "tensorrt-fp16 is left unused: the NVIDIA driver is not installed" in automatic


@pytest.mark.skipif(cuda.driver_problem() is None, reason="this machine has a GPU")
def test_a_session_asks_for_the_driver_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="cuda cannot be used: the NVIDIA driver is not installed"):
        open_engine(folder, "enhance")


def test_importing_the_embedder_imports_no_backend() -> None:
    code = (
        "import sys, s3clip_runtime.inference.embedder\n"
        "print({'tensorrt', 'cuda', 'onnxruntime'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_the_fake_has_only_what_a_real_tensorrt_has() -> None:
    """TensorRT for RTX has the API of TensorRT 11 and can be installed everywhere."""
    real = pytest.importorskip("tensorrt_rtx")
    fake = fake_tensorrt.tensorrt_module(FakeGpu())
    for name in (name for name in vars(fake) if not name.startswith("__")):
        assert hasattr(real, name), name
    for ours, theirs in (
        (fake_tensorrt.FakeContext, real.IExecutionContext),
        (fake_tensorrt.FakeLogger, real.Logger),
        (fake.Runtime, real.Runtime),
    ):
        for name in (name for name in vars(ours) if not name.startswith("_")):
            assert hasattr(theirs, name), name
    for name in ("num_io_tensors", "device_memory_size_v2", "create_execution_context", "get_tensor_name"):
        assert hasattr(real.ICudaEngine, name)
    for ours, theirs in ((fake.DataType, real.DataType), (fake.TensorIOMode, real.TensorIOMode)):
        for member in ours:
            assert getattr(theirs, member.name).name == member.name
    assert hasattr(real.ExecutionContextAllocationStrategy, "USER_MANAGED")


# The chain


def random_index(rng: np.random.Generator, clips: int, rows: int) -> list[list[int]]:
    return [rng.integers(0, rows, spec.CLIP_LENGTH).tolist() for _ in range(clips)]


@pytest.mark.parametrize(
    ("lr", "hr", "clips"),
    [(8, 0, 1), (0, 8, 1), (3, 5, 1), (24, 16, 5), (40, 24, 8), (70, 90, 20), (1, 1, 9), (4, 4, 0)],
)
def test_the_device_chain_equals_the_host_chain(
    gpu: FakeGpu, folder: Path, lr: int, hr: int, clips: int
) -> None:
    rng = np.random.default_rng(lr + hr)
    index = random_index(rng, clips, lr + hr)
    platform = rng.integers(0, 2, clips)
    crops = lr_crops(lr), hr_crops(hr)
    expected = host_chain(folder).embed(*crops, index, platform).vectors
    chain = open_chain(folder)
    for _ in range(2):
        found = chain.embed(*crops, index, platform).vectors
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
    chain.close()


def test_rows_in_order_are_handed_over_in_one_copy(gpu: FakeGpu, folder: Path) -> None:
    chain = open_chain(folder)
    index = [list(range(8)), list(range(8, 16))]  # all LR, then all HR
    chain.embed(lr_crops(8), hr_crops(8), index, np.zeros(2, np.int64))
    # crops up twice, platform up, one copy a graph on the device, embeddings down
    assert gpu.calls["cudaMemcpyAsync"] == 6
    chain.embed(lr_crops(8), hr_crops(8), index, np.zeros(2, np.int64), pictures=True)
    assert gpu.calls["cudaMemcpyAsync"] == 13  # pictures down, of the same run
    assert len(gpu.runs) == 6
    chain.close()


def test_pictures_come_from_the_device(gpu: FakeGpu, folder: Path) -> None:
    chain = open_chain(folder)
    for count in (0, 1, 70):
        lr, hr = lr_crops(count), hr_crops(2)
        rows = [
            *range(count),
            *[count + 1] * (-count % 8),
        ]  # every LR crop, filled up with one of the HR ones
        index = [rows[low : low + 8] for low in range(0, len(rows), 8)]
        platform = np.zeros(len(index), np.int64)
        found = chain.embed(lr, hr, index, platform, pictures=True).pictures
        assert found is not None
        np.testing.assert_array_equal(found, lr.repeat(2, axis=1).repeat(2, axis=2))
        assert chain.embed(lr, hr, index, platform).pictures is None
    chain.close()


def test_the_chain_allocates_nothing_after_the_first_pass(gpu: FakeGpu, folder: Path) -> None:
    chain = open_chain(folder)
    rng = np.random.default_rng(4)
    crops = lr_crops(20), hr_crops(20)
    names = ("cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags")
    made = None
    for clips in (2, 1, 8, 30, 2):
        chain.embed(*crops, random_index(rng, clips, 40), np.zeros(clips, np.int64))
        made = made or [gpu.calls[name] for name in names]
        assert made == [gpu.calls[name] for name in names]
    assert made == [11, 4, 1]  # eight tensors and three scratches; of the tensors four meet the host
    assert chain.graph_captured
    chain.close()


@pytest.mark.parametrize(
    ("index", "platform", "message"),
    [
        ([[0] * 7], np.zeros(1, np.int64), "a clip must have 8 crops, got 7"),
        ([[0] * 7 + [4]], np.zeros(1, np.int64), "rows of crops must lie within 0 to 3, got 0 to 4"),
        ([[0] * 7 + [-1]], np.zeros(1, np.int64), "rows of crops must lie within 0 to 3, got -1 to 0"),
        ([[0] * 8], np.zeros(2, np.int64), r"platform must be int64 \(1,\), got int64 \(2,\)"),
        ([[0] * 8], np.zeros(1, np.int32), r"platform must be int64 \(1,\), got int32 \(1,\)"),
    ],
)
def test_the_chain_refuses_what_does_not_fit(
    gpu: FakeGpu, folder: Path, index: list[list[int]], platform: NDArray[np.int64], message: str
) -> None:
    chain = open_chain(folder)
    with pytest.raises(BackendError, match=message):
        chain.embed(lr_crops(2), hr_crops(2), index, platform)
    with pytest.raises(BackendError, match="input crops must be uint8"):
        chain.embed(lr_crops(2)[:, :8], hr_crops(2), [[0] * 8], platform)
    chain.close()


@pytest.mark.parametrize("broken", ROLES)
def test_a_graph_whose_numbers_are_not_finite_is_named(gpu: FakeGpu, tmp_path: Path, broken: Role) -> None:
    folder = write_tiny_bundle(tmp_path)
    nan = float("nan")
    graphs = {
        "enhance": crops_graph(spec.LR_SIZE, nan, picture=True, count_batch=False),
        "patchify": crops_graph(spec.FRAME_SIZE, nan, picture=False, count_batch=False),
        "encode": encode_graph(nan),
    }
    (folder / f"{broken}.onnx").write_bytes(graphs[broken].SerializeToString())
    write_manifest(folder, manifest_of(folder))
    add_engines(folder)
    chain = open_chain(folder)
    index = [[0] * 8, [1] * 8]
    for each in (host_chain(folder), chain):
        with pytest.raises(BackendError, match=f"graph {broken} gave numbers that are not finite on c"):
            each.embed(lr_crops(1), hr_crops(1), index, np.zeros(2, np.int64))
    chain.close()


# The embedder


def clip(rng: np.random.Generator, *, hr: bool) -> Clip:
    size = (150, 70) if hr else (40, 20)
    crops = (rng.integers(0, 256, (8, *size, 3)) * rng.random((8, 1, 1, 3))).astype(np.uint8)
    return Clip(tuple(crops), platform=int(rng.integers(2)), hr=hr)


@pytest.mark.parametrize("count", [1, 7, 19])
def test_the_embedder_gives_the_same_on_both(gpu: FakeGpu, folder: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    clips = [clip(rng, hr=bool(i % 3)) for i in range(count)]
    bundle = Bundle.open(folder)
    with Embedder(bundle) as device, Embedder(bundle, device="cpu", threads=1) as host:
        assert (device.target, device.device) == (TRT, "cuda")
        np.testing.assert_array_equal(device.embed(clips), host.embed(clips))
        enhance = [not each.hr and i % 2 == 0 for i, each in enumerate(clips)]
        found, expected = (each.embed_looks(clips, enhance=enhance, pictures=True) for each in (device, host))
        np.testing.assert_array_equal(found.vectors, expected.vectors)
        for shown, truth, way in zip(found.pictures, expected.pictures, enhance, strict=True):
            assert (shown is not None) == way
            if truth is not None:
                np.testing.assert_array_equal(shown, truth)
        assert (found.enhance_ms > 0) == any(enhance)
        assert found.embed_ms > 0


def test_an_engine_that_breaks_the_contract_is_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path)
    graph = crops_graph(spec.FRAME_SIZE, LR_SCALE, picture=True, count_batch=False)
    (folder / "patchify.onnx").write_bytes(graph.SerializeToString())
    write_manifest(folder, manifest_of(folder))
    with pytest.raises(
        BackendError, match=r"patchify.fp16.engine: output picture must be absent, found uint8"
    ):
        Embedder(add_engines(folder))


def test_one_engine_of_a_bundle_is_opened_alone(gpu: FakeGpu, folder: Path) -> None:
    bundle = Bundle.open(folder)
    opened = open_session(bundle, "enhance", TRT, "cuda")
    expected = lr_crops(3).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(opened.run({"crops": lr_crops(3)})["picture"], expected)
    opened.close()
