"""Reads this machine into one record. What cannot be read is None with the reason, never an exception."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from s3clip_runtime.doctor.finding import numbers
from s3clip_runtime.doctor.probe import NOT_INSTALLED
from s3clip_runtime.inference.cpus import cpu_flags, usable_cpus

PROBE_TIMEOUT_S = 60.0
"""A probe takes under a second on an idle machine; importing TensorRT from a cold SD card takes many."""

_WATCHED = re.compile(
    r"(onnxruntime|openvino|tensorrt|nvidia|cuda|opencv)(-.+)?|torch|torchvision|av|numpy|pillow|pydantic|trackers|s3clip"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as the driver names it."""

    name: str
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver. `cuda` is the newest version that it serves; `error` says why there are no GPUs."""

    kernel: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    error: str | None = None

    @property
    def absence(self) -> str:
        """Why there is no GPU."""
        return self.error or "the driver names none"


@dataclass(frozen=True, slots=True)
class Library:
    """A shared library: found by the dynamic loader ("system"), or only in pip's nvidia packages ("pip")."""

    place: Literal["system", "pip"]
    path: str
    version: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """A Python module: its version, or why it cannot be imported."""

    version: str | None = None
    error: str | None = None

    @property
    def missing(self) -> bool:
        """Nothing of that name is installed, which is not a fault in itself."""
        return self.error == NOT_INSTALLED


@dataclass(frozen=True, slots=True)
class OnnxRuntime(Module):
    """onnxruntime; `providers` are those it was compiled with, whether they can start or not."""

    providers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorRT(Module):
    """The `tensorrt` module; the lean and dispatch runtimes have no builder."""

    builder: bool = False


@dataclass(frozen=True, slots=True)
class CudaSession:
    """Where onnxruntime ran a small graph when it was asked for CUDA, and the reason."""

    device: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """All that the rules look at.

    Attributes:
        os_id: `ID` and `ID_LIKE` of /etc/os-release: which package manager there is.
        l4t: release of Jetson Linux; None on anything but a Jetson.
        jetpack: version of the nvidia-jetpack package, else what the L4T release belongs to.
        libraries: soname to what was found of it; absent ones are left out.
        packages: distribution to version, of those that matter here.
        instructions: the CPU's, by their names in /proc/cpuinfo.
        cuda_session: None where it was not tried: no CUDA provider, or no GPU.
        unread: what could not be read, and why.
    """

    python: str
    arch: str
    system: str = "Linux"
    executable: str = "python"
    os: str | None = None
    os_id: str = ""
    glibc: str | None = None
    container: bool = False
    l4t: str | None = None
    jetpack: str | None = None
    driver: Driver = field(default_factory=Driver)
    libraries: Mapping[str, Library] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    onnxruntime: OnnxRuntime = field(default_factory=OnnxRuntime)
    cuda_session: CudaSession | None = None
    tensorrt: TensorRT = field(default_factory=TensorRT)
    numpy: Module = field(default_factory=Module)
    cv2: Module = field(default_factory=Module)
    av: Module = field(default_factory=Module)
    openvino: Module = field(default_factory=lambda: Module(error=NOT_INSTALLED))
    instructions: tuple[str, ...] = ()
    cores: int | None = None
    memory_free_mb: int | None = None
    disk_free_mb: int | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def jetson(self) -> bool:
        """Whether this is a Jetson board."""
        return self.l4t is not None

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that is used: the first one."""
        return self.driver.gpus[0] if self.driver.gpus else None


def read_machine(timeout_s: float = PROBE_TIMEOUT_S) -> Machine:
    """Read the machine that this runs on; each probe of a native library may take `timeout_s`."""
    unread: dict[str, str] = {}

    def attempt(name: str, read: Callable[[], T | None]) -> T | None:
        try:
            return read()
        except Exception as error:  # a doctor that fails is of no use: whatever it is becomes the reason
            unread[name] = f"{type(error).__name__}: {error}"
            return None

    names = ("driver", "libraries", "onnxruntime", "tensorrt", "numpy", "cv2", "av", "openvino")
    with ThreadPoolExecutor(max_workers=2) as pool:  # more would only compete: imports are CPU work
        seen = dict(zip(names, pool.map(lambda name: run_probe(name, timeout_s), names), strict=True))
    driver = _driver(seen["driver"], attempt("kernel driver", _kernel_driver))
    onnxruntime = _onnxruntime(seen["onnxruntime"])
    release = attempt("os", platform.freedesktop_os_release) or {}
    l4t = attempt("l4t", _l4t)
    if "error" in seen["libraries"]:
        unread["libraries"] = str(seen.pop("libraries")["error"])
    return Machine(
        python=platform.python_version(),
        arch=platform.machine(),
        system=platform.system(),
        executable=sys.executable,
        os=release.get("PRETTY_NAME"),
        os_id=f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".strip(),
        glibc=attempt("glibc", lambda: platform.libc_ver()[1] or None),
        container=any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")),
        l4t=l4t,
        jetpack=None if l4t is None else attempt("jetpack", _jetpack_package) or jetpack_of(l4t),
        driver=driver,
        libraries={name: Library(**entry) for name, entry in seen.get("libraries", {}).items()},
        packages=attempt("packages", _packages) or {},
        onnxruntime=onnxruntime,
        cuda_session=_cuda_session(driver, onnxruntime, timeout_s),
        tensorrt=TensorRT(**seen["tensorrt"]),
        numpy=Module(**seen["numpy"]),
        cv2=Module(**seen["cv2"]),
        av=Module(**seen["av"]),
        openvino=Module(**seen["openvino"]),
        instructions=tuple(sorted(attempt("instructions", cpu_flags) or ())),
        cores=attempt("cores", usable_cpus),
        memory_free_mb=attempt("memory", _memory_free_mb),
        disk_free_mb=attempt("disk", lambda: shutil.disk_usage(".").free // 2**20),
        unread=unread,
    )


def run_probe(name: str, timeout_s: float) -> dict[str, Any]:
    """One probe of `doctor.probe` in a process of its own; `error` says how that process failed."""
    # -P: a file of the folder that the user stands in must not be imported in a package's place.
    return read_apart([sys.executable, "-P", "-m", "s3clip_runtime.doctor.probe", name], timeout_s)


def read_apart(command: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """The JSON object in the last line that a command prints, else `error`: signal, time-out or exit code."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {timeout_s:g} s"}
    except OSError as error:
        return {"error": f"the process cannot be started: {error.strerror}"}
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode < 0:
        return {"error": f"the process was ended by {_signal_name(-done.returncode)} ({last})"}
    try:
        found = json.loads((done.stdout.splitlines() or [""])[-1])
    except ValueError:
        found = None
    if done.returncode > 0 or not isinstance(found, dict):
        return {"error": f"exit {done.returncode}: {last}"}
    return found


