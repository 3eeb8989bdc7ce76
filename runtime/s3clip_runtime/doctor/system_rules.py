"""Python, the packages that every machine needs, and room to work in."""

from __future__ import annotations

from s3clip_runtime.doctor import cures
from s3clip_runtime.doctor.finding import Finding, numbers
from s3clip_runtime.doctor.machine import Machine, Module

MIN_PYTHON = (3, 11)
MIN_OPENCV = (4, 10)
MIN_FREE_MB = 1024
"""The FP32 graphs of a ViT-B model alone are about 350 MB, on disk and in memory."""


def python(machine: Machine) -> Finding:
    """s3clip needs Python 3.11."""
    what = f"Python {machine.python}, needed 3.11 or newer"
    if numbers(machine.python) >= MIN_PYTHON:
        return Finding("ok", what)
    why = "s3clip cannot be installed or run by it"
    if machine.jetson and numbers(machine.jetpack or "") < (7,):
        why += f"; JetPack {machine.jetpack} brings no newer one, and its TensorRT is made for this one"
        return Finding("problem", what, why, cures.NEW_JETPACK)
    cure = 'python3.12 -m venv s3clip-env && s3clip-env/bin/pip install "s3clip[cpu]"'
    return Finding("problem", what, why, cure)


def numpy(machine: Machine) -> Finding:
    """NumPy is used everywhere."""
    return _module("numpy", machine.numpy, "numpy>=1.26", "nothing works without it")


def av(machine: Machine) -> Finding:
    """PyAV decodes video."""
    return _module("av", machine.av, "av>=13", "no video file or stream can be read without it")


def opencv(machine: Machine) -> Finding:
    """OpenCV imports and is new enough."""
    module = machine.cv2
    error = module.error or ""
    if "libGL.so" in error:
        return Finding(
            "problem",
            f"OpenCV cannot be imported: {error}",
            "opencv-python links a system library that small images and servers leave out",
            cures.system_package(machine, "libgl1 libglib2.0-0", "mesa-libGL glib2"),
        )
    if module.version is not None and numbers(module.version) < MIN_OPENCV:
        return Finding(
            "problem",
            f"OpenCV {module.version}, needed 4.10 or newer",
            "older ones lack functions that s3clip calls",
            'pip install --upgrade "opencv-python>=4.10"',
        )
    return _module("OpenCV", module, "opencv-python>=4.10", "pictures cannot be read or resized without it")


def one_opencv(machine: Machine) -> Finding | None:
    """Several OpenCV packages write into one folder."""
    found = sorted(name for name in machine.packages if name.startswith("opencv-"))
    if len(found) < 2:
        return None
    named = " and ".join(f"{name} {machine.packages[name]}" for name in found)
    return Finding(
        "note",
        f"{named} are both installed",
        "they share the folder cv2: the last one installed wins, and removing one breaks the other",
        f'pip uninstall -y {" ".join(found)} && pip install "opencv-python>=4.10"',
    )


def room(machine: Machine) -> Finding | None:
    """Memory and disk are not about to run out."""
    free = {"memory": machine.memory_free_mb, "disk, in this folder": machine.disk_free_mb}
    short = [f"{mb} MB of {name}" for name, mb in free.items() if mb is not None and mb < MIN_FREE_MB]
    if not short:
        return None
    return Finding(
        "note", f"only {' and '.join(short)} free, wanted {MIN_FREE_MB} MB", "large models may not fit"
    )


def _module(name: str, module: Module, requirement: str, why: str) -> Finding:
    if module.error is None:
        return Finding("ok", f"{name} {module.version}")
    if module.missing:
        return Finding("problem", f"{name} is not installed", why, f'pip install "{requirement}"')
    return Finding(
        "problem",
        f"{name} cannot be imported: {module.error}",
        why,
        f'pip install --force-reinstall "{requirement}"',
    )
