"""openvino: faster than onnxruntime on CPUs that compute in bfloat16 and int8."""

from __future__ import annotations

from s3clip_runtime.doctor import cures
from s3clip_runtime.doctor.finding import Finding
from s3clip_runtime.doctor.machine import Machine
from s3clip_runtime.inference.cpus import lacking_instructions

_TIERS = ("bf16", "int8")


def precisions(machine: Machine) -> Finding | None:
    """What it would compute in here; silent where neither the package nor a fitting CPU is there."""
    able = [tier for tier in _TIERS if lacking_instructions(tier, machine.instructions) is None]
    found = machine.openvino
    if found.missing:
        if not able or machine.gpu is not None:
            return None
        what = f"this CPU computes in {', '.join(able)}, and openvino is not installed"
        return Finding("note", what, "bundles with such targets run in float32 here", cures.OPENVINO_EXTRA)
    if found.error is not None:
        what = f"openvino cannot be imported: {found.error}"
        return Finding("problem", what, "OpenVINO's targets cannot run", cures.OPENVINO_EXTRA)
    if able:
        return Finding("ok", f"openvino {found.version}, this CPU computes in {', '.join(able)}")
    why = lacking_instructions("bf16", machine.instructions) or ""
    return Finding("note", f"openvino {found.version} is not used: {why}")
