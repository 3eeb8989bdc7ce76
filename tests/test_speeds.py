"""What was measured on a machine decides what is run on it, and on no other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiny_bundle import manifest_of, with_targets, write_tiny_bundle

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference import speeds, targets
from s3clip_runtime.inference.backends.cuda import Gpu
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.cpus import cpu_model
from s3clip_runtime.inference.evidence import Speed
from s3clip_runtime.inference.manifest import PLAIN, Target
from s3clip_runtime.inference.speeds import Place, speeds_here, with_speeds
from s3clip_runtime.inference.targets import choose_target

CORES = len(os.sched_getaffinity(0))
GPU = Gpu("NVIDIA L4", "8.9", "13.0 (580.95.05)")
Change = Callable[[Speed], Speed]


def changed(**fields: object) -> Change:
    return lambda speed: speed.model_copy(update=fields)


HERE: Change = changed()
OTHER_CPU, OTHER_CORES, OTHER_GPU = (
    changed(cpu="Another CPU"),
    changed(cores=CORES + 1),
    changed(gpu="NVIDIA T4"),
)


def speed(target: str, total_ms: float, device: str = "cpu") -> Speed:
    """A speed of this machine; its LR tracklet takes three quarters of the time."""
    return Speed(
        target=target,
        device="cuda" if device == "cuda" else "cpu",
        cpu=cpu_model(),
        cores=CORES,
        gpu=GPU.name if device == "cuda" else None,
        lr_ms=0.75 * total_ms,
        hr_ms=0.25 * total_ms,
        measured=datetime(2026, 12, 1, tzinfo=UTC),
    )


def write_bundle(folder: Path, held: Sequence[str], measured: Sequence[Speed]) -> Bundle:
    """A real bundle with these targets beside the plain one, and these speeds."""
    write_tiny_bundle(folder)
    manifest = with_targets(manifest_of(folder), *map(Target.parse, held))
    write_manifest(folder, with_speeds(manifest, measured))
    return Bundle.open(folder)


@dataclass(frozen=True)
class Row:
    """What a bundle holds beside onnx-fp32, what was measured, and what must be run and said."""

    name: str
    held: tuple[str, ...]
    took: Mapping[str, float]
    expected: str
    said: tuple[str, ...] = ()
    where: Change = HERE


TIERS = ("openvino-bf16", "openvino-int8")
INT8_WON = {"openvino-bf16": 30, "openvino-int8": 20}
FP16_WON = {"tensorrt-fp16": 9, "tensorrt-int8-fp16": 12}
INT8_WON_ON_GPU = {"tensorrt-fp16": 12, "tensorrt-int8-fp16": 9}
NOT_BESIDE_BF16 = (
    "is left unused: not measured beside openvino-bf16 on this machine, which s3clip-bench run does"
)
ON_CPU = [
    Row("nothing held", (), {}, "onnx-fp32", ("onnx-fp32 is the first choice on cpu",)),
    Row("unmeasured", TIERS, {}, "openvino-bf16", (f"openvino-int8 {NOT_BESIDE_BF16}",)),
    Row(
        "faster int8",
        TIERS,
        {"onnx-fp32": 1500, "openvino-bf16": 1000.5, "openvino-int8": 898},
        "openvino-int8",
        (
            "openvino-int8 took 898.0 ms, openvino-bf16 took 1000.5 ms, onnx-fp32 took 1500.0 ms",
            "for an LR and an HR tracklet here",
        ),
    ),
    Row(
        "slower int8",
        TIERS,
        {"onnx-fp32": 60, "openvino-bf16": 21, "openvino-int8": 25},
        "openvino-bf16",
        ("openvino-bf16 took 21.0 ms, openvino-int8 took 25.0 ms",),
    ),
    Row("equal int8", TIERS, {"openvino-bf16": 20, "openvino-int8": 20}, "openvino-bf16"),
    Row(
        "int8 that was not measured",
        TIERS,
        {"onnx-fp32": 60, "openvino-bf16": 21},
        "openvino-bf16",
        (f"openvino-int8 {NOT_BESIDE_BF16}",),
    ),
    Row(
        "int8 without what it must beat",
        TIERS,
        {"openvino-int8": 25},
        "openvino-bf16",
        (f"openvino-int8 {NOT_BESIDE_BF16}",),
    ),
    Row(
        "int8 that beat the slow one alone",
        TIERS,
        {"onnx-fp32": 60, "openvino-int8": 25},
        "openvino-bf16",
        (f"openvino-int8 {NOT_BESIDE_BF16}",),
    ),
    Row("bfloat16 slower than float32", TIERS[:1], {"onnx-fp32": 20, "openvino-bf16": 25}, "onnx-fp32"),
    Row("float32 alone was measured", TIERS[:1], {"onnx-fp32": 20}, "openvino-bf16"),
    Row("a fast float16", ("onnx-fp16",), {"onnx-fp32": 20, "onnx-fp16": 15}, "onnx-fp16"),
    Row("float16 is no first choice", ("onnx-fp16",), {}, "onnx-fp32"),
    Row(
        "two kinds of int8",
        (*TIERS, "onnx-int8"),
        {"openvino-bf16": 30, "openvino-int8": 25, "onnx-int8": 20},
        "onnx-int8",
    ),
    Row("onnx-int8 without OpenVINO's", ("onnx-int8",), {"onnx-fp32": 30, "onnx-int8": 20}, "onnx-int8"),
    Row(
        "several unmeasured",
        (*TIERS, "onnx-int8"),
        {},
        "openvino-bf16",
        ("onnx-int8 and openvino-int8 are left unused: not measured beside openvino-bf16",),
    ),
    Row("another CPU", TIERS, INT8_WON, "openvino-bf16", where=OTHER_CPU),
    Row("another count", TIERS, INT8_WON, "openvino-bf16", where=OTHER_CORES),
    Row(
        "a GPU's speeds",
        TIERS,
        INT8_WON,
        "openvino-bf16",
        where=changed(device="cuda", gpu=GPU.name),
    ),
]


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize("row", ON_CPU, ids=lambda row: row.name)
def test_the_choice_on_a_cpu(row: Row, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "openvino_problem", lambda precision: None)  # as on the newest CPUs
    monkeypatch.setattr(targets, "choose_device", lambda asked: ("cpu", "no GPU"))
    bundle = write_bundle(tmp_path, row.held, [row.where(speed(name, ms)) for name, ms in row.took.items()])
    choice = choose_target(bundle, device, None)
    assert (str(choice.target), choice.device) == (row.expected, "cpu")
    for words in row.said:
        assert words in choice.reason


@pytest.mark.parametrize(
    ("took", "expected"),
    [
        ({}, "onnx-fp32"),
        ({"openvino-bf16": 30, "openvino-int8": 20, "onnx-fp32": 40, "onnx-int8": 60}, "onnx-fp32"),
        ({"openvino-bf16": 30, "openvino-int8": 20, "onnx-fp32": 40, "onnx-int8": 35}, "onnx-int8"),
    ],
)
def test_a_winner_that_cannot_run_any_more_is_not_taken(
    took: dict[str, float], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO was uninstalled since it won."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    held = ("openvino-bf16", "openvino-int8", "onnx-int8")
    bundle = write_bundle(tmp_path, held, [speed(name, ms) for name, ms in took.items()])
    choice = choose_target(bundle, "cpu", None)
    assert str(choice.target) == expected
    for tier in ("openvino-bf16", "openvino-int8"):
        assert f"{tier} is left unused: " in choice.reason
        assert f"{tier} took" not in choice.reason


ENGINES = ("onnx-fp16", "tensorrt-fp16", "onnx-int8-fp16", "tensorrt-int8-fp16")
ON_CUDA = [
    Row(
        "unmeasured engines",
        ENGINES,
        {},
        "tensorrt-fp16",
        ("tensorrt-int8-fp16 is left unused: not measured beside tensorrt-fp16 on this machine",),
    ),
    Row("faster int8", ENGINES, INT8_WON_ON_GPU, "tensorrt-int8-fp16"),
    Row("slower int8", ENGINES, FP16_WON, "tensorrt-fp16"),
    Row("another GPU", ENGINES, INT8_WON_ON_GPU, "tensorrt-fp16", where=OTHER_GPU),
    Row("speeds of the CPU", ENGINES, INT8_WON_ON_GPU, "tensorrt-fp16",
        where=changed(device="cpu", gpu=None)),
    Row("faster fp8", (*ENGINES, "tensorrt-fp8-fp16"),
        {"tensorrt-fp16": 12, "tensorrt-int8-fp16": 9, "tensorrt-fp8-fp16": 8}, "tensorrt-fp8-fp16"),
    Row("float32 and float16", ("tensorrt-fp32", "tensorrt-fp16"), {}, "tensorrt-fp16"),
    Row("a faster float32", ("tensorrt-fp32", "tensorrt-fp16"), {"tensorrt-fp16": 9, "tensorrt-fp32": 8},
        "tensorrt-fp32"),
    Row("no engine", ("onnx-fp16", "onnx-int8-fp16"), {}, "onnx-fp16"),
    Row("no engine, faster int8", ("onnx-fp16", "onnx-int8-fp16"), {"onnx-fp16": 9, "onnx-int8-fp16": 8},
        "onnx-int8-fp16"),
    Row("plain graphs alone", (), {}, "onnx-fp32"),
    Row("an 8-bit engine alone", ("tensorrt-int8-fp16",), {}, "onnx-fp32"),
    Row("an 8-bit engine that won", ("tensorrt-int8-fp16",), {"onnx-fp32": 40, "tensorrt-int8-fp16": 9},
        "tensorrt-int8-fp16"),
    Row("OpenVINO's are for CPUs", ("openvino-bf16", "onnx-fp16"), {"openvino-bf16": 1}, "onnx-fp16"),
]  # fmt: skip


@pytest.mark.parametrize("device", ["cuda", "auto"])
@pytest.mark.parametrize("row", ON_CUDA, ids=lambda row: row.name)
def test_the_choice_on_a_gpu(row: Row, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "driver_problem", lambda: None)
    monkeypatch.setattr(targets, "choose_device", lambda asked: ("cuda", "a probe graph ran on it"))
    monkeypatch.setattr(speeds, "gpu", lambda: GPU)
    measured = [row.where(speed(name, ms, "cuda")) for name, ms in row.took.items()]
    choice = choose_target(write_bundle(tmp_path, row.held, measured), device, None)
    assert (str(choice.target), choice.device) == (row.expected, "cuda")
    for words in row.said:
        assert words in choice.reason


def test_an_8_bit_engine_does_not_decide_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ONNX Runtime without CUDA is installed: there is nothing on the GPU that the engine could beat."""
    monkeypatch.setattr(targets, "driver_problem", lambda: None)
    monkeypatch.setattr(targets, "choose_device", lambda asked: ("cpu", "cuda cannot be used"))
    monkeypatch.setattr(speeds, "gpu", lambda: GPU)
    measured = [speed("tensorrt-int8-fp16", 9, "cuda"), speed("onnx-fp32", 40)]
    choice = choose_target(write_bundle(tmp_path, ("tensorrt-int8-fp16",), measured), "auto", None)
    assert choice[:2] == (PLAIN, "cpu")
    assert "tensorrt-int8-fp16 is left unused: what it could be compared with" in choice.reason


