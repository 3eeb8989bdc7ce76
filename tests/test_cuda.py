"""The driver probe against a driver written in C, and the owned CUDA objects against a fake runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import Error, FakeGpu

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import cuda

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
int cuInit(unsigned flags) { return flags ? 1 : number("FAKE_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 1); return number("FAKE_COUNT_CODE", 0); }
int cuDeviceGet(int *device, int ordinal) { *device = 7 + ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    if (device != 7) return 101;
    strncpy(name, "NVIDIA Paper 8", length);
    return number("FAKE_NAME", 0);
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 7) return 101;
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : -1;
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuGetErrorString(int code, const char **text) {
    *text = code == 100 ? "no such device" : NULL;
    return code == 100 ? 0 : 1;
}
"""
NVML = r"""
#include <stdlib.h>
#include <string.h>
int nvmlInit_v2(void) { return getenv("FAKE_NVML") ? atoi(getenv("FAKE_NVML")) : 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "560.35.03", length); return 0; }
"""
ASK = """
from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import cuda
print(cuda.driver_problem())
try:
    print(cuda.gpu())
except BackendError as error:
    print(error)
"""

REAL_DRIVER = cuda.driver_problem() is None


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda and a libnvidia-ml that answer what the environment says."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed")
    folder = tmp_path_factory.mktemp("driver")
    for library, source in (("libcuda.so.1", DRIVER), ("libnvidia-ml.so.1", NVML)):
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / library)]
        subprocess.run(command, input=source, text=True, check=True)
    return folder


