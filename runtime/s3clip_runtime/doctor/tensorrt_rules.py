"""TensorRT: the full one, new enough, with bindings of CUDA and a driver under it."""

from __future__ import annotations

from s3clip_runtime.doctor import cures
from s3clip_runtime.doctor.finding import Finding, numbers
from s3clip_runtime.doctor.machine import Machine

MIN_TENSORRT = (10, 3)


def installed(machine: Machine) -> Finding | None:
    """There is a full TensorRT, or a reason why there is none."""
    trt = machine.tensorrt
    if trt.error is None:
        return _usable(machine)
    if not trt.missing:
        return _broken_import(machine)
    part = _part_only(machine)
    if part is not None:
        return part
    if machine.gpu is None or machine.jetson:  # a Jetson has its own rule
        return None
    return Finding(
        "note",
        "TensorRT is not installed",
        "optional, and the fastest way on this GPU; its libraries come from NVIDIA's own package index, "
        "and plain `pip install tensorrt` is the newest one for CUDA 13; this driver serves up to CUDA "
        f"{machine.driver.cuda}",
        cures.tensorrt(machine),
    )


def without_driver(machine: Machine) -> Finding | None:
    """TensorRT ends the process where there is no driver."""
    if machine.tensorrt.version is None or machine.gpu is not None:
        return None
    return Finding(
        "problem",
        f"TensorRT {machine.tensorrt.version} is installed, but no GPU answers: {machine.driver.absence}",
        "it would end the process by a segmentation fault; s3clip refuses to touch it and the CPU works",
        cures.GPU_CONTAINER if machine.container else cures.no_tensorrt(machine),
    )


def cuda_python(machine: Machine) -> Finding | None:
    """Memory of the GPU is reached by cuda-python."""
    if machine.tensorrt.version is None or "cuda-bindings" in machine.packages:
        return None
    return Finding(
        "problem",
        f"TensorRT {machine.tensorrt.version} is installed, cuda-python is not",
        "engines cannot be given their inputs without it",
        cures.cuda_python(machine),
    )


def rtx(machine: Machine) -> Finding | None:
    """TensorRT for RTX is another product."""
    version = machine.packages.get("tensorrt-rtx")
    if version is None or not machine.tensorrt.missing:
        return None
    return Finding(
        "note",
        f"tensorrt-rtx {version} is installed, tensorrt is not",
        "it is another product with its own engines; s3clip uses it only to check that graphs are accepted",
        "" if machine.gpu is None else cures.tensorrt(machine),
    )


def _usable(machine: Machine) -> Finding:
    trt = machine.tensorrt
    what = f"TensorRT {trt.version}"
    if numbers(trt.version or "") < MIN_TENSORRT:
        why = "older ones lack calls that s3clip makes"
        return Finding("problem", f"{what}, needed 10.3 or newer", why, cures.tensorrt(machine))
    if not trt.builder:
        return _without_builder(machine, what)
    return Finding("ok", f"{what} with builder and ONNX parser")


def _part_only(machine: Machine) -> Finding | None:
    parts = [n for n in machine.packages if n.startswith(("tensorrt-lean", "tensorrt-dispatch"))]
    if not parts:
        return None
    return _without_builder(machine, " and ".join(f"{name} {machine.packages[name]}" for name in parts))


def _without_builder(machine: Machine, what: str) -> Finding:
    return Finding(
        "problem",
        f"{what} is only a runtime, without builder and ONNX parser",
        "no engine can be built with it",
        cures.tensorrt(machine),
    )


def _broken_import(machine: Machine) -> Finding:
    names = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    packages = [f"{name} {machine.packages[name]}" for name in names if name in machine.packages]
    return Finding(
        "problem",
        f"TensorRT cannot be imported: {machine.tensorrt.error} ({', '.join(packages) or 'no pip package'})",
        "PyPI holds only its bindings; the libraries come from NVIDIA's own package index",
        cures.tensorrt(machine),
    )
