"""A network to a bundle: export, measure, and only then put it in its place."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from pydantic import JsonValue
from tqdm import tqdm

from s3clip.checkpoint import MODEL
from s3clip.config import DataSettings
from s3clip.models.model import S3Clip
from s3clip_export.fp16.convert import read_ranges, write_fp16
from s3clip_export.onnx import OPSET, export_graph, graph_sources
from s3clip_export.origin import Origin
from s3clip_export.proof.bisect import BlockError
from s3clip_export.proof.report import Evidence, Extreme, render_report
from s3clip_export.proof.verify import Trial, begin_trial, prove, shipped_part, stage_blocks, verdict
from s3clip_export.tensorrt.build import WORKSPACE_BYTES
from s3clip_export.tensorrt.engines import add_audited_engines, open_tensorrt
from s3clip_export.tiers import add_tiers, check_tiers
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.bundle import Bundle, attachment_of, write_manifest
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.manifest import Artefact, Contract, Manifest, Role, Target
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.reference import write_reference

SHOWN_NODES = 5
"""Of each graph, in the report's table of the largest activations."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a bundle shall hold beside its FP32 graphs.

    Attributes:
        fp16: FP16 graphs.
        engines: TensorRT engines of the FP16 graphs, built on and for this machine.
        tiers: CPU targets, see `tiers`.
        reference: tracklets whose crops and PyTorch's answers are kept, for s3clip-doctor on the device.
        tracklets: about how many the proofs are measured on.
        workspace_bytes: most device memory that the builder of engines may plan with.
    """

    fp16: bool = False
    engines: bool = False
    tiers: tuple[Target, ...] = ()
    reference: int = 16
    tracklets: int = 64
    workspace_bytes: int = WORKSPACE_BYTES


def export(origin: Origin, out: Path, *, data: DataSettings, wanted: Wanted) -> tuple[Proof, ...]:
    """Write the bundle of a network to `out`, or nothing.

    Args:
        origin: the network.
        out: the bundle's folder; must not exist.
        data: whose test split proves it.
        wanted: what goes into it.

    Raises:
        BundleError: `out` exists, a graph breaks the contract, or a proof misses a bound.
        BackendError: engines or CPU tiers were asked for and cannot be made here.
    """
    if out.exists():
        raise BundleError(f"bundle {out}: exists already; choose another folder or delete it")
    if wanted.engines:
        open_tensorrt()  # found out before minutes of work, not after
    check_tiers(wanted.tiers)
    model = origin.model
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        trial = begin_trial(model, data, wanted.tracklets, staging)
        manifest = export_graphs(model, staging, name=out.name, training=origin.training)
        manifest = _add_targets(staging, manifest, trial, wanted)
        write_manifest(staging, manifest)
        manifest = prove_all(Bundle.draft(staging), trial, model)
        _finish(staging, manifest, trial, wanted.reference)
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest.proofs


def find_run(bundle: Bundle) -> Path:
    """The run below `runs/` that a bundle was exported from, told by its weights.

    Raises:
        BundleError: there is none.
    """
    wanted = bundle.manifest.training.get("model_sha256")
    for file in sorted(Path("runs").glob(f"*/{MODEL}")):
        if sha256_file(file) == wanted:
            return file.parent
    raise BundleError(
        f"bundle {bundle.folder}: no run below runs/ has the weights that it was exported from; name its run "
        "with --run RUN, or its files with --vsla and --sr"
    )


def verify_bundle(bundle: Bundle, origin: Origin, data: DataSettings, tracklets: int) -> tuple[Proof, ...]:
    """Prove a bundle again on other tracklets, and write its new proofs and report.

    Args:
        bundle: of `Bundle.draft`.
        origin: the network that it was exported from.
        data: whose test split is used.
        tracklets: about how many.

    Raises:
        BundleError: the bundle is of another network, or a proof misses a bound: nothing is written then.
        BackendError: a target cannot run on this machine.
    """
    for key in ("model_sha256", "checkpoints", "super_resolver"):
        theirs, ours = bundle.manifest.training.get(key), origin.training.get(key)
        if theirs != ours:
            raise BundleError(
                f"bundle {bundle.folder}: was exported from another network, its {key} is {theirs} and not "
                f"{ours}; name the run or the files that it was exported from"
            )
    with tempfile.TemporaryDirectory(prefix="s3clip-verify-") as scratch:
        trial = begin_trial(origin.model, data, tracklets, Path(scratch))
        manifest = prove_all(bundle, trial, origin.model)
    write_manifest(bundle.folder, manifest)
    old = bundle.manifest.attachments.get("report")
    if old is not None and old != manifest.attachments["report"]:
        (bundle.folder / old.file).unlink(missing_ok=True)
    return manifest.proofs


def prove_all(bundle: Bundle, trial: Trial, model: S3Clip) -> Manifest:
    """Prove every target, write the report into the folder, and return the manifest with both.

    The report's name holds its hash: the manifest changes from one valid report to another in one step.

    Raises:
        BundleError: a proof misses a bound; says where the error enters. The folder is as before.
    """
    evidence = []
    for target in tqdm(bundle.targets, desc="prove", unit="target"):
        proof, cosine = prove(bundle.folder, target, trial)
        fault = verdict(bundle, target, proof, trial, model)
        if fault is not None:
            raise BundleError(f"bundle {bundle.manifest.name}: {fault}")
        evidence.append(Evidence(target, proof, cosine, _blocks(bundle, target, trial, model)))
    proven = bundle.manifest.model_copy(update={"proofs": tuple(one.proof for one in evidence)})
    extremes = [] if "range_audit" not in proven.attachments else _extremes(bundle)
    page = render_report(proven, evidence, extremes, synthetic=trial.synthetic).encode()
    file = bundle.folder / f"report-{hashlib.sha256(page).hexdigest()[:8]}.html"
    file.write_bytes(page)
    attachments = {**proven.attachments, "report": attachment_of(file)}
    return proven.model_copy(update={"attachments": attachments})


def _extremes(bundle: Bundle) -> list[Extreme]:
    """The nodes of each graph with the largest activations."""
    ranges = read_ranges(bundle.folder, bundle.manifest)
    return [
        Extreme(role, node.node, node.op, node.largest, node.node in ranges.kept[role])
        for role, audit in ranges.graphs.items()
        for node in audit.nodes[:SHOWN_NODES]
    ]


def _blocks(bundle: Bundle, target: Target, trial: Trial, model: S3Clip) -> dict[Role, list[BlockError]]:
    if target.backend != "onnx":
        return {}
    return {
        role: stage_blocks(bundle.file(role, target), role, trial.reference, model) for role in get_args(Role)
    }


def _add_targets(folder: Path, manifest: Manifest, trial: Trial, wanted: Wanted) -> Manifest:
    if wanted.fp16 or wanted.engines:
        manifest = write_fp16(folder, manifest, trial.reference.clips)
    if wanted.engines:
        manifest = add_audited_engines(folder, manifest, "fp16", wanted.workspace_bytes)
    return add_tiers(folder, manifest, wanted.tiers)


def _finish(folder: Path, manifest: Manifest, trial: Trial, kept: int) -> None:
    """Write `kept` clips of the reference, and the manifest; then read the bundle as a user would."""
    if kept:
        write_reference(trial.file, shipped_part(trial.reference, kept))
        reference = attachment_of(trial.file)
        attachments = {**manifest.attachments, "reference": reference}
        manifest = manifest.model_copy(update={"attachments": attachments})
    else:
        trial.file.unlink()
    write_manifest(folder, manifest)
    Bundle.open(folder)


def export_graphs(model: S3Clip, folder: Path, *, name: str, training: dict[str, JsonValue]) -> Manifest:
    """Write the three FP32 graphs into an empty folder; the manifest, without proofs, is not written."""
    artefacts = []
    for source in tqdm(graph_sources(model), desc="export", unit="graph"):
        path = folder / f"{source.role}.onnx"
        export_graph(source, path)
        artefacts.append(
            Artefact(
                role=_role(source.role),
                file=path.name,
                precision="fp32",
                backend="onnx",
                opset=OPSET,
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
            )
        )
    width, out_dim = model.visual.config.width, model.visual.config.out_dim
    return Manifest(
        name=name,
        created=datetime.now(UTC),
        s3clip_version=version("s3clip"),
        embedding_space=embedding_space(model),
        contract=Contract.current(width, width + out_dim, model.visual.config.patches),
        artefacts=tuple(artefacts),
        training=training,
        proofs=(),
    )


def embedding_space(model: S3Clip) -> str:
    """SHA-256 over the encoder's weights: names, shapes and float32 values in sorted order.

    Taken from PyTorch, so that graphs of other precisions of the same model share the space.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.visual.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _role(text: str) -> Role:
    return next(role for role in get_args(Role) if role == text)
