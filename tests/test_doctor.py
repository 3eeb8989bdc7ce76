"""s3clip-doctor: every trap on a faked machine, the real machine, and processes that die."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import (
    HR_SCALE,
    LR_SCALE,
    edit_manifest,
    embedding_of,
    manifest_of,
    tokens_of,
    write_tiny_bundle,
)

from s3clip_runtime.doctor import bundles, openvino_rules
from s3clip_runtime.doctor.finding import Finding, numbers
from s3clip_runtime.doctor.findings import examine
from s3clip_runtime.doctor.machine import (
    CudaSession,
    Driver,
    Gpu,
    Library,
    Machine,
    Module,
    OnnxRuntime,
    TensorRT,
    jetpack_of,
    read_apart,
    read_machine,
    run_probe,
)
from s3clip_runtime.doctor.probe import EMPTY_NAMESPACE, NOT_INSTALLED
from s3clip_runtime.inference.bundle import attachment_of, write_manifest
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.manifest import Artefact, Engine, Target
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.reference import Reference, write_reference

COMMAND = [
    sys.executable,
    "-c",
    "from s3clip_runtime.cli.doctor import main; main(prog_name='s3clip-doctor')",
]

CPU_PROVIDERS = ("CPUExecutionProvider",)
GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
CUDA13 = {
    "libcudart.so.13": Library("system", "/usr/local/cuda/lib64/libcudart.so.13", "13.0"),
    "libcublas.so.13": Library("system", "/usr/local/cuda/lib64/libcublas.so.13", "13.1.1"),
    "libcudnn.so.9": Library("system", "/usr/lib/x86_64-linux-gnu/libcudnn.so.9", "9.24.0"),
}
NO_CUDA = "libcuda.so.1: cannot open shared object file: No such file or directory"

CPU_BOX = Machine(
    python="3.12.3",
    arch="x86_64",
    os="Ubuntu 24.04",
    os_id="ubuntu debian",
    driver=Driver(error=NO_CUDA),
    packages={"onnxruntime": "1.32.0", "opencv-python": "5.0.0.93"},
    onnxruntime=OnnxRuntime("1.32.0", None, CPU_PROVIDERS),
    tensorrt=TensorRT(error=NOT_INSTALLED),
    numpy=Module("2.4.6"),
    cv2=Module("5.0.0"),
    av=Module("18.1.0"),
    memory_free_mb=8000,
    disk_free_mb=90000,
)
GPU_BOX = dataclasses.replace(
    CPU_BOX,
    driver=Driver("580.95.05", "13.0", (Gpu("NVIDIA RTX A4000", "8.6"),)),
    libraries=CUDA13,
    packages={
        "onnxruntime-gpu": "1.31.1",
        "opencv-python": "5.0.0.93",
        "tensorrt-cu13": "10.16.1.11",
        "cuda-bindings": "13.5.0",
    },
    onnxruntime=OnnxRuntime("1.31.1", None, GPU_PROVIDERS),
    cuda_session=CudaSession("cuda", "a probe graph ran on it"),
    tensorrt=TensorRT("10.16.1.11", None, True),
)
ORIN = dataclasses.replace(
    CPU_BOX,
    arch="aarch64",
    l4t="39.2.0",
    jetpack="7.2",
    driver=Driver("595.58", "13.2", (Gpu("Orin", "8.7"),)),
    packages={"onnxruntime": "1.32.0", "opencv-python": "5.0.0.93", "cuda-bindings": "13.2.0"},
    tensorrt=TensorRT("10.16.2.10", None, True),
)
ORIN_JETPACK6 = dataclasses.replace(
    ORIN,
    python="3.11.9",
    l4t="36.4.3",
    jetpack="6.2",
    driver=Driver("540.4.0", "12.6", (Gpu("Orin", "8.7"),)),
    tensorrt=TensorRT(error=NOT_INSTALLED),
)

GPU_EXTRA = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "s3clip[gpu]"'
CPU_EXTRA = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "s3clip[cpu]"'
TRT13 = 'pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13 "cuda-python>=13,<14"'
TRT12 = 'pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu12 "cuda-python>=12,<13"'
CONTAINER = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility,video ..."
JETSON_TRT = (
    "sudo apt-get install -y python3-libnvinfer && python3 -m venv --system-site-packages s3clip-env && "
    's3clip-env/bin/pip install "s3clip[cpu]"'
)
NEW_JETPACK = "flash JetPack 7.2 or newer with NVIDIA SDK Manager"


def without(machine: Machine, *names: str, **more: str) -> dict[str, str]:
    """The machine's packages without some, and with some more."""
    kept = {name: version for name, version in machine.packages.items() if name not in names}
    return kept | {name.replace("_", "-"): version for name, version in more.items()}