def test_speeds_of_a_gpu_that_is_gone_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Gpu:
        raise BackendError("cuda cannot be used: the NVIDIA driver is not installed")

    monkeypatch.setattr(speeds, "gpu", gone)
    bundle = write_bundle(tmp_path, (), [speed("onnx-fp32", 40, "cuda")])
    assert speeds_here(bundle.manifest, "cuda") == {}


def test_a_gpu_is_asked_for_its_name_only_if_that_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def told() -> Gpu:
        asked.append(1)
        return GPU

    monkeypatch.setattr(speeds, "gpu", told)
    bundle = write_bundle(tmp_path, (), [speed("onnx-fp32", 40)])
    assert speeds_here(bundle.manifest, "cpu") == {"onnx-fp32": 40}
    assert speeds_here(bundle.manifest, "cuda") == {}
    assert asked == []
    bundle = write_bundle(tmp_path, (), [speed("onnx-fp32", 30, "cuda")])
    assert speeds_here(bundle.manifest, "cuda") == {"onnx-fp32": 30}
    assert asked == [1]


def test_a_new_speed_replaces_that_of_its_target_and_place_alone(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    kept = [
        speed("openvino-bf16", 1),
        OTHER_CPU(speed("onnx-fp32", 2)),
        OTHER_CORES(speed("onnx-fp32", 3)),
        speed("onnx-fp32", 4, "cuda"),
    ]
    before = with_speeds(manifest_of(tmp_path), [*kept, speed("onnx-fp32", 5)])
    assert len(before.speeds) == 5
    after = with_speeds(before, [speed("onnx-fp32", 6)])
    assert list(after.speeds) == [*kept, speed("onnx-fp32", 6)]
    assert after.schema_version == 5
    assert with_speeds(after, [speed("onnx-fp32", 6)]) == after


def test_this_machine_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    here = Place.here("cpu")
    assert (here.device, here.cores, here.gpu) == ("cpu", CORES, None)
    assert here.cpu in names or not names
    first = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {first})
        assert Place.here("cpu").cores == 1
    finally:
        os.sched_setaffinity(0, before)
    monkeypatch.setattr(speeds, "gpu", lambda: GPU)
    assert Place.here("cuda").gpu == "NVIDIA L4"
