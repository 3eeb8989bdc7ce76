"""onnxruntime: one package of it, and a CUDA provider that can really start."""

from __future__ import annotations

from pathlib import PurePath

from s3clip_runtime.doctor import cures
from s3clip_runtime.doctor.driver_rules import CUDA13_ONNXRUNTIME
from s3clip_runtime.doctor.finding import Finding, numbers
from s3clip_runtime.doctor.machine import Machine
from s3clip_runtime.doctor.probe import EMPTY_NAMESPACE

CUDA_PROVIDER = "CUDAExecutionProvider"
NEEDED = ("libcublas.so.13", "libcudart.so.13", "libcudnn.so.9")
"""What the CUDA provider of onnxruntime-gpu links, besides the driver's libcuda."""

MIN_ONNXRUNTIME = {"onnxruntime": (1, 24), "onnxruntime-gpu": CUDA13_ONNXRUNTIME}
TENSORRT_OF_PROVIDER = '"tensorrt-cu13>=10.13.2,<11"'


def one_package(machine: Machine) -> Finding | None:
    """onnxruntime and onnxruntime-gpu exclude each other."""
    versions = [machine.packages.get(name) for name in ("onnxruntime", "onnxruntime-gpu")]
    if None in versions:
        return None
    return Finding(
        "problem",
        f"onnxruntime {versions[0]} and onnxruntime-gpu {versions[1]} are both installed",
        "they share one folder: the last one installed wins, and removing one leaves a broken rest",
        cures.CPU_EXTRA if machine.gpu is None or machine.jetson else cures.GPU_EXTRA,
    )


def imports(machine: Machine) -> Finding:
    """onnxruntime can be imported; says what it was compiled with."""
    ort = machine.onnxruntime
    if ort.error is None:
        return Finding("ok", f"onnxruntime {ort.version}, compiled with {', '.join(ort.providers)}")
    cure = cures.CPU_EXTRA if machine.gpu is None or machine.jetson else cures.GPU_EXTRA
    if ort.error == EMPTY_NAMESPACE:
        why = "onnxruntime or onnxruntime-gpu was removed while both were installed: only a folder is left"
    elif ort.missing:
        why = "no bundle runs without it, not even on the CPU"
        cure = 'pip install "s3clip[cpu]"' if cure == cures.CPU_EXTRA else 'pip install "s3clip[gpu]"'
    else:
        why = "no ONNX graph runs without it"
    return Finding("problem", f"onnxruntime cannot be imported: {ort.error}", why, cure)


def new_enough(machine: Machine) -> Finding | None:
    """The oldest releases that s3clip is made for; a Jetson's is built by its owner and left alone."""
    for name, oldest in MIN_ONNXRUNTIME.items():
        version = machine.packages.get(name)
        if version is not None and numbers(version) < oldest and not machine.jetson:
            wanted = ".".join(map(str, oldest))
            return Finding(
                "problem",
                f"{name} {version}, needed {wanted} or newer",
                "older ones are built for another CUDA or lack operators",
                f'pip install --upgrade "{name}>={wanted}"',
            )
    return None


def provider_without_gpu(machine: Machine) -> Finding | None:
    """The list of providers says what was compiled, not what can start."""
    if CUDA_PROVIDER not in machine.onnxruntime.providers or machine.gpu is not None:
        return None
    return Finding(
        "problem",
        f"onnxruntime lists {CUDA_PROVIDER}, but no GPU answers: {machine.driver.absence}",
        "it would silently run on the CPU; s3clip refuses --device cuda and says so",
        cures.GPU_CONTAINER if machine.container else cures.CPU_EXTRA,
    )


