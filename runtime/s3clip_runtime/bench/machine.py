"""What a benchmark says about the machine that it ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from pathlib import Path
from typing import Final

from s3clip_runtime.bench.records import Machine
from s3clip_runtime.doctor.machine import read_machine
from s3clip_runtime.inference.cpus import cpu_flags, cpu_model, usable_cpus

ISA: Final = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimdhp",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
"""Words of /proc/cpuinfo that decide which kernels a backend can take, on x86 and on ARM."""

_DISTRIBUTIONS: Final = {
    "numpy": ("numpy",),
    "opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
}
"""A package to the distributions that bring it."""


def fingerprint(root: Path = Path("/")) -> Machine:
    """Read this machine; takes about a second, for GPU and driver are asked in processes of their own.

    Args:
        root: where /proc and /sys are.
    """
    seen = read_machine()
    system = " ".join(word for word in (seen.os or seen.system, seen.arch) if word)
    if seen.jetson:
        system += f", JetPack {seen.jetpack} (L4T {seen.l4t})"
    return Machine(
        cpu=cpu_model(root),
        cores=usable_cpus(),
        isa=isa(root),
        memory_bytes=memory_bytes(root),
        system=system,
        python=seen.python,
        versions=versions(),
        gpu=None if seen.gpu is None else f"{seen.gpu.name} ({seen.gpu.compute_capability})",
        driver=seen.driver.kernel,
    )


def cpu_name() -> str:
    """The processor's name and how many cores this process may use."""
    return f"{cpu_model()}, {usable_cpus()} cores"


def isa(root: Path = Path("/")) -> tuple[str, ...]:
    """Those of `ISA` that the processor has."""
    flags = cpu_flags(root)
    return tuple(name for name in ISA if name in flags)


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory of the whole machine, None where it cannot be read."""
    try:
        match = re.search(r"MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text("utf-8"))
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def versions() -> dict[str, str]:
    """Versions of the packages that do the work, as far as they are installed; nothing is imported."""
    found: dict[str, str] = {}
    for package, distributions in _DISTRIBUTIONS.items():
        for name in distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.setdefault(package, importlib.metadata.version(name))
    return found
