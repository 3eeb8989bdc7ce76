"""Energy counters of the machine, read from files and drivers; where there is none, the reason.

RAPL counts a CPU package, NVML a GPU, and the INA3221 chips of a Jetson measure the power of a whole module.
All count the idle share too, and whatever else runs meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from s3clip_runtime.errors import BackendError

_WHOLE_MODULE: Final = ("VDD_IN", "POM_5V_IN", "VIN")
"""Names of the rail that feeds a whole Jetson module; AGX Orin has none and sums its rails."""

_SAMPLE_S: Final = 0.02
"""Between two readings of a power: shorter than a tracklet, longer than the chip's 10 ms conversion."""

_STOP_TIMEOUT_S: Final = 5.0


class Meter(Protocol):
    """Counts joules between `start` and `stop`."""

    @property
    def source(self) -> str:
        """What counts, and what it covers."""

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> float:
        """Joules since `start`. Raises BackendError if the counter cannot be read any more."""


class RaplMeter:
    """Intel's and AMD's running average power limit: a counter of microjoules a CPU package.

    Args:
        zones: folders with `energy_uj` and `max_energy_range_uj`, one a package.
    """

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = tuple(zones)
        self._before: list[int] = []
        self.source = f"RAPL, {len(self._zones)} CPU package{'s' * (len(self._zones) > 1)}, without memory"

    def start(self) -> None:
        """Note the counters."""
        self._before = [_number(zone / "energy_uj") for zone in self._zones]

    def stop(self) -> float:
        """Joules; a counter that began anew meanwhile is counted on, once."""
        total = 0
        for zone, before in zip(self._zones, self._before, strict=True):
            now = _number(zone / "energy_uj")
            total += now - before if now >= before else now + _number(zone / "max_energy_range_uj") - before
        return total / 1e6


class Ina3221Meter:
    """A Jetson's power sensors: milliamperes times millivolts of its rails, summed over time by a thread.

    Args:
        rails: name to the files of current (mA) and voltage (mV).
    """

    def __init__(self, rails: dict[str, tuple[Path, Path]]) -> None:
        self._rails = rails
        self._joules = 0.0
        self._error: BackendError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.source = f"INA3221, rail{'s' * (len(rails) > 1)} {', '.join(rails)}"

    def watts(self) -> float:
        """Power of all rails now."""
        return sum(_number(current) * _number(voltage) for current, voltage in self._rails.values()) / 1e6

    def start(self) -> None:
        """Start the thread."""
        self._joules, self._error = 0.0, None
        self._stop.clear()
        self._thread = threading.Thread(target=self._sum, name="energy", daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Joules, by the trapezoid rule."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)
        if self._error is not None:
            raise self._error
        return self._joules

    def _sum(self) -> None:
        try:
            watts, time_s = self.watts(), time.monotonic()
            stopped = False
            while not stopped:
                stopped = self._stop.wait(_SAMPLE_S)
                next_watts, now_s = self.watts(), time.monotonic()
                self._joules += (watts + next_watts) / 2 * (now_s - time_s)
                watts, time_s = next_watts, now_s
        except BackendError as error:  # carried to the thread that stops the meter
            self._error = error


class NvmlMeter:
    """NVIDIA's own counter of millijoules of the first GPU, since Volta.

    Args:
        nvml: the library, initialised; the meter leaves it so.
        device: handle of the GPU.
    """

    source = "NVML, the GPU alone"

    def __init__(self, nvml: ctypes.CDLL, device: ctypes.c_void_p) -> None:
        self._nvml = nvml
        self._device = device
        self._before_mj = 0

    def start(self) -> None:
        """Note the counter."""
        self._before_mj = self._millijoules()

    def stop(self) -> float:
        """Joules."""
        return (self._millijoules() - self._before_mj) / 1000

    def _millijoules(self) -> int:
        value = ctypes.c_ulonglong()
        code = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(value))
        if code:
            raise BackendError(
                f"NVML does not tell the GPU's energy (error {code}); GPUs before Volta cannot"
            )
        return value.value


def find_meter(
    device: str, root: Path = Path("/"), load_nvml: Callable[[], ctypes.CDLL] | None = None
) -> tuple[Meter | None, str]:
    """The meter for what runs on a device, with its source; without one, None and the reason.

    Args:
        device: "cpu" or "cuda".
        root: where /sys is.
        load_nvml: gives NVML's library or raises OSError; None loads the installed one.
    """
    rails = _ina3221_rails(root)
    if rails:
        return _tried(Ina3221Meter(rails))
    if device == "cuda":
        return _nvml_meter(load_nvml or (lambda: ctypes.CDLL("libnvidia-ml.so.1")))
    zones = _rapl_zones(root)
    if not zones:
        return None, "no counter: no RAPL package under /sys/class/powercap, as in most virtual machines"
    return _tried(RaplMeter(zones))


def joules_of(meter: Meter, call: Callable[[], object], least_s: float) -> float:
    """Joules of one call, as the mean over at least one call and `least_s` seconds.

    Raises:
        BackendError: the counter cannot be read, or the call failed.
    """
    count, end_s = 0, time.monotonic() + least_s
    meter.start()
    try:
        while count == 0 or time.monotonic() < end_s:
            call()
            count += 1
    finally:
        joules = meter.stop()
    return joules / count


def _tried(meter: Meter) -> tuple[Meter | None, str]:
    """The meter if it can be read."""
    try:
        meter.start()
        meter.stop()
    except BackendError as error:
        return None, f"no counter: {error}"
    return meter, meter.source


def _rapl_zones(root: Path) -> list[Path]:
    """Packages. Their parts are in them already, and `psys` would count them twice."""
    found = []
    for zone in sorted((root / "sys/class/powercap").glob("*-rapl:*")):
        name = zone / "name"
        if zone.name.count(":") == 1 and name.is_file() and name.read_text().startswith("package"):
            found.append(zone)
    return found


def _ina3221_rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """The rail of the whole module if there is one, else all that have a name."""
    rails: dict[str, tuple[Path, Path]] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = chip / "name"
        if not name.is_file() or name.read_text().strip() != "ina3221":
            continue
        for label in sorted(chip.glob("in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            files = chip / f"curr{number}_input", chip / f"in{number}_input"
            # The last channel of some chips is the sum of the shunt voltages: no rail and no current.
            if all(file.is_file() for file in files):
                rails[label.read_text().strip()] = files
    whole = [rail for rail in _WHOLE_MODULE if rail in rails]
    return {whole[0]: rails[whole[0]]} if whole else rails


def _nvml_meter(load: Callable[[], ctypes.CDLL]) -> tuple[Meter | None, str]:
    try:
        nvml = load()
    except OSError as error:
        return None, f"no counter: NVML cannot be loaded ({error})"
    device = ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return None, "no counter: NVML finds no GPU"
    return _tried(NvmlMeter(nvml, device))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise BackendError(f"{path} may be read by root alone; run as root or change its mode") from error
    except (OSError, ValueError) as error:
        raise BackendError(f"{path} cannot be read ({error}); check the driver") from error