def the_finding(machine: Machine, *texts: str) -> Finding:
    """The only finding that says all of it."""
    found = [finding for finding in examine(machine) if all(text in finding.what for text in texts)]
    assert len(found) == 1, examine(machine)
    return found[0]


@pytest.mark.parametrize("machine", [CPU_BOX, GPU_BOX, ORIN], ids=["cpu", "gpu", "orin"])
def test_a_healthy_machine_has_no_problem(machine: Machine) -> None:
    assert [finding for finding in examine(machine) if finding.status == "problem"] == []


def test_a_healthy_gpu_box_has_not_even_a_note() -> None:
    assert {finding.status for finding in examine(GPU_BOX)} == {"ok"}


def test_no_gpu_is_a_note() -> None:
    assert the_finding(CPU_BOX, "no NVIDIA GPU") == Finding("note", f"no NVIDIA GPU: {NO_CUDA}", "CPU works")


Trap = tuple[Machine, dict[str, Any], str, list[str], str]

TRAPS: dict[str, Trap] = {
    "old Python": (
        CPU_BOX,
        {"python": "3.10.12"},
        "problem",
        ["Python 3.10.12", "3.11"],
        'python3.12 -m venv s3clip-env && s3clip-env/bin/pip install "s3clip[cpu]"',
    ),
    "old Python of JetPack 6": (
        ORIN_JETPACK6,
        {"python": "3.10.12", "tensorrt": TensorRT("10.3.0", None, True)},
        "problem",
        ["Python 3.10.12", "3.11"],
        NEW_JETPACK,
    ),
    "no numpy": (
        CPU_BOX,
        {"numpy": Module(error=NOT_INSTALLED)},
        "problem",
        ["numpy is not installed"],
        'pip install "numpy>=1.26"',
    ),
    "broken av": (
        CPU_BOX,
        {"av": Module(error="ImportError: libx.so")},
        "problem",
        ["av cannot", "libx.so"],
        'pip install --force-reinstall "av>=13"',
    ),
    "no libGL": (
        CPU_BOX,
        {"cv2": Module(error="ImportError: libGL.so.1: cannot open shared object file")},
        "problem",
        ["OpenCV cannot be imported", "libGL.so.1"],
        "sudo apt-get update && sudo apt-get install -y libgl1 libglib2.0-0",
    ),
    "no libGL on Fedora": (
        CPU_BOX,
        {"os_id": "fedora", "cv2": Module(error="ImportError: libGL.so.1: cannot open")},
        "problem",
        ["libGL.so.1"],
        "sudo dnf install -y mesa-libGL glib2",
    ),
    "old OpenCV": (
        CPU_BOX,
        {"cv2": Module("4.9.0")},
        "problem",
        ["OpenCV 4.9.0", "4.10"],
        'pip install --upgrade "opencv-python>=4.10"',
    ),
    "two OpenCVs": (
        CPU_BOX,
        {"packages": without(CPU_BOX, opencv_python_headless="4.12.0.88")},
        "note",
        ["opencv-python 5.0.0.93", "opencv-python-headless 4.12.0.88"],
        'pip uninstall -y opencv-python opencv-python-headless && pip install "opencv-python>=4.10"',
    ),
    "full disk": (CPU_BOX, {"disk_free_mb": 100}, "note", ["100 MB of disk", "1024"], ""),
    "unread": (CPU_BOX, {"unread": {"glibc": "OSError: no"}}, "note", ["glibc", "OSError: no"], ""),
    "container without GPU": (
        GPU_BOX,
        {"driver": Driver("580.95.05", error=NO_CUDA), "container": True},
        "problem",
        ["driver 580.95.05 is loaded, but no GPU answers", NO_CUDA],
        CONTAINER,
    ),
    "driver mismatch": (
        GPU_BOX,
        {"driver": Driver("580.95.05", "13.0", error="cuInit: error 803, driver mismatch")},
        "problem",
        ["580.95.05 is loaded", "error 803"],
        "sudo reboot",
    ),
    "old driver": (
        GPU_BOX,
        {"driver": Driver("550.54.14", "12.4", GPU_BOX.driver.gpus)},
        "problem",
        [
            "550.54.14",
            "CUDA 12.4",
            "onnxruntime-gpu 1.31.1",
            "tensorrt-cu13 10.16.1.11",
            "CUDA 13, driver 580",
        ],
        "sudo apt-get install -y nvidia-driver-580 && sudo reboot",
    ),
    "old driver in a container": (
        GPU_BOX,
        {"driver": Driver("550.54.14", "12.4", GPU_BOX.driver.gpus), "container": True},
        "problem",
        ["CUDA 12.4", "CUDA 13, driver 580"],
        "update the driver of the host to 580 or newer; a container uses the host's",
    ),
    "old driver, nothing for CUDA 13": (
        GPU_BOX,
        {
            "driver": Driver("550.54.14", "12.4", GPU_BOX.driver.gpus),
            "packages": without(GPU_BOX, "onnxruntime-gpu", "tensorrt-cu13", tensorrt_cu12="10.16.1.11"),
        },
        "note",
        ["driver 550.54.14 serves up to CUDA 12.4"],
        TRT12,
    ),
    "Volta": (
        GPU_BOX,
        {"driver": Driver("580.95.05", "13.0", (Gpu("Tesla V100", "7.0"),))},
        "problem",
        ["Tesla V100", "7.0", "need 7.5"],
        CPU_EXTRA,
    ),
    "two onnxruntimes": (
        GPU_BOX,
        {"packages": without(GPU_BOX, onnxruntime="1.32.0")},
        "problem",
        ["onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both"],
        GPU_EXTRA,
    ),
    "empty namespace": (
        GPU_BOX,
        {"onnxruntime": OnnxRuntime(error=EMPTY_NAMESPACE)},
        "problem",
        ["onnxruntime cannot be imported", EMPTY_NAMESPACE],
        GPU_EXTRA,
    ),
    "no onnxruntime": (
        CPU_BOX,
        {"onnxruntime": OnnxRuntime(error=NOT_INSTALLED)},
        "problem",
        ["onnxruntime cannot be imported: not installed"],
        'pip install "s3clip[cpu]"',
    ),
    "onnxruntime crashes": (
        CPU_BOX,
        {"onnxruntime": OnnxRuntime(error="the process was ended by SIGILL (it said nothing)")},
        "problem",
        ["onnxruntime cannot be imported", "SIGILL"],
        CPU_EXTRA,
    ),
    "old onnxruntime-gpu": (
        GPU_BOX,
        {"packages": without(GPU_BOX, onnxruntime_gpu="1.22.0")},
        "problem",
        ["onnxruntime-gpu 1.22.0", "1.27"],
        'pip install --upgrade "onnxruntime-gpu>=1.27"',
    ),
    "CUDA provider, no driver": (
        CPU_BOX,
        {"onnxruntime": OnnxRuntime("1.31.1", None, GPU_PROVIDERS)},
        "problem",
        ["lists CUDAExecutionProvider, but no GPU answers", NO_CUDA],
        CPU_EXTRA,
    ),
    "CUDA provider, container without GPU": (
        CPU_BOX,
        {"onnxruntime": OnnxRuntime("1.31.1", None, GPU_PROVIDERS), "container": True},
        "problem",
        ["lists CUDAExecutionProvider"],
        CONTAINER,
    ),
    "CUDA libraries missing": (
        GPU_BOX,
        {
            "libraries": {"libcudart.so.12": Library("system", "/x/libcudart.so.12", "12.8")},
            "cuda_session": CudaSession("cpu", "cuda cannot be used: libcublasLt.so.13"),
        },
        "problem",
        ["libcublas.so.13, libcudart.so.13, libcudnn.so.9 missing", "CUDA 13 and cuDNN 9", "found CUDA 12.8"],
        'pip install "onnxruntime-gpu[cuda,cudnn]"',
    ),
    "CUDA library broken": (
        GPU_BOX,
        {
            "libraries": CUDA13 | {"libcudnn.so.9": Library("system", "/x/libcudnn.so.9", None, "no libz")},
            "cuda_session": CudaSession("cpu", "cuda cannot be used"),
        },
        "problem",
        ["libcudnn.so.9 missing"],
        'pip install "onnxruntime-gpu[cuda,cudnn]"',
    ),
    "CUDA libraries where the loader does not look": (
        GPU_BOX,
        {
            "libraries": CUDA13
            | {"libcudnn.so.9": Library("pip", "/v/nvidia/cudnn/lib/libcudnn.so.9", "9.24.0")},
            "cuda_session": CudaSession("cpu", "cuda cannot be used: libcudnn.so.9"),
        },
        "problem",
        ["onnxruntime cannot start CUDA", "libcudnn.so.9"],
        "export LD_LIBRARY_PATH=/v/nvidia/cudnn/lib:$LD_LIBRARY_PATH",
    ),
    "CUDA cannot start": (
        GPU_BOX,
        {"cuda_session": CudaSession(None, "the process was ended by SIGSEGV (it said nothing)")},
        "problem",
        ["onnxruntime cannot start CUDA", "SIGSEGV"],
        GPU_EXTRA,
    ),
    "idle GPU": (
        GPU_BOX,
        {
            "onnxruntime": OnnxRuntime("1.32.0", None, CPU_PROVIDERS),
            "packages": without(CPU_BOX),
            "tensorrt": TensorRT(error=NOT_INSTALLED),
        },
        "note",
        ["NVIDIA RTX A4000 stays idle"],
        GPU_EXTRA,
    ),
    "TensorRT provider and TensorRT 11": (
        GPU_BOX,
        {"tensorrt": TensorRT("11.4.0.106", None, True)},
        "note",
        ["libnvinfer.so.10", "TensorRT 11.4.0.106"],
        'pip install --extra-index-url https://pypi.nvidia.com "tensorrt-cu13>=10.13.2,<11"',
    ),
    "no TensorRT": (
        GPU_BOX,
        {"tensorrt": TensorRT(error=NOT_INSTALLED)},
        "note",
        ["TensorRT is not installed"],
        TRT13,
    ),
    "no TensorRT, old driver": (
        GPU_BOX,
        {"tensorrt": TensorRT(error=NOT_INSTALLED), "driver": Driver("550.54", "12.4", GPU_BOX.driver.gpus)},
        "note",
        ["TensorRT is not installed"],
        TRT12,
    ),
    "TensorRT's libraries are stubs": (
        GPU_BOX,
        {"tensorrt": TensorRT(error="ImportError: libnvinfer.so.11: cannot open shared object file")},
        "problem",
        ["TensorRT cannot be imported", "libnvinfer.so.11", "tensorrt-cu13 10.16.1.11"],
        TRT13,
    ),
    "TensorRT without driver": (
        CPU_BOX,
        {
            "tensorrt": TensorRT("11.4.0.106", None, True),
            "packages": without(
                CPU_BOX, tensorrt="11.4.0.106", tensorrt_cu13="11.4.0.106", cuda_bindings="13.5.0"
            ),
        },
        "problem",
        ["TensorRT 11.4.0.106 is installed, but no GPU answers", NO_CUDA],
        "pip uninstall -y tensorrt tensorrt-cu13",
    ),
    "old TensorRT": (
        GPU_BOX,
        {"tensorrt": TensorRT("8.6.1", None, True)},
        "problem",
        ["TensorRT 8.6.1", "10.3"],
        TRT13,
    ),
    "lean runtime only": (
        GPU_BOX,
        {
            "tensorrt": TensorRT(error=NOT_INSTALLED),
            "packages": without(GPU_BOX, "tensorrt-cu13", tensorrt_lean_cu13="11.4.0.106"),
        },
        "problem",
        ["tensorrt-lean-cu13 11.4.0.106 is only a runtime"],
        TRT13,
    ),
    "TensorRT without builder": (
        GPU_BOX,
        {"tensorrt": TensorRT("10.16.1.11", None, False)},
        "problem",
        ["TensorRT 10.16.1.11 is only a runtime"],
        TRT13,
    ),
    "no cuda-python": (
        GPU_BOX,
        {"packages": without(GPU_BOX, "cuda-bindings")},
        "problem",
        ["TensorRT 10.16.1.11 is installed, cuda-python is not"],
        'pip install "cuda-python>=13,<14"',
    ),
    "TensorRT for RTX": (
        GPU_BOX,
        {
            "tensorrt": TensorRT(error=NOT_INSTALLED),
            "packages": without(GPU_BOX, "tensorrt-cu13", tensorrt_rtx="1.7.1.116"),
        },
        "note",
        ["tensorrt-rtx 1.7.1.116 is installed, tensorrt is not"],
        TRT13,
    ),
    "JetPack 5": (
        ORIN,
        {"l4t": "35.4.1", "jetpack": "5.1.2"},
        "problem",
        ["JetPack 5.1.2 (L4T 35.4.1)"],
        NEW_JETPACK,
    ),
    "JetPack 6": (
        ORIN_JETPACK6,
        {},
        "problem",
        ["JetPack 6.2 (L4T 36.4.3): TensorRT 10.3, CUDA 12.6, Python 3.10"],
        f"{NEW_JETPACK}, or build TensorRT 10.3's Python bindings for 3.11.9 from source "
        "(github.com/NVIDIA/TensorRT, branch release/10.3, folder python)",
    ),
    "JetPack 6 with TensorRT 11": (
        ORIN_JETPACK6,
        {
            "tensorrt": TensorRT("11.4.0.106", None, True),
            "packages": without(ORIN_JETPACK6, tensorrt="11.4.0.106"),
        },
        "problem",
        ["TensorRT 11.4.0.106 with JetPack 6.2", "7.2.2"],
        f"pip uninstall -y tensorrt && {JETSON_TRT}",
    ),
    "JetPack 7.2.? with TensorRT 11": (
        ORIN,
        {"tensorrt": TensorRT("11.4.1", None, True)},
        "note",
        ["TensorRT 11.4.1 with JetPack 7.2", "7.2.2"],
        f"pip uninstall -y tensorrt && {JETSON_TRT}",
    ),
    "JetPack 7 in a closed venv": (
        ORIN,
        {"tensorrt": TensorRT(error=NOT_INSTALLED)},
        "problem",
        ["JetPack 7.2, but no TensorRT in Python 3.12.3"],
        JETSON_TRT,
    ),
    "PyPI's onnxruntime-gpu on a Jetson": (
        ORIN,
        {
            "packages": without(ORIN, "onnxruntime", onnxruntime_gpu="1.31.1"),
            "onnxruntime": OnnxRuntime("1.31.1", None, GPU_PROVIDERS),
            "cuda_session": CudaSession("cpu", "cudaErrorNoKernelImageForDevice"),
        },
        "note",
        ["onnxruntime-gpu 1.31.1 on a Jetson"],
        CPU_EXTRA,
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_trap(name: str) -> None:
    machine, changes, status, texts, cure = TRAPS[name]
    finding = the_finding(dataclasses.replace(machine, **changes), *texts)
    assert (finding.status, finding.cure) == (status, cure)


def test_jetpack_7_2_2_may_have_tensorrt_11() -> None:
    machine = dataclasses.replace(ORIN, jetpack="7.2.2", tensorrt=TensorRT("11.4.1", None, True))
    assert [finding for finding in examine(machine) if finding.status != "ok"] == []


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [("39.2.0", "7.2"), ("38.4.0", "7.1"), ("38.2", "7.0"), ("36.4.3", "6"), ("35.4.1", "5"), ("40", "7")],
)
def test_jetpack_of_an_l4t_release(l4t: str, jetpack: str) -> None:
    assert jetpack_of(l4t) == jetpack


def test_numbers_of_versions() -> None:
    assert numbers("10.13.3.9.post1") == (10, 13, 3, 9)
    assert numbers("1.25.0rc1") == (1, 25, 0)
    assert numbers("unknown") == ()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_process_that_is_killed_is_named_by_its_signal(number: signal.Signals) -> None:
    code = (
        f"import os, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), {number:d})"
    )
    error = read_apart([sys.executable, "-c", code], 30)["error"]
    assert error == f"the process was ended by {number.name} (last words)"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import time; time.sleep(60)", r"no answer in 0\.5 s"),
        ("raise SystemExit('wrong')", r"exit 1: wrong"),
        ("print('{}'); raise SystemExit(3)", r"exit 3: it said nothing"),
        ("print('no json')", r"exit 0: it said nothing"),
    ],
)
def test_a_process_without_an_answer(code: str, error: str) -> None:
    assert re.fullmatch(
        error, read_apart([sys.executable, "-c", code], 0.5 if "sleep" in code else 30)["error"]
    )


