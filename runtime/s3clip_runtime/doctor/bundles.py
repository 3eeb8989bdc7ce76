"""Which targets of a bundle run on this machine, and whether they still rank like the PyTorch model here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from s3clip_runtime.doctor import cures
from s3clip_runtime.doctor.finding import Finding
from s3clip_runtime.doctor.machine import Machine
from s3clip_runtime.errors import BundleError, S3ClipError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.cpus import lacking_instructions
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.manifest import Engine, Target

Check = tuple[Target, str]
"""A target and the device that it is to run on."""


def examine_bundle(
    folder: Path, machine: Machine, say: Callable[[str], None]
) -> tuple[list[Finding], list[Proof]]:
    """Open the bundle, fit its targets to the machine, and run those that fit.

    Args:
        folder: the bundle.
        machine: where it is to run.
        say: told what is being measured: a large model takes minutes on a CPU.

    Returns:
        The findings, and the proofs of what was measured.
    """
    try:
        bundle = Bundle.open(folder)
    except BundleError as error:
        return [Finding("problem", str(error), "s3clip cannot use it", f"s3clip-export RUN -o {folder}")], []
    findings: list[Finding] = []
    checks: list[Check] = []
    for target in bundle.targets:
        obstacle = obstacle_of(target, _engines(bundle, target), machine, folder)
        if obstacle is not None:
            findings.append(obstacle)
        else:
            checks += [(target, device) for device in devices_of(target, machine)]
    measured, proofs = _check_targets(bundle, checks, say)
    return findings + measured, proofs


def obstacle_of(target: Target, engines: Sequence[Engine], machine: Machine, folder: Path) -> Finding | None:
    """Why the target cannot run on the machine; None where it can."""
    if target.backend == "onnx":
        if machine.onnxruntime.error is None:
            return None
        why = f"onnxruntime cannot be imported: {machine.onnxruntime.error}"
        return Finding("problem", f"{target} cannot run here", why, cures.CPU_EXTRA)
    if target.backend == "openvino":
        lacking = lacking_instructions(target.precision, machine.instructions)
        if lacking is not None:
            return Finding("note", f"{target} cannot run here", f"{lacking}; the plain graphs run on the CPU")
        if machine.openvino.error is None:
            return None
        why = f"openvino cannot be imported: {machine.openvino.error}"
        return Finding("problem", f"{target} cannot run here", why, cures.OPENVINO_EXTRA)
    made_for = f"{target} (for {engines[0].gpu})"
    if machine.gpu is None:
        why = f"no GPU answers: {machine.driver.absence}; the ONNX graphs run on the CPU"
        return Finding("note", f"{made_for} cannot run here", why)
    if machine.tensorrt.error is not None:
        why = f"TensorRT cannot be imported: {machine.tensorrt.error}"
        return Finding("problem", f"{made_for} cannot run here", why, cures.tensorrt(machine))
    here = {
        "TensorRT": (str(machine.tensorrt.version), {engine.tensorrt for engine in engines}),
        "compute capability": (
            machine.gpu.compute_capability,
            {engine.compute_capability for engine in engines},
        ),
    }
    faults = [
        f"{name} {' and '.join(sorted(built))} built it, {found} is here"
        for name, (found, built) in here.items()
        if built != {found}
    ]
    if not faults:
        return None
    return Finding(
        "problem",
        f"{made_for} cannot run here: {'; '.join(faults)}",
        "an engine runs only with the TensorRT and on the kind of GPU that it was built with",
        export_command(target, folder),
    )


def devices_of(target: Target, machine: Machine) -> tuple[str, ...]:
    """Where a target that fits can run."""
    if target.backend == "tensorrt":
        return ("cuda",)
    if target.backend == "openvino":
        return ("cpu",)
    session = machine.cuda_session
    return ("cpu", "cuda") if session is not None and session.device == "cuda" else ("cpu",)


def finding_of(proof: Proof, folder: Path) -> Finding:
    """The figures of a proof against their bounds."""
    from s3clip_runtime.inference.gate import broken_bounds, figures

    bounded = figures(proof)
    stage = max(proof.stages, key=lambda name: proof.stages[name] / max(proof.bounds.get(name, 1.0), 1e-12))
    shown = {
        "cosine min": ("cosine_min", proof.cosine_min, ".6f"),
        "top-1": ("top1_agreement", proof.top1_agreement, ".3f"),
        f"largest stage error ({stage})": (stage, proof.stages[stage], ".2g"),
    }
    words = [
        f"{label} {value:{style}}" + (f" (bound {proof.bounds[name]:g})" if name in bounded else "")
        for label, (name, value, style) in shown.items()
    ]
    what = f"{proof.target} on {proof.device}, {proof.tracklets} tracklets: {', '.join(words)}"
    faults = broken_bounds(proof)
    if not faults:
        return Finding("ok", what)
    cure = export_command(Target.parse(proof.target), folder)
    return Finding(
        "problem", what, f"it does not rank like the PyTorch model here: {'; '.join(faults)}", cure
    )


def export_command(target: Target, folder: Path) -> str:
    """Make the graphs of this target again: engines on this machine, others where the run is."""
    if target.backend == "tensorrt":
        return f"s3clip-export engines {folder}"
    if target.backend == "openvino":
        return f"s3clip-export tiers {folder} --{target.precision}"
    if target.quantised:
        return f"s3clip-calib {folder} DATA"
    return f"s3clip-export RUN -o {folder}{' --fp16' * (target.precision == 'fp16')}"


def _check_targets(
    bundle: Bundle, checks: Sequence[Check], say: Callable[[str], None]
) -> tuple[list[Finding], list[Proof]]:
    """Runs the gate where the bundle brings a reference. The gate measures in processes of its own."""
    if "reference" not in bundle.manifest.attachments:
        fits = [Finding("ok", f"{target} fits this machine ({device})") for target, device in checks]
        unmeasured = Finding(
            "note",
            f"bundle {bundle.folder} holds no reference, so its figures were not measured here",
            "it was exported with --reference 0",
            f"s3clip-export verify {bundle.folder} DATA",
        )
        return [*fits, unmeasured], []
    from s3clip_runtime.inference.gate import check_reference

    findings: list[Finding] = []
    proofs: list[Proof] = []
    for target, device in checks:
        say(f"measuring {target} on {device} ...")
        try:
            proof = check_reference(bundle, target, device)
        except S3ClipError as error:
            why = "it fits by its versions, but does not run"
            findings.append(Finding("problem", str(error), why, export_command(target, bundle.folder)))
            continue
        proofs.append(proof)
        findings.append(finding_of(proof, bundle.folder))
    return findings, proofs


def _engines(bundle: Bundle, target: Target) -> list[Engine]:
    def found() -> Iterator[Engine]:
        for artefact in bundle.manifest.artefacts:
            if artefact.target == target and artefact.engine is not None:
                yield artefact.engine

    return list(found())
