"""A finished training run to a bundle: export, measure, and only then put it in its place."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast, get_args

import torch
from pydantic import JsonValue
from tqdm import tqdm

from s3clip.checkpoint import MODEL, read_origins, read_run
from s3clip.models.model import S3Clip
from s3clip_export.bisect import BlockError
from s3clip_export.onnx import OPSET, export_graph, graph_sources
from s3clip_export.report import Evidence, render_report
from s3clip_export.verify import Trial, begin_trial, prove, shipped_part, stage_blocks, verdict
from s3clip_runtime.errors import BundleError, ConfigError
from s3clip_runtime.inference.bundle import (
    Artefact,
    Bundle,
    Contract,
    Manifest,
    Proof,
    Role,
    Target,
    attachment_of,
    sha256_file,
    write_manifest,
)
from s3clip_runtime.inference.reference import write_reference


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a bundle shall hold beside its FP32 graphs.

    Attributes:
        fp16: FP16 graphs.
        engines: TensorRT engines of the FP16 graphs, built on and for this machine.
        reference: tracklets whose crops and PyTorch's answers are kept, for s3clip-doctor on the device.
        tracklets: about how many the proofs are measured on.
    """

    fp16: bool = False
    engines: bool = False
    reference: int = 16
    tracklets: int = 64


def export_run(run: Path, out: Path, *, data: Path | None, wanted: Wanted) -> tuple[Proof, ...]:
    """Write the bundle of a run to `out`, or nothing.

    Args:
        run: folder of a finished s3clip-train.
        out: the bundle's folder; must not exist.
        data: root of a data set whose test split gives the crops; None takes the run's own.
        wanted: what goes into it.

    Raises:
        ConfigError: the run has no super-resolver.
        BundleError: `out` exists, a graph breaks the contract, or a proof misses a bound.
        BackendError: engines were asked for and cannot be built here.
    """
    if out.exists():
        raise BundleError(f"bundle {out}: exists already; choose another folder or delete it")
    config, model, results = read_run(run)
    if model.direct:
        raise ConfigError(
            f"run {run}: sr.kind is none, and a bundle needs a super-resolver for LR crops; "
            "export a run with another sr.kind"
        )
    training: dict[str, JsonValue] = {
        "config": json.loads(config.model_dump_json()),
        # without paths: they are the trainer's own
        "weights_sha256": cast(JsonValue, sorted(read_origins(run).values())),
        "model_sha256": sha256_file(run / MODEL),
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        trial = begin_trial(model, config.data.at(data), wanted.tracklets, staging)
        manifest = export_graphs(model, staging, name=out.name, training=training)
        manifest = _add_targets(staging, manifest, trial, wanted)
        write_manifest(staging, manifest)
        manifest = prove_all(Bundle.draft(staging), trial, model)
        _finish(staging, manifest, trial, wanted.reference)
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest.proofs


def find_run(bundle: Bundle, run: Path | None) -> Path:
    """The run that a bundle was exported from: `run`, or the one below `runs/` with the bundle's weights.

    Raises:
        BundleError: there is none with these weights.
    """
    wanted = bundle.manifest.training.get("model_sha256")
    candidates = sorted(Path("runs").glob(f"*/{MODEL}")) if run is None else [run / MODEL]
    for file in candidates:
        if file.is_file() and sha256_file(file) == wanted:
            return file.parent
    where = "below runs/" if run is None else f"in {run}"
    raise BundleError(
        f"bundle {bundle.folder}: was exported from a {MODEL} with SHA-256 {str(wanted)[:12]}..., and there "
        f"is none {where}; name its run with --run RUN"
    )


def verify_bundle(bundle: Bundle, run: Path, data: Path, tracklets: int) -> tuple[Proof, ...]:
    """Prove a bundle again on other tracklets, and write its new proofs and report.

    Args:
        bundle: of `Bundle.draft`.
        run: that it was exported from.
        data: root of a data set in the layout of the run's own; its test split gives the crops.
        tracklets: about how many.

    Raises:
        BundleError: a proof misses a bound: nothing is written then.
        BackendError: a target cannot run on this machine.
    """
    config, model, _ = read_run(run)
    with tempfile.TemporaryDirectory(prefix="s3clip-verify-") as scratch:
        trial = begin_trial(model, config.data.at(data), tracklets, Path(scratch))
        manifest = prove_all(bundle, trial, model)
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
    page = render_report(proven, evidence, [], synthetic=trial.synthetic).encode()
    file = bundle.folder / f"report-{hashlib.sha256(page).hexdigest()[:8]}.html"
    file.write_bytes(page)
    attachments = {**proven.attachments, "report": attachment_of(file)}
    return proven.model_copy(update={"attachments": attachments})


def _blocks(bundle: Bundle, target: Target, trial: Trial, model: S3Clip) -> dict[Role, list[BlockError]]:
    if target.backend != "onnx":
        return {}
    return {
        role: stage_blocks(bundle.file(role, target), role, trial.reference, model) for role in get_args(Role)
    }


def _add_targets(folder: Path, manifest: Manifest, trial: Trial, wanted: Wanted) -> Manifest:
    if wanted.fp16 or wanted.engines:
        raise NotImplementedError
    if wanted.engines:
        raise NotImplementedError
    return manifest


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
