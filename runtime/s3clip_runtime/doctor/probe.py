"""Looks at one native thing in a process of its own, for it may crash or hang: `python -m ...probe NAME`.

A probe prints one JSON object as its last line. `machine` runs them with a time-out.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from s3clip_runtime.inference import driver

NOT_INSTALLED: Final = "not installed"
EMPTY_NAMESPACE: Final = "an empty namespace package"

SONAMES: Final = (
    "libcudart.so.12",
    "libcudart.so.13",
    "libcublas.so.12",
    "libcublas.so.13",
    "libcudnn.so.8",
    "libcudnn.so.9",
    "libnvinfer.so.8",
    "libnvinfer.so.10",
    "libnvinfer.so.11",
    "libnvonnxparser.so.10",
    "libnvonnxparser.so.11",
    "libGL.so.1",
)
"""The libraries that onnxruntime, TensorRT and OpenCV ask the loader for."""


def read_module(name: str) -> dict[str, Any]:
    """Import a module: its version, or why it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return {"error": NOT_INSTALLED if error.name == name else f"it needs {error.name}"}
    except Exception as error:  # whatever a foreign package does at import is what we want to know
        return {"error": f"{type(error).__name__}: {error}"}
    if getattr(module, "__file__", None) is None:
        return {"error": EMPTY_NAMESPACE}
    return {"version": str(getattr(module, "__version__", "unknown"))}


def read_onnxruntime() -> dict[str, Any]:
    """Version and the providers that this build of onnxruntime was compiled with."""
    found = read_module("onnxruntime")
    if "version" in found:
        found["providers"] = importlib.import_module("onnxruntime").get_available_providers()
    return found


def read_cuda_session() -> dict[str, Any]:
    """Whether onnxruntime really computes on CUDA, by the runtime's own probe graph."""
    from s3clip_runtime.inference.backends.onnxruntime import choose_device

    device, reason = choose_device("auto")
    return {"device": device, "reason": reason}


def read_tensorrt() -> dict[str, Any]:
    """Version of TensorRT's Python module, and whether it can build.

    Nothing of it is created: without a driver even an unused `Runtime` ends the process.
    """
    found = read_module("tensorrt")
    if "version" in found:
        module = importlib.import_module("tensorrt")
        found["builder"] = hasattr(module, "Builder") and hasattr(module, "OnnxParser")
    return found


def read_driver() -> dict[str, Any]:
    """CUDA driver and GPUs, by the driver itself."""
    found: dict[str, Any] = {"kernel": driver.kernel_driver()}
    try:
        library = driver.load()
        found["cuda"] = driver.cuda_version(library)
        driver.ask(library, "cuInit", 0)
        gpus = [driver.describe(library, ordinal) for ordinal in range(driver.gpu_count(library))]
    except (OSError, driver.DriverError) as error:
        return {**found, "error": str(error)}
    return {**found, "gpus": [{"name": name, "compute_capability": number} for name, number in gpus]}


def read_libraries() -> dict[str, Any]:
    """Each library that the dynamic loader finds, else that pip's packages offer, with its version."""
    found: dict[str, Any] = {}
    # All of the loader's first: a library that was loaded by its path answers to its name from then on.
    for soname in SONAMES:
        entry = _open_library(soname, soname, "system")
        if entry is not None:
            found[soname] = entry
    for soname in SONAMES:
        for path in _pip_paths(soname):
            if soname not in found:
                found[soname] = _open_library(soname, str(path), "pip")
    return found


def _open_library(soname: str, path: str, place: str) -> dict[str, Any] | None:
    """None where there is no such file; a file that cannot be loaded is told from that."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        if str(error).startswith(f"{soname}: cannot open"):
            return None
        return {"place": place, "path": path, "error": str(error)}
    return {"place": place, "path": _loaded_path(soname) or path, "version": _version(soname, library)}


def _loaded_path(soname: str) -> str | None:
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    paths = (line.split(maxsplit=5)[-1] for line in lines if "/" in line)
    return next((path for path in paths if Path(path).name.startswith(soname)), None)


def _pip_paths(soname: str) -> Iterator[Path]:
    for folder in filter(None, sys.path):
        for pattern in (f"nvidia/*/lib/{soname}", f"tensorrt_libs/{soname}"):
            yield from sorted(Path(folder).glob(pattern))


def _version(soname: str, library: ctypes.CDLL) -> str | None:
    read = _VERSION_READERS.get(soname.partition(".")[0])
    try:
        return None if read is None else read(library)
    except AttributeError:  # the library lacks the function
        return None


def _cudart_version(library: ctypes.CDLL) -> str:
    value = ctypes.c_int()
    library.cudaRuntimeGetVersion(ctypes.byref(value))
    return driver.spelled(value.value)


def _cublas_version(library: ctypes.CDLL) -> str:
    numbers = []
    for part in range(3):  # libraryPropertyType: major, minor, patch
        value = ctypes.c_int()
        library.cublasGetProperty(part, ctypes.byref(value))
        numbers.append(str(value.value))
    return ".".join(numbers)


def _cudnn_version(library: ctypes.CDLL) -> str:
    library.cudnnGetVersion.restype = ctypes.c_size_t
    return _split(int(library.cudnnGetVersion()), first_wide_major=9)


def _nvinfer_version(library: ctypes.CDLL) -> str:
    return _split(int(library.getInferLibVersion()), first_wide_major=10)


def _split(number: int, first_wide_major: int) -> str:
    """91200 and 9.12.0: NVIDIA gave the minor version a second digit with cuDNN 9 and TensorRT 10."""
    step = 10000 if number >= first_wide_major * 10000 else 1000
    return f"{number // step}.{number % step // 100}.{number % 100}"


_VERSION_READERS: dict[str, Callable[[ctypes.CDLL], str]] = {
    "libcudart": _cudart_version,
    "libcublas": _cublas_version,
    "libcudnn": _cudnn_version,
    "libnvinfer": _nvinfer_version,
}

_PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "driver": read_driver,
    "libraries": read_libraries,
    "onnxruntime": read_onnxruntime,
    "cuda_session": read_cuda_session,
    "tensorrt": read_tensorrt,
    "numpy": lambda: read_module("numpy"),
    "cv2": lambda: read_module("cv2"),
    "av": lambda: read_module("av"),
    "openvino": lambda: read_module("openvino"),
}


def main(name: str) -> None:
    """Run one probe and print what it read."""
    found = _PROBES[name]()
    print(f"\n{json.dumps(found)}")  # on a line of its own, whatever a library has printed before


if __name__ == "__main__":
    main(sys.argv[1])