def jetpack_of(l4t: str) -> str:
    """JetPack version of an L4T release, as far as it tells: "36.4.3" belongs to 6."""
    major, minor = (*numbers(l4t), 0, 0)[:2]
    if major >= 38:
        return {38: "7.1" if minor >= 4 else "7.0", 39: "7.2"}.get(major, "7")
    return {36: "6", 35: "5", 32: "4"}.get(major, "unknown")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _driver(seen: Mapping[str, Any], kernel: str | None) -> Driver:
    gpus = tuple(Gpu(**gpu) for gpu in seen.get("gpus", ()))
    return Driver(seen.get("kernel") or kernel, seen.get("cuda"), gpus, seen.get("error"))


def _onnxruntime(seen: Mapping[str, Any]) -> OnnxRuntime:
    return OnnxRuntime(seen.get("version"), seen.get("error"), tuple(seen.get("providers", ())))


def _cuda_session(driver: Driver, onnxruntime: OnnxRuntime, timeout_s: float) -> CudaSession | None:
    if not driver.gpus or "CUDAExecutionProvider" not in onnxruntime.providers:
        return None
    seen = run_probe("cuda_session", timeout_s)
    return CudaSession(seen.get("device"), seen.get("reason", seen.get("error")))


def _kernel_driver() -> str | None:
    for path in ("/proc/driver/nvidia/version", "/sys/module/nvidia/version"):
        if Path(path).is_file():
            match = re.search(r"\b\d{3,}(\.\d+)+", Path(path).read_text(errors="replace"))
            return match and match[0]
    return None


def _l4t() -> str | None:
    path = Path("/etc/nv_tegra_release")
    if path.is_file():
        match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", path.read_text(errors="replace"))
        if match is not None:
            return f"{match[1]}.{match[2]}"
    return _dpkg_version("nvidia-l4t-core")  # newer releases may leave the file out


def _jetpack_package() -> str | None:
    return _dpkg_version("nvidia-jetpack")


def _dpkg_version(package: str) -> str | None:
    if shutil.which("dpkg-query") is None:
        return None
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", package],
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    match = re.match(r"\d+(\.\d+)*", done.stdout)
    return match[0] if done.returncode == 0 and match is not None else None


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if _WATCHED.fullmatch(name):
            found.setdefault(name, distribution.version)  # the first on the path is the one that is imported
    return dict(sorted(found.items()))


def _memory_free_mb() -> int | None:
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return match and int(match[1]) // 1024
