"""Energy counters read from trees of files as kernels lay them out, and from an NVML that counts on."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3clip_runtime.bench.energy import Ina3221Meter, RaplMeter, find_meter, joules_of
from s3clip_runtime.errors import BackendError

RANGE_UJ = 262_143_328_850


def write_zone(root: Path, zone: str, name: str, energy_uj: int) -> Path:
    """One powercap zone."""
    folder = root / "sys/class/powercap" / zone
    folder.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", RANGE_UJ)):
        (folder / file).write_text(f"{text}\n")
    return folder


def write_chip(root: Path, number: int, name: str, rails: dict[str, tuple[int, int]]) -> Path:
    """One hwmon chip; rails give milliamperes and millivolts."""
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for channel, (label, (milliamperes, millivolts)) in enumerate(rails.items(), 1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
    return folder


def test_rapl_sums_packages_and_nothing_else(tmp_path: Path) -> None:
    zones = [write_zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 1_000_000 * n) for n in range(2)]
    core = write_zone(tmp_path, "intel-rapl:0:0", "core", 5)
    psys = write_zone(tmp_path, "intel-rapl:2", "psys", 5)
    meter, source = find_meter("cpu", tmp_path)
    assert meter is not None
    assert source == "RAPL, 2 CPU packages, without memory"
    meter.start()
    (zones[0] / "energy_uj").write_text("2500000\n")
    (zones[1] / "energy_uj").write_text("4000000\n")
    for part in (core, psys):
        (part / "energy_uj").write_text("900000000\n")
    assert meter.stop() == pytest.approx(2.5 + 3.0)


def test_a_rapl_counter_that_began_anew_is_counted_on(tmp_path: Path) -> None:
    zone = write_zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 300_000)
    meter = RaplMeter([zone])
    meter.start()
    (zone / "energy_uj").write_text("700000\n")
    assert meter.stop() == pytest.approx(1.0)


def test_what_only_root_may_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read = Path.read_text

    def refuse(path: Path, *args: Any, **kwargs: Any) -> str:  # noqa: ANN401  tests run as root, who may
        if path == zone / "energy_uj":
            raise PermissionError
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter, reason = find_meter("cpu", tmp_path)
    assert meter is None
    assert "may be read by root alone" in reason


def test_no_counter_has_its_reason(tmp_path: Path) -> None:
    assert find_meter("cpu", tmp_path) == (
        None,
        "no counter: no RAPL package under /sys/class/powercap, as in most virtual machines",
    )
    meter, reason = find_meter("cuda", tmp_path, _no_nvml)
    assert meter is None
    assert "NVML cannot be loaded (no such library)" in reason


def _no_nvml() -> ctypes.CDLL:
    raise OSError("no such library")


def test_a_damaged_counter_has_its_reason(tmp_path: Path) -> None:
    zone = write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").write_text("many\n")
    meter, reason = find_meter("cpu", tmp_path)
    assert meter is None
    assert "cannot be read" in reason


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_jetson_is_measured_by_the_rail_of_the_whole_module(tmp_path: Path, device: str) -> None:
    write_chip(tmp_path, 0, "tmp451", {"VDD_IN": (99_000, 99_000)})
    write_chip(
        tmp_path,
        3,
        "ina3221",
        {"VDD_IN": (2000, 5000), "VDD_CPU_GPU_CV": (800, 5000), "VDD_SOC": (400, 5000)},
    )
    meter, source = find_meter(device, tmp_path)
    assert source == "INA3221, rail VDD_IN"
    assert isinstance(meter, Ina3221Meter)
    assert meter.watts() == pytest.approx(10.0)


def test_an_agx_orin_sums_its_rails(tmp_path: Path) -> None:
    one = write_chip(tmp_path, 1, "ina3221", {"VDD_GPU_SOC": (1000, 20_000), "VDD_CPU_CV": (500, 20_000)})
    (one / "in7_label").write_text("sum of shunt voltages\n")
    (one / "in7_input").write_text("3\n")
    write_chip(tmp_path, 2, "ina3221", {"VIN_SYS_5V0": (1000, 5000)})
    meter, source = find_meter("cuda", tmp_path)
    assert source == "INA3221, rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0"
    assert isinstance(meter, Ina3221Meter)
    assert meter.watts() == pytest.approx(20 + 10 + 5)


def test_power_is_summed_over_the_time_that_passes(tmp_path: Path) -> None:
    chip = write_chip(tmp_path, 0, "ina3221", {"VDD_IN": (2000, 5000)})
    meter, _ = find_meter("cpu", tmp_path)
    assert meter is not None
    began_s = time.monotonic()
    meter.start()
    inside_s = time.monotonic()
    time.sleep(0.3)
    least_s = time.monotonic() - inside_s
    joules = meter.stop()
    assert 10 * 0.8 * least_s < joules <= 10 * (time.monotonic() - began_s)
    meter.start()
    (chip / "curr1_input").unlink()
    with pytest.raises(BackendError, match="curr1_input cannot be read"):
        meter.stop()


class CountingNvml:
    """NVML's four functions, with a GPU that takes 250 mJ between two questions."""

    def __init__(self, code: int = 0) -> None:
        self._code = code
        self._millijoules: Iterator[int] = iter(range(10_000, 10**9, 250))

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: object) -> int:
        return 0 if index == 0 else 2

    def nvmlDeviceGetTotalEnergyConsumption(self, device: object, value: Any) -> int:  # noqa: ANN401  byref
        value._obj.value = next(self._millijoules)
        return self._code


def test_nvml_counts_millijoules(tmp_path: Path) -> None:
    meter, source = find_meter("cuda", tmp_path, CountingNvml)  # type: ignore[arg-type]
    assert meter is not None
    assert source == "NVML, the GPU alone"
    meter.start()
    assert meter.stop() == pytest.approx(0.25)


def test_a_gpu_without_a_counter_has_its_reason(tmp_path: Path) -> None:
    meter, reason = find_meter("cuda", tmp_path, lambda: CountingNvml(3))  # type: ignore[arg-type, return-value]
    assert meter is None
    assert "error 3" in reason


def test_joules_of_a_call_are_the_mean_of_several(tmp_path: Path) -> None:
    zone = write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        (zone / "energy_uj").write_text(f"{calls * 1_500_000}\n")
        time.sleep(0.01)

    assert joules_of(RaplMeter([zone]), call, least_s=0.05) == pytest.approx(1.5)
    assert 1 < calls <= 6
    assert joules_of(RaplMeter([zone]), call, least_s=0.0) == pytest.approx(1.5)
