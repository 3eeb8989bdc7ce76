"""`s3clip-doctor`: what works on this machine, what does not, and the command that mends it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.errors import Command

if TYPE_CHECKING:
    from s3clip_runtime.doctor.finding import Finding
    from s3clip_runtime.doctor.machine import Machine
    from s3clip_runtime.inference.evidence import Proof

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
_INDENT = " " * 9


@click.command(name="s3clip-doctor", cls=Command)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also check which targets of this bundle run here, and how well.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything that was read and found as JSON.")
@click.pass_context
def main(ctx: click.Context, bundle: Path | None, as_json: bool) -> None:
    """Check this machine: Python, driver, CUDA, cuDNN, TensorRT, JetPack, onnxruntime, and how they fit.

    Exit code 0 if there is no problem, 1 if there is one.
    """
    from s3clip_runtime.doctor.findings import examine
    from s3clip_runtime.doctor.machine import read_machine

    machine = read_machine()
    findings = examine(machine)
    proofs: list[Proof] = []
    if bundle is not None:
        more, proofs = _examine_bundle(bundle, machine)
        findings += more
    if as_json:
        click.echo(_as_json(machine, findings, proofs))
    else:
        for line in [*_facts(machine), "", *_table(findings), "", _summary(findings)]:
            click.echo(line)
    ctx.exit(1 if _problems(findings) else 0)


def _examine_bundle(folder: Path, machine: Machine) -> tuple[list[Finding], list[Proof]]:
    from s3clip_runtime.doctor.finding import Finding

    try:
        from s3clip_runtime.doctor.bundles import examine_bundle

        return examine_bundle(folder, machine, lambda text: click.echo(text, err=True))
    except ImportError as error:  # the doctor itself needs nothing but the standard library, bundles do
        why = f"a package that bundles need cannot be imported: {error}"
        cure = 'pip install --force-reinstall "s3clip[cpu]"'
        return [Finding("problem", f"bundle {folder} cannot be checked", why, cure)], []


def _facts(machine: Machine) -> Iterator[str]:
    """What was read, a line a subject."""
    place = ", ".join(
        word
        for word in (
            machine.os or machine.system,
            machine.arch,
            machine.glibc and f"glibc {machine.glibc}",
            "in a container" if machine.container else None,
            f"{machine.cores} cores",
            f"{machine.memory_free_mb} MB memory and {machine.disk_free_mb} MB disk free",
        )
        if word
    )
    ort, driver = machine.onnxruntime, machine.driver
    gpus = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in driver.gpus)
    facts = {
        "s3clip": machine.packages.get("s3clip"),
        "Python": f"{machine.python} ({machine.executable})",
        "system": place,
        "JetPack": machine.jetson and f"{machine.jetpack} (L4T {machine.l4t})",
        "driver": driver.kernel and f"{driver.kernel}, up to CUDA {driver.cuda}",
        "GPU": gpus or f"none ({driver.absence})",
        "CUDA": _libraries(machine, "libcudart", "libcublas"),
        "cuDNN": _libraries(machine, "libcudnn"),
        "TensorRT": f"Python module: {machine.tensorrt.version or machine.tensorrt.error}; "
        f"libraries: {_libraries(machine, 'libnvinfer') or 'none'}",
        "onnxruntime": f"{ort.version}: {', '.join(ort.providers)}" if ort.version else ort.error,
        "packages": ", ".join(_packages(machine)),
    }
    for name, fact in facts.items():
        yield f"{name:<12} {fact or 'none'}"


def _libraries(machine: Machine, *stems: str) -> str:
    return ", ".join(
        f"{soname} {library.version or library.error} ({library.place})"
        for soname, library in machine.libraries.items()
        if soname.partition(".")[0] in stems
    )


def _packages(machine: Machine) -> Iterator[str]:
    """All but the many parts of CUDA; --json has those too."""
    for name, version in machine.packages.items():
        if not name.startswith("nvidia-"):
            yield f"{name} {version}"


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{_MARKS[finding.status]:<{len(_INDENT)}}{_one_line(finding.what)}"
        if finding.why:
            yield f"{_INDENT}{_one_line(finding.why)}"
        if finding.cure:
            yield f"{_INDENT}cure: {finding.cure}"


def _one_line(text: str) -> str:
    return " ".join(text.split())  # messages of foreign libraries have line breaks


def _problems(findings: Sequence[Finding]) -> int:
    return sum(finding.status == "problem" for finding in findings)


def _summary(findings: Sequence[Finding]) -> str:
    count = _problems(findings)
    return (
        "No problem was found." if count == 0 else f"{count} problem{'s' * (count > 1)}, see PROBLEM above."
    )


def _as_json(machine: Machine, findings: Sequence[Finding], proofs: Sequence[Proof]) -> str:
    record = {
        "problems": _problems(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "proofs": [proof.model_dump(mode="json") for proof in proofs],
        "machine": dataclasses.asdict(machine),
    }
    return json.dumps(record, indent=2)
