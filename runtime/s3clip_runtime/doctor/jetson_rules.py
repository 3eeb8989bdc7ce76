"""JetPack decides which TensorRT, CUDA and Python a Jetson has."""

from __future__ import annotations

from s3clip_runtime.doctor import cures
from s3clip_runtime.doctor.finding import Finding, numbers
from s3clip_runtime.doctor.machine import Machine

TENSORRT11_JETPACK = (7, 2, 2)

_BROUGHT = {
    "6": "TensorRT 10.3, CUDA 12.6, Python 3.10",
    "7.0": "TensorRT 10.13, CUDA 13.0, Python 3.12",
    "7.1": "TensorRT 10.13, CUDA 13.0, Python 3.12",
    "7.2": "TensorRT 10.16, CUDA 13.2, Python 3.12",
}

_VAGUE = ("unknown", "7", "7.2")
"""Versions that may or may not be the one that came with TensorRT 11."""


def jetpack(machine: Machine) -> Finding | None:
    """Which JetPack this is, and whether s3clip can use its TensorRT."""
    if not machine.jetson:
        return None
    version = machine.jetpack or "unknown"
    brought = next((text for key, text in _BROUGHT.items() if f"{version}.".startswith(f"{key}.")), None)
    what = f"JetPack {version} (L4T {machine.l4t})" + (f": {brought}" if brought else "")
    if version != "unknown" and numbers(version) < (6,):
        why = "its TensorRT is older than 10.3, which s3clip needs"
        return Finding("problem", what, why, cures.NEW_JETPACK)
    if version != "unknown" and numbers(version) < (7,) and machine.tensorrt.version is None:
        return Finding(
            "problem",
            what,
            f"its TensorRT is made for Python 3.10, s3clip needs 3.11 or newer and runs on {machine.python}; "
            "CPU works",
            f"{cures.NEW_JETPACK}, or build TensorRT 10.3's Python bindings for {machine.python} from source "
            "(github.com/NVIDIA/TensorRT, branch release/10.3, folder python)",
        )
    return Finding("ok", what)


def tensorrt_11(machine: Machine) -> Finding | None:
    """TensorRT 11 came to Jetson with JetPack 7.2.2."""
    version = machine.tensorrt.version
    if not machine.jetson or version is None or numbers(version) < (11,):
        return None
    found = machine.jetpack or "unknown"
    if numbers(found) >= TENSORRT11_JETPACK:
        return None
    return Finding(
        "note" if found in _VAGUE else "problem",
        f"TensorRT {version} with JetPack {found}, needed 7.2.2 or newer",
        "older JetPacks must stay on TensorRT 10.x, the one they bring",
        f"{cures.no_tensorrt(machine)} && {cures.JETSON_TENSORRT}",
    )


def tensorrt_missing(machine: Machine) -> Finding | None:
    """JetPack's TensorRT lies in the system's Python, where a closed venv does not look."""
    if not machine.jetson or not machine.tensorrt.missing or numbers(machine.jetpack or "0") < (7,):
        return None
    return Finding(
        "problem",
        f"JetPack {machine.jetpack}, but no TensorRT in Python {machine.python}",
        "without it the GPU stays idle; CPU works. A venv sees it only with --system-site-packages",
        cures.JETSON_TENSORRT,
    )