def ask(folder: Path, **environment: str) -> list[str]:
    """What `driver_problem` and `gpu` say in a process that finds the driver in `folder`."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_gpu_is_described(driver: Path) -> None:
    problem, gpu = ask(driver)
    assert problem == "None"
    assert gpu == "Gpu(name='NVIDIA Paper 8', compute_capability='8.6', driver='12.6 (560.35.03)')"


def test_the_kernel_driver_may_be_unknown(driver: Path, tmp_path: Path) -> None:
    assert "driver='12.6')" in ask(driver, FAKE_NVML="3")[1]
    shutil.copy(driver / "libcuda.so.1", tmp_path)
    assert "driver='12.6" in ask(tmp_path)[1]


@pytest.mark.parametrize(
    ("environment", "clause"),
    [
        ({"FAKE_INIT": "100"}, "does not start (cuInit: error 100, no such device)"),
        ({"FAKE_INIT": "3"}, "does not start (cuInit: error 3)"),
        ({"FAKE_COUNT_CODE": "3"}, "does not start (cuDeviceGetCount: error 3)"),
        ({"FAKE_COUNT": "0"}, "sees no GPU"),
    ],
)
def test_a_driver_that_does_not_work(driver: Path, environment: dict[str, str], clause: str) -> None:
    problem, error = ask(driver, **environment)
    assert problem == f"the NVIDIA driver {clause}"
    assert error.startswith(f"cuda cannot be used: {problem}; ")


def test_a_gpu_that_does_not_answer(driver: Path) -> None:
    answer = ask(driver, FAKE_NAME="999")[1]
    assert answer == "GPU 0 does not answer: cuDeviceGetName: error 999; check it with nvidia-smi"


@pytest.mark.skipif(REAL_DRIVER, reason="this machine has a GPU")
def test_no_driver() -> None:
    assert "libcuda.so.1" in str(cuda.driver_problem())
    with pytest.raises(BackendError, match="cuda cannot be used: the NVIDIA driver is not installed"):
        cuda.gpu()


@pytest.mark.skipif(REAL_DRIVER, reason="this machine has a GPU")
def test_the_real_bindings_report_their_error() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(BackendError, match=r"cudaMalloc failed: cudaErrorInsufficientDriver, CUDA driver"):
        cuda.DeviceBuffer(8)
    with pytest.raises(BackendError, match="cudaStreamCreateWithFlags failed"):
        cuda.Stream()


def test_missing_bindings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=r'pip install "s3clip\[trt\]"'):
        cuda.Stream()


def test_the_fake_has_only_what_the_real_bindings_have() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    for name in (*fake_tensorrt.FUNCTIONS, *fake_tensorrt.CONSTANTS):
        assert hasattr(real, name), name
    for ours, theirs in (
        (Error, real.cudaError_t),
        (fake_tensorrt.CopyKind, real.cudaMemcpyKind),
        (fake_tensorrt.CaptureMode, real.cudaStreamCaptureMode),
    ):
        for member in ours:
            assert int(getattr(theirs, member.name)) == int(member)
    assert real.cudaStreamNonBlocking == fake_tensorrt.CONSTANTS["cudaStreamNonBlocking"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_tensorrt.install(monkeypatch)


def round_trip() -> None:
    """Everything once: up, across, captured, down."""
    with (
        cuda.Stream() as stream,
        cuda.DeviceBuffer(16) as one,
        cuda.DeviceBuffer(16) as two,
        cuda.PinnedArray((2, 2), np.dtype(np.float32)) as host,
        cuda.Event() as begin,
        cuda.Event() as end,
    ):
        host.array[...] = [[1, 2], [3, 4]]
        stream.mark(begin)
        stream.to_device(one, host.array)
        stream.mark(end)
        stream.clear(two)
        with stream.capture(lambda: stream.on_device(two, 4, one, 8, 8)) as graph:
            stream.launch(graph)
            stream.to_host(host.array, two)
            stream.wait()
            np.testing.assert_array_equal(host.array, [[0, 3], [4, 0]])
            assert begin.milliseconds_to(end) == -end.milliseconds_to(begin) > 0


def test_round_trip(gpu: FakeGpu) -> None:
    round_trip()
    assert not gpu.alive()
    assert not gpu.violations


@pytest.mark.parametrize("name", [name for name in fake_tensorrt.FUNCTIONS if not name.startswith("cudaGet")])
def test_the_error_of_every_call_surfaces(gpu: FakeGpu, name: str) -> None:
    gpu.failing[name] = Error.cudaErrorLaunchFailure
    with pytest.raises(BackendError, match=f"{name} failed: cudaErrorLaunchFailure, text of 719; check"):
        round_trip()
    assert gpu.calls["cudaGetLastError"] >= 1
    freed = {
        "cudaFree": "device",
        "cudaFreeHost": "pinned",
        "cudaStreamDestroy": "streams",
        "cudaEventDestroy": "events",
    }
    assert gpu.alive().keys() <= {freed.get(name, "graphs" if "Graph" in name else "")}


def test_a_mark_that_was_not_reached_has_no_time(gpu: FakeGpu) -> None:
    with cuda.Stream() as stream, cuda.Event() as begin, cuda.Event() as end:
        stream.mark(begin)
        stream.mark(end)
        with pytest.raises(BackendError, match="cudaEventElapsedTime failed: cudaErrorNotReady"):
            begin.milliseconds_to(end)
        stream.wait()
        assert begin.milliseconds_to(end) >= 0


def test_a_capture_that_fails_leaves_the_stream_usable(gpu: FakeGpu) -> None:
    with cuda.Stream() as stream, cuda.DeviceBuffer(8) as buffer:
        with pytest.raises(BackendError, match="cudaStreamSynchronize failed: cudaErrorStreamCaptureUnsupp"):
            stream.capture(stream.wait)
        with pytest.raises(ZeroDivisionError):
            stream.capture(lambda: [][1 // 0])
        stream.clear(buffer)
        stream.wait()
    assert not gpu.alive()


def test_bytes_outside_of_a_buffer_are_refused(gpu: FakeGpu) -> None:
    with cuda.Stream() as stream, cuda.DeviceBuffer(8) as small, cuda.DeviceBuffer(16) as large:
        wrong: list[Callable[[], None]] = [
            lambda: stream.on_device(small, 4, large, 0, 8),
            lambda: stream.on_device(large, 0, small, 4, 8),
            lambda: stream.on_device(large, -4, small, 0, 8),
            lambda: stream.to_device(small, np.zeros(9, np.uint8)),
            lambda: stream.to_host(np.zeros(9, np.uint8), small),
        ]
        for call in wrong:
            with pytest.raises(BackendError, match="must lie within the device buffer of"):
                call()
    assert not gpu.calls["cudaMemcpyAsync"]


def test_closing_twice_and_using_after_is_safe(gpu: FakeGpu) -> None:
    buffer, host = cuda.DeviceBuffer(8), cuda.PinnedArray((8,), np.dtype(np.uint8))
    for _ in range(2):
        buffer.close()
        host.close()
    assert (gpu.calls["cudaFree"], gpu.calls["cudaFreeHost"]) == (1, 1)
    with pytest.raises(BackendError, match="device buffer is closed"):
        _ = buffer.address
    with pytest.raises(BackendError, match="pinned array is closed"):
        _ = host.array
