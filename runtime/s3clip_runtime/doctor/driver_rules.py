"""The GPU and its driver."""

from __future__ import annotations

from s3clip_runtime.doctor import cures
from s3clip_runtime.doctor.finding import Finding, numbers
from s3clip_runtime.doctor.machine import Machine

CUDA13_ONNXRUNTIME = (1, 27)
"""From here on PyPI's onnxruntime-gpu is built for CUDA 13."""

CUDA13_COMPUTE_CAPABILITY = (7, 5)


def gpu(machine: Machine) -> Finding:
    """There is a GPU that answers, or none at all."""
    driver, gpu = machine.driver, machine.gpu
    if gpu is not None:
        more = f" and {len(driver.gpus) - 1} more" if len(driver.gpus) > 1 else ""
        return Finding(
            "ok",
            f"{gpu.name}, compute capability {gpu.compute_capability}{more}; "
            f"driver {driver.kernel or 'unknown'}, up to CUDA {driver.cuda}",
        )
    if driver.kernel is None and not machine.jetson:
        return Finding("note", f"no NVIDIA GPU: {driver.absence}", "CPU works")
    what = f"driver {driver.kernel or 'unknown'} is loaded, but no GPU answers: {driver.absence}"
    if machine.container:
        return Finding("problem", what, "the container was not given the GPU", cures.GPU_CONTAINER)
    return Finding("problem", what, "the driver's parts do not fit each other, or it hangs", "sudo reboot")


def cuda13(machine: Machine) -> Finding | None:
    """What is built for CUDA 13 needs a driver of release 580."""
    served = machine.driver.cuda
    if served is None or numbers(served) >= (13,):
        return None
    what = f"driver {machine.driver.kernel} serves up to CUDA {served}"
    needing = _built_for_cuda13(machine)
    if not needing:
        if machine.jetson:  # its packages come with JetPack, in one generation
            return None
        return Finding("note", what, "choose packages made for CUDA 12", cures.tensorrt(machine))
    return Finding(
        "problem",
        f"{what}; {' and '.join(needing)} need CUDA 13, driver 580 or newer",
        "they cannot start on this driver",
        cures.driver(machine),
    )


def old_gpu(machine: Machine) -> Finding | None:
    """CUDA 13 has no code for GPUs before Turing."""
    gpu = machine.gpu
    if gpu is None or numbers(gpu.compute_capability) >= CUDA13_COMPUTE_CAPABILITY:
        return None
    needing = _built_for_cuda13(machine)
    if not needing:
        return None
    return Finding(
        "problem",
        f"{gpu.name} has compute capability {gpu.compute_capability}; {' and '.join(needing)} need 7.5",
        "CUDA 13 has no code for this GPU; CPU works",
        cures.CPU_EXTRA,
    )


def _built_for_cuda13(machine: Machine) -> list[str]:
    found = []
    version = machine.packages.get("onnxruntime-gpu")
    if version is not None and numbers(version) >= CUDA13_ONNXRUNTIME:
        found.append(f"onnxruntime-gpu {version}")
    version = machine.packages.get("tensorrt-cu13")
    if version is not None:
        found.append(f"tensorrt-cu13 {version}")
    return found
