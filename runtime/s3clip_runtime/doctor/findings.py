"""All rules over a machine. Every rule is a pure function of the record: no rule looks for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from s3clip_runtime.doctor import (
    driver_rules,
    jetson_rules,
    onnxruntime_rules,
    openvino_rules,
    system_rules,
    tensorrt_rules,
)
from s3clip_runtime.doctor.finding import Finding
from s3clip_runtime.doctor.machine import Machine

RULES: Final[tuple[Callable[[Machine], Finding | None], ...]] = (
    system_rules.python,
    system_rules.numpy,
    system_rules.av,
    system_rules.opencv,
    system_rules.one_opencv,
    system_rules.room,
    driver_rules.gpu,
    driver_rules.cuda13,
    driver_rules.old_gpu,
    jetson_rules.jetpack,
    jetson_rules.tensorrt_11,
    jetson_rules.tensorrt_missing,
    onnxruntime_rules.one_package,
    onnxruntime_rules.imports,
    onnxruntime_rules.new_enough,
    onnxruntime_rules.provider_without_gpu,
    onnxruntime_rules.cuda_starts,
    onnxruntime_rules.idle_gpu,
    onnxruntime_rules.tensorrt_provider,
    onnxruntime_rules.jetson_wheel,
    openvino_rules.precisions,
    tensorrt_rules.installed,
    tensorrt_rules.without_driver,
    tensorrt_rules.cuda_python,
    tensorrt_rules.rtx,
)


def examine(machine: Machine) -> list[Finding]:
    """What works on the machine and what does not, in the order of the rules."""
    found = [rule(machine) for rule in RULES]
    unread = [
        Finding("note", f"{name} could not be read: {reason}") for name, reason in machine.unread.items()
    ]
    return [finding for finding in found if finding is not None] + unread