def test_a_program_that_does_not_exist() -> None:
    assert "cannot be started" in read_apart(["/nonexistent/python"], 1)["error"]


def die_in(monkeypatch: pytest.MonkeyPatch, folder: Path, word: str, action: str) -> None:
    """Every new interpreter whose command line has the word does this instead."""
    (folder / "sitecustomize.py").write_text(
        f"import os, signal, sys, time\nif {word!r} in sys.orig_argv:\n    {action}\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_an_import_that_crashes_becomes_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    die_in(monkeypatch, tmp_path, "onnxruntime", "os.kill(os.getpid(), signal.SIGSEGV)")
    finding = the_finding(read_machine(), "onnxruntime cannot be imported")
    assert finding.status == "problem"
    assert "SIGSEGV" in finding.what
    assert "s3clip[" in finding.cure


def test_an_import_that_hangs_becomes_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    die_in(monkeypatch, tmp_path, "tensorrt", "time.sleep(60)")
    machine = dataclasses.replace(GPU_BOX, tensorrt=TensorRT(**run_probe("tensorrt", timeout_s=0.5)))
    finding = the_finding(machine, "TensorRT cannot be imported", "no answer in 0.5 s")
    assert finding.status == "problem"


def test_nothing_can_be_read_and_still_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not here")

    for name in ("read_text", "is_file"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("importlib.metadata.distributions", refuse)
    monkeypatch.setattr("shutil.disk_usage", refuse)
    machine = read_machine(timeout_s=0.001)
    assert {"l4t", "packages", "memory", "disk", "kernel driver", "libraries"} <= machine.unread.keys()
    assert machine.memory_free_mb is None
    assert "no answer" in str(machine.numpy.error)
    assert "no answer" in machine.driver.absence
    assert any(finding.what == "disk could not be read: OSError: not here" for finding in examine(machine))


def test_the_real_machine() -> None:
    machine = read_machine()
    assert machine.python == ".".join(map(str, sys.version_info[:3]))
    assert machine.numpy.version == np.__version__
    assert machine.packages["opencv-python"] == importlib.metadata.version("opencv-python")
    assert not machine.unread.keys() & {"packages", "disk", "libraries"}


DRIVER = """
int cuDriverGetVersion(int *v) { *v = 13020; return 0; }
int cuInit(unsigned flags) { return CODE; }
int cuGetErrorString(int code, const char **text) { *text = "no such luck"; return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 40; return 0; }
int cuDeviceGetName(char *name, int size, int device) { name[0] = 'A' + device - 40; name[1] = 0; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : 7; return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { __builtin_strcpy(text, "595.58.03"); return 0; }
"""
LIBRARIES = """
#include <stddef.h>
int cudaRuntimeGetVersion(int *v) { *v = 12060; return 0; }
int cublasGetProperty(int part, int *v) { *v = 12 + part; return 0; }
size_t cudnnGetVersion(void) { return 91300; }
int getInferLibVersion(void) { return INFER; }
"""


def compile_library(folder: Path, source: str, *sonames: str, **defines: int) -> None:
    """A shared library of C functions under some names of NVIDIA's."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    flags = [f"-D{name}={value}" for name, value in defines.items()]
    for soname in sonames:
        line = [compiler, "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{soname}", *flags, "-o"]
        subprocess.run([*line, str(folder / soname)], input=source, text=True, check=True, timeout=60)


def test_the_driver_is_asked_as_its_interface_demands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for libcuda and NVML: no GPU is needed to show that the calls are right."""
    compile_library(tmp_path, DRIVER, "libcuda.so.1", "libnvidia-ml.so.1", CODE=0)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    driver = read_machine().driver
    assert driver == Driver("595.58.03", "13.2", (Gpu("A", "8.7"), Gpu("B", "8.7")))


def test_a_driver_that_refuses_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_library(tmp_path, DRIVER, "libcuda.so.1", "libnvidia-ml.so.1", CODE=803)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    finding = the_finding(read_machine(), "595.58.03 is loaded", "cuInit: error 803, no such luck")
    assert finding.status == "problem"


@pytest.mark.parametrize(
    ("number", "soname", "version"),
    [
        (101602, "libnvinfer.so.10", "10.16.2"),
        (110400, "libnvinfer.so.11", "11.4.0"),
        (8601, "libnvinfer.so.8", "8.6.1"),
    ],
)
def test_libraries_tell_their_versions(
    number: int, soname: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"libcudart.so.12": "12.6", "libcublas.so.12": "12.13.14", "libcudnn.so.9": "9.13.0"}
    compile_library(tmp_path, LIBRARIES, soname, *others, INFER=number)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = run_probe("libraries", 60)
    for name, wanted in {**others, soname: version}.items():
        assert found[name] == {"place": "system", "path": str(tmp_path / name), "version": wanted}


def test_a_library_that_cannot_be_loaded_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libnvinfer.so.10").write_bytes(b"git-lfs pointer")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = run_probe("libraries", 60)
    assert "file too short" in found["libnvinfer.so.10"]["error"]
    assert "libnvinfer.so.8" not in found


# The command -----------------------------------------------------------------------------------------------


def s3clip_doctor(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, check=False, timeout=240
    )


def test_the_command_says_what_is_installed() -> None:
    done = s3clip_doctor()
    assert done.returncode in (0, 1), done.stderr
    assert importlib.metadata.version("onnxruntime") in done.stdout
    assert "Traceback" not in done.stderr
    assert ("PROBLEM" in done.stdout) == (done.returncode == 1)
    assert done.stdout.splitlines()[-1] == "No problem was found." or "see PROBLEM above" in done.stdout


def test_json(tmp_path: Path) -> None:
    done = s3clip_doctor("--json", "--bundle", tmp_path / "absent")
    assert done.returncode == 1, done.stderr
    record = json.loads(done.stdout)
    assert record["machine"]["onnxruntime"]["version"] == importlib.metadata.version("onnxruntime")
    assert record["problems"] >= 1
    last = record["findings"][-1]
    assert last["status"] == "problem"
    assert "the folder does not exist" in last["what"]
    assert last["cure"] == f"s3clip-export RUN -o {tmp_path / 'absent'}"


# Bundles ---------------------------------------------------------------------------------------------------

TRT16 = Target("tensorrt", "fp16")


def reference_of(count: int) -> Reference:
    """Clips of noise, half of them HR, and what the tiny bundle's arithmetic gives for them."""
    rng = np.random.default_rng(3)
    clips, embeddings, pixels, tokens = [], [], {}, {}
    for position in range(count):
        hr = position % 2 == 1
        size = (140, 70, 3) if hr else (40, 20, 3)
        crops = tuple(rng.integers(0, 256, size, dtype=np.uint8) for _ in range(8))
        clips.append(Clip(crops, position % 2, hr))
        batch = hr_batch(crops) if hr else lr_batch(crops)
        made = tokens_of(batch, HR_SCALE if hr else LR_SCALE)
        embeddings.append(embedding_of(made, position % 2))
        pixels[position], tokens[position] = batch, made.astype(np.float32)
    frames = tuple(tuple(spread_indices(11)) for _ in clips)
    return Reference(tuple(clips), (11,) * count, frames, np.array(embeddings, np.float32), pixels, tokens)


def bundle_with_reference(folder: Path, reference: Reference) -> Path:
    write_tiny_bundle(folder)
    write_reference(folder / "reference.npz", reference)
    attachments = {"reference": attachment_of(folder / "reference.npz").model_dump()}
    edit_manifest(folder, attachments=attachments)
    return folder


@pytest.fixture
def engine_bundle(tmp_path: Path) -> Path:
    """A bundle with three files that stand for engines of an RTX A4000 and TensorRT 10.16.1.11."""
    folder = write_tiny_bundle(tmp_path / "engines")
    manifest = manifest_of(folder)
    engines = []
    for artefact in manifest.artefacts:
        file = folder / f"{artefact.role}.engine"
        file.write_bytes(b"plan")
        engine = Engine(
            tensorrt="10.16.1.11",
            compute_capability="8.6",
            gpu="NVIDIA RTX A4000",
            driver="580.95.05",
            onnx_sha256=artefact.sha256,
            profile=(1, 8, 64),
            inputs={},
            outputs={},
        )
        engines.append(
            Artefact(
                role=artefact.role, file=file.name, precision="fp16", backend="tensorrt",
                opset=18, sha256=sha256_file(file), bytes=4, engine=engine,
            )
        )  # fmt: skip
    proof = manifest.proofs[0].model_copy(update={"target": str(TRT16)})
    update = {"artefacts": (*manifest.artefacts, *engines), "proofs": (*manifest.proofs, proof)}
    write_manifest(folder, manifest.model_copy(update=update))
    return folder


def looked_at(folder: Path, machine: Machine) -> list[Finding]:
    return bundles.examine_bundle(folder, machine, lambda text: None)[0]


def test_a_right_bundle_is_measured(tmp_path: Path) -> None:
    folder = bundle_with_reference(tmp_path / "bundle", reference_of(4))
    said: list[str] = []
    findings, proofs = bundles.examine_bundle(folder, CPU_BOX, said.append)
    assert [finding.status for finding in findings] == ["ok"], findings
    assert re.fullmatch(
        r"onnx-fp32 on cpu, 4 tracklets: cosine min 1\.000000 \(bound 0\.99999\), "
        r"top-1 1\.000 \(bound 0\.99\), largest stage error \(\w+\) [\d.e-]+ \(bound 0\.0001\)",
        findings[0].what,
    ), findings[0].what
    assert [proof.target for proof in proofs] == ["onnx-fp32"]
    assert said == ["measuring onnx-fp32 on cpu ..."]


def test_a_bundle_that_ranks_otherwise_here_is_a_problem(tmp_path: Path) -> None:
    right = reference_of(4)
    wrong = dataclasses.replace(right, embeddings=right.embeddings[::-1].copy())
    folder = bundle_with_reference(tmp_path / "bundle", wrong)
    (finding,) = looked_at(folder, CPU_BOX)
    assert finding.status == "problem"
    assert re.search(r"cosine_min is [\d.-]+, must be at least 0\.99999", finding.why)
    assert re.search(r"encode is [\d.]+, must be at most 0\.0001", finding.why)
    assert finding.cure == f"s3clip-export RUN -o {folder}"


def test_a_target_that_kills_its_process_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = bundle_with_reference(tmp_path / "bundle", reference_of(2))
    die_in(monkeypatch, tmp_path, "s3clip_runtime.inference.measure", "os.kill(os.getpid(), signal.SIGSEGV)")
    (finding,) = looked_at(folder, CPU_BOX)
    assert (finding.status, finding.cure) == ("problem", f"s3clip-export RUN -o {folder}")
    assert "ended by SIGSEGV" in finding.what


def test_a_bundle_without_reference_is_not_measured(bundle_folder: Path) -> None:
    fits, unmeasured = looked_at(bundle_folder, CPU_BOX)
    assert (fits.status, fits.what) == ("ok", "onnx-fp32 fits this machine (cpu)")
    assert (unmeasured.status, unmeasured.cure) == ("note", f"s3clip-export verify {bundle_folder} DATA")


def test_a_damaged_bundle_is_a_problem(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    (folder / "encode.onnx").write_bytes(b"short")
    (finding,) = looked_at(folder, CPU_BOX)
    assert finding.status == "problem"
    assert re.search(r"encode\.onnx: size must be \d+ bytes, found 5", finding.what)
    assert finding.cure == f"s3clip-export RUN -o {folder}"


def test_onnx_targets_run_on_cuda_too_where_it_works() -> None:
    assert bundles.devices_of(Target("onnx", "fp16"), GPU_BOX) == ("cpu", "cuda")
    assert bundles.devices_of(Target("onnx", "fp16"), ORIN) == ("cpu",)
    assert bundles.devices_of(TRT16, ORIN) == ("cuda",)


def test_no_target_runs_without_onnxruntime(bundle_folder: Path) -> None:
    machine = dataclasses.replace(CPU_BOX, onnxruntime=OnnxRuntime(error=NOT_INSTALLED))
    finding = looked_at(bundle_folder, machine)[0]
    assert (finding.status, finding.what, finding.cure) == ("problem", "onnx-fp32 cannot run here", CPU_EXTRA)


@pytest.mark.parametrize(
    ("machine", "status", "texts", "cure"),
    [
        (CPU_BOX, "note", ["for NVIDIA RTX A4000", "cannot run here"], ""),
        (
            dataclasses.replace(GPU_BOX, tensorrt=TensorRT(error=NOT_INSTALLED)),
            "problem",
            ["cannot run here"],
            TRT13,
        ),
        (
            dataclasses.replace(GPU_BOX, tensorrt=TensorRT("11.4.0.106", None, True)),
            "problem",
            ["TensorRT 10.16.1.11 built it, 11.4.0.106 is here"],
            "rebuild",
        ),
        (
            ORIN,
            "problem",
            [
                "TensorRT 10.16.1.11 built it, 10.16.2.10 is here",
                "compute capability 8.6 built it, 8.7 is here",
            ],
            "rebuild",
        ),
    ],
    ids=["no gpu", "no TensorRT", "other TensorRT", "other gpu"],
)
def test_an_engine_of_another_machine(
    machine: Machine, status: str, texts: list[str], cure: str, engine_bundle: Path
) -> None:
    (finding,) = [f for f in looked_at(engine_bundle, machine) if f.what.startswith("tensorrt-fp16")]
    assert finding.status == status
    assert all(text in finding.what for text in texts), finding.what
    assert finding.cure == cure.replace("rebuild", f"s3clip-export engines {engine_bundle}")


def test_an_engine_of_this_machine_fits(engine_bundle: Path) -> None:
    found = {finding.what for finding in looked_at(engine_bundle, GPU_BOX) if finding.status == "ok"}
    assert "tensorrt-fp16 fits this machine (cuda)" in found


def test_the_command_measures_a_bundle(tmp_path: Path) -> None:
    folder = bundle_with_reference(tmp_path / "bundle", reference_of(2))
    done = s3clip_doctor("--bundle", folder)
    assert "measuring onnx-fp32 on cpu ..." in done.stderr
    assert re.search(r"^ok       onnx-fp32 on cpu, 2 tracklets: cosine min 1\.0", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("openvino", "instructions", "status", "text"),
    [
        (Module("2026.4.1"), ("avx512_bf16", "avx512_vnni"), "ok", "computes in bf16, int8"),
        (Module("2026.4.1"), ("avx2",), "note", "is not used: bf16 needs a CPU"),
        (Module(error=NOT_INSTALLED), ("avx512_bf16",), "note", "computes in bf16, and openvino is not"),
        (
            Module(error="ImportError: libtbb"),
            ("avx2",),
            "problem",
            "cannot be imported: ImportError: libtbb",
        ),
        (Module(error=NOT_INSTALLED), ("avx2",), None, ""),
    ],
)
def test_openvino_is_told_where_it_matters(
    openvino: Module, instructions: tuple[str, ...], status: str | None, text: str
) -> None:
    found = openvino_rules.precisions(
        dataclasses.replace(CPU_BOX, openvino=openvino, instructions=instructions)
    )
    assert (None if found is None else found.status) == status
    assert found is None or text in found.what


def test_openvino_targets_need_package_and_instructions() -> None:
    def obstacle(openvino: Module, instructions: tuple[str, ...]) -> str | None:
        box = dataclasses.replace(CPU_BOX, openvino=openvino, instructions=instructions)
        found = bundles.obstacle_of(Target("openvino", "bf16"), [], box, Path("bundle"))
        return None if found is None else f"{found.what}: {found.why}; {found.cure}"

    assert obstacle(Module("2026.4.1"), ("avx512_bf16",)) is None
    assert "bf16 needs a CPU with" in str(obstacle(Module("2026.4.1"), ("avx2",)))
    assert 'pip install "s3clip[openvino]"' in str(obstacle(Module(error=NOT_INSTALLED), ("avx512_bf16",)))


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("onnx-fp32", "s3clip-export RUN -o box"),
        ("onnx-fp16", "s3clip-export RUN -o box --fp16"),
        ("openvino-int8", "s3clip-export tiers box --int8"),
        ("tensorrt-int8-fp16", "s3clip-export engines box"),
        ("onnx-int8", "s3clip-calib box DATA"),
        ("onnx-fp8-fp16", "s3clip-calib box DATA"),
    ],
)
def test_graphs_are_made_again_by_what_made_them(target: str, command: str) -> None:
    assert bundles.export_command(Target.parse(target), Path("box")) == command


def test_the_command_works_without_what_bundles_need(bundle_folder: Path) -> None:
    code = f"import sys; sys.modules['pydantic'] = None; {COMMAND[2]}"
    line = [sys.executable, "-c", code, "--bundle", str(bundle_folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert f"bundle {bundle_folder} cannot be checked" in done.stdout
    assert "cure: pip install --force-reinstall" in done.stdout
