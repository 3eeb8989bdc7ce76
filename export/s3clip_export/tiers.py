"""The CPU tiers of a bundle: OpenVINO in bfloat16, and with int8 weights in the encoder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from s3clip_calib.columns import write_int8
from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference.backends.openvino import openvino_problem
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.gate import broken_bounds, check_reference
from s3clip_runtime.inference.manifest import PLAIN, Artefact, Manifest, Target
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.replace import replaced_bundle

BF16 = Target("openvino", "bf16")
INT8 = Target("openvino", "int8")


def check_tiers(wanted: Collection[Target]) -> None:
    """Find out before minutes of work whether this machine can prove these tiers.

    Raises:
        BackendError: OpenVINO is missing or the CPU lacks the instructions.
    """
    for target in wanted:
        problem = openvino_problem(target.precision)
        if problem is not None:
            raise BackendError(f"target {target} cannot be proven on this machine: {problem}")


def add_tiers(folder: Path, manifest: Manifest, wanted: Collection[Target]) -> Manifest:
    """The manifest of a draft with these tiers in the place of any that it had.

    They use the FP32 files; the int8 tier's encoder is written anew, a quarter of the size.

    Raises:
        BundleError: the encoder has no layer that int8 could serve.
    """
    plain = [a for a in manifest.artefacts if a.target == PLAIN]
    added: list[Artefact] = []
    for target in wanted:
        for artefact in plain:
            changes: dict[str, object] = {"backend": target.backend, "precision": target.precision}
            if target == INT8 and artefact.role == "encode":
                path = folder / "encode.int8.onnx"
                write_int8(folder / artefact.file, path)
                changes |= {"file": path.name, "sha256": sha256_file(path), "bytes": path.stat().st_size}
            added.append(artefact.model_copy(update=changes))
    others = tuple(a for a in manifest.artefacts if a.target not in wanted)
    return manifest.changed(artefacts=(*others, *added))


def add_proven_tiers(folder: Path, wanted: Collection[Target]) -> tuple[Proof, ...]:
    """Give a bundle these tiers, proven on this machine against its own reference. Needs no PyTorch.

    The bundle is replaced when that is done; whatever fails before leaves it as it was.

    Args:
        folder: of a bundle with a reference.
        wanted: of `BF16` and `INT8`.

    Raises:
        BundleError: it has no reference, or a tier misses a bound.
        BackendError: this machine cannot run a tier.
    """
    bundle = Bundle.draft(folder)
    if "reference" not in bundle.manifest.attachments:
        raise BundleError(
            f"bundle {folder}: holds no reference to prove CPU tiers with; export it with --reference, or "
            "with --bf16 and --int8"
        )
    check_tiers(wanted)
    with replaced_bundle(folder) as staging:
        manifest = add_tiers(staging, bundle.manifest, wanted)
        write_manifest(staging, manifest)
        proofs = []
        for target in wanted:
            proof = check_reference(Bundle.draft(staging), target, "cpu")
            faults = broken_bounds(proof)
            if faults:
                raise BundleError(f"bundle {folder}: {target} differs from PyTorch: {'; '.join(faults)}")
            proofs.append(proof)
        names = {str(target) for target in wanted}
        others = tuple(proof for proof in manifest.proofs if proof.target not in names)
        write_manifest(staging, manifest.changed(proofs=(*others, *proofs)))
        Bundle.open(staging)
    return tuple(proofs)