def cuda_starts(machine: Machine) -> Finding | None:
    """A small graph really ran on CUDA, else the libraries that are missing."""
    if CUDA_PROVIDER not in machine.onnxruntime.providers or machine.gpu is None:
        return None
    session = machine.cuda_session
    if session is not None and session.device == "cuda":
        return Finding("ok", f"onnxruntime computes on CUDA ({_library_versions(machine)})")
    reason = "not tried" if session is None else session.reason
    found = {name: machine.libraries[name] for name in NEEDED if name in machine.libraries}
    lacking = [name for name in NEEDED if name not in found or found[name].error is not None]
    in_pip = sorted(
        {str(PurePath(library.path).parent) for library in found.values() if library.place == "pip"}
    )
    if machine.jetson:
        return Finding(
            "problem",
            f"onnxruntime cannot start CUDA: {reason}",
            "s3clip uses JetPack's own TensorRT on a Jetson; onnxruntime is needed for the CPU only",
            cures.CPU_EXTRA,
        )
    if lacking:
        return Finding(
            "problem",
            f"onnxruntime cannot start CUDA: {', '.join(lacking)} missing "
            f"(it needs CUDA 13 and cuDNN 9; found {_library_versions(machine) or 'none'})",
            f"it would silently run on the CPU; {reason}",
            cures.CUDA_LIBRARIES,
        )
    if in_pip:
        return Finding(
            "problem",
            f"onnxruntime cannot start CUDA: {reason}",
            "its libraries are installed by pip, in folders that the dynamic loader does not search",
            f"export LD_LIBRARY_PATH={':'.join(in_pip)}:$LD_LIBRARY_PATH",
        )
    return Finding(
        "problem",
        f"onnxruntime cannot start CUDA: {reason}",
        "driver and libraries are there, but do not work together",
        cures.GPU_EXTRA,
    )


def idle_gpu(machine: Machine) -> Finding | None:
    """A GPU that nothing here can use."""
    if machine.gpu is None or machine.jetson or CUDA_PROVIDER in machine.onnxruntime.providers:
        return None
    if machine.tensorrt.builder:
        return None
    return Finding(
        "note",
        f"{machine.gpu.name} stays idle: onnxruntime has no {CUDA_PROVIDER} and TensorRT is not installed",
        "CPU works",
        cures.GPU_EXTRA,
    )


def tensorrt_provider(machine: Machine) -> Finding | None:
    """PyPI's onnxruntime-gpu links TensorRT 10, while `pip install tensorrt` brings 11."""
    installed = machine.tensorrt.version
    if "TensorrtExecutionProvider" not in machine.onnxruntime.providers or installed is None:
        return None
    if numbers(installed) < (11,) or "libnvinfer.so.10" in machine.libraries:
        return None
    return Finding(
        "note",
        f"onnxruntime's TensorRT provider needs libnvinfer.so.10, TensorRT {installed} is installed",
        "s3clip does not use that provider but TensorRT itself; only other programs need the cure",
        f"pip install --extra-index-url https://pypi.nvidia.com {TENSORRT_OF_PROVIDER}",
    )


def jetson_wheel(machine: Machine) -> Finding | None:
    """PyPI's aarch64 wheels of onnxruntime-gpu are made for servers."""
    version = machine.packages.get("onnxruntime-gpu")
    if not machine.jetson or version is None:
        return None
    if machine.cuda_session is not None and machine.cuda_session.device == "cuda":
        return None  # a build of its own
    return Finding(
        "note",
        f"onnxruntime-gpu {version} on a Jetson",
        "PyPI's aarch64 wheels (from 1.29) are made for servers and may lack code for a Jetson's GPU: "
        "s3clip uses JetPack's own TensorRT",
        cures.CPU_EXTRA,
    )


def _library_versions(machine: Machine) -> str:
    names = {"libcudart": "CUDA", "libcublas": "cuBLAS", "libcudnn": "cuDNN"}
    return ", ".join(
        f"{names[soname.partition('.')[0]]} {library.version}"
        for soname, library in machine.libraries.items()
        if soname.partition(".")[0] in names and library.version is not None
    )
