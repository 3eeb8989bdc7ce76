"""NVIDIA's driver, asked through ctypes alone: nothing has to be installed."""

from __future__ import annotations

import ctypes

LIBRARY = "libcuda.so.1"
_NVML = "libnvidia-ml.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class DriverError(Exception):
    """A call of the driver failed: names the call and the error."""


def load() -> ctypes.CDLL:
    """The driver's library, not yet initialised.

    Raises:
        OSError: it is not installed.
    """
    return ctypes.CDLL(LIBRARY)


def ask(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    """Call a function of the driver.

    Raises:
        DriverError: it returned an error.
    """
    code = getattr(driver, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        known = driver.cuGetErrorString(code, ctypes.byref(text)) == 0 and text.value
        reason = f", {text.value.decode(errors='replace')}" if known and text.value else ""
        raise DriverError(f"{name}: error {code}{reason}")


def gpu_count(driver: ctypes.CDLL) -> int:
    """GPUs that this process may see, after cuInit. Raises as `ask`."""
    count = ctypes.c_int()
    ask(driver, "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def describe(driver: ctypes.CDLL, ordinal: int) -> tuple[str, str]:
    """Name and compute capability, like "8.6", of one GPU. Raises as `ask`."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    ask(driver, "cuDeviceGet", ctypes.byref(device), ordinal)
    ask(driver, "cuDeviceGetName", name, len(name), device)
    numbers = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        ask(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        numbers.append(str(value.value))
    return name.value.decode(errors="replace"), ".".join(numbers)


def cuda_version(driver: ctypes.CDLL) -> str:
    """The newest CUDA that the driver serves, like "13.0". Raises as `ask`."""
    version = ctypes.c_int()
    ask(driver, "cuDriverGetVersion", ctypes.byref(version))
    return spelled(version.value)


def spelled(version: int) -> str:
    """CUDA's 13020 as "13.2"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def kernel_driver() -> str | None:
    """Version of the kernel driver, like "580.95.05"; None where NVML cannot tell, as on older Jetsons."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    text = ctypes.create_string_buffer(96)
    code = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return None if code else text.value.decode(errors="replace")
