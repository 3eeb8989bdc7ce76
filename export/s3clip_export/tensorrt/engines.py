"""The engines of a bundle: built on the GPU that will run them, and held to the precision of their name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast, get_args

from s3clip.datasets.sizes import cache_home
from s3clip_export.tensorrt.build import WORKSPACE_BYTES, EngineReport, TensorRT, build_engine
from s3clip_export.tensorrt.layers import check_precisions
from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference.backends import cuda
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.gate import broken_bounds, check_reference
from s3clip_runtime.inference.manifest import (
    QUANTISED,
    Artefact,
    Engine,
    Manifest,
    Precision,
    Role,
    Target,
)
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.replace import replaced_bundle
from s3clip_runtime.inference.spec import BATCH_PROFILE, CLIPS_PROFILE

FP8_CAPABILITY = (8, 9)
"""Oldest compute capability, (major, minor), whose tensor cores multiply FP8: Ada's."""


def open_tensorrt(precision: Precision = "fp16") -> tuple[TensorRT, cuda.Gpu]:
    """The installed TensorRT and the GPU that it builds for.

    Raises:
        BackendError: there is no usable driver, the GPU has no kernels of this precision, or TensorRT cannot
            be imported.
    """
    problem = cuda.driver_problem()
    if problem is not None:
        raise BackendError(
            f"TensorRT engines are built on the GPU that runs them, and here none can be used: {problem}; "
            "export on the machine of deployment"
        )
    gpu = cuda.gpu()
    _check_capability(gpu, precision)
    try:
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendError(
            f"tensorrt cannot be imported ({error}); install TensorRT 10.3 or newer as NVIDIA's guide says"
        ) from error
    return cast(TensorRT, module), gpu


def _check_capability(gpu: cuda.Gpu, precision: Precision) -> None:
    if precision != "fp8-fp16":
        return
    if tuple(map(int, gpu.compute_capability.split("."))) < FP8_CAPABILITY:
        raise BackendError(
            f"{precision} engines need compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or newer, "
            f"{gpu.name} has {gpu.compute_capability}; build int8-fp16 or fp16 engines"
        )


def add_engines(
    folder: Path,
    manifest: Manifest,
    precision: Precision,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
    timing_cache: Path | None = None,
    fp32_nodes: Mapping[Role, Collection[str]] | None = None,
) -> Manifest:
    """Build an engine of each ONNX graph of one precision in a draft bundle.

    Args:
        folder: the draft; `ROLE.PRECISION.engine` is written into it.
        manifest: of the draft; must list the ONNX graphs of this precision.
        precision: of the graphs.
        workspace_bytes: most device memory that the builder may plan with.
        timing_cache: file of measured kernels that later builds on this GPU start from; None keeps none.
        fp32_nodes: nodes that the FP16 and the 8-bit graphs keep in FP32 on purpose.

    Returns:
        The manifest with the engines.

    Raises:
        BackendError: no GPU or one without this precision, no TensorRT, a graph is refused, or an engine has
            another precision than asked.
        BundleError: the draft holds no ONNX graphs of this precision, or cannot be written.
    """
    graphs = {a.role: a for a in manifest.artefacts if a.target == Target("onnx", precision)}
    missing = [role for role in get_args(Role) if role not in graphs]
    if missing:
        raise BundleError(
            f"bundle {folder}: holds no {precision} ONNX graph {', '.join(missing)} to build an engine from; "
            f"{_cure(precision)} first"
        )
    trt, gpu = open_tensorrt(precision)
    engines = []
    for role, graph in graphs.items():
        path = folder / f"{role}.{precision}.engine"
        report = build_engine(
            trt,
            folder / graph.file,
            path,
            batches=_profile(role),
            workspace_bytes=workspace_bytes,
            timing_cache=timing_cache,
        )
        try:
            check_precisions(
                report.layers,
                _judged(manifest, graph),
                fp32_nodes=(fp32_nodes or {}).get(role, ()),
                quantised_nodes=report.quantised_nodes,
            )
        except BackendError as error:
            path.unlink()
            raise BackendError(f"{path.name}: {error}") from error
        engines.append(_artefact(role, precision, path, report, trt.__version__, gpu))
    others = tuple(a for a in manifest.artefacts if a.target != Target("tensorrt", precision))
    return manifest.changed(artefacts=(*others, *engines))


def _judged(manifest: Manifest, graph: Artefact) -> Precision:
    """By whose rule its engine is judged: a role that calibration left alone shares the FP16 graph's file."""
    half = {a.file for a in manifest.artefacts if a.target == Target("onnx", "fp16")}
    return "fp16" if graph.file in half else graph.precision


def _cure(precision: Precision) -> str:
    made_by_calibration = precision in QUANTISED
    return "make them with s3clip-calib" if made_by_calibration else f"export its {precision} graphs"


def add_audited_engines(
    folder: Path, manifest: Manifest, precision: Precision, workspace_bytes: int
) -> Manifest:
    """`add_engines` with what the range audit kept in FP32, and this user's timing cache. Raises alike."""
    audit = manifest.attachments.get("range_audit")
    kept = {} if audit is None else json.loads((folder / audit.file).read_text("utf-8"))["kept"]
    return add_engines(
        folder,
        manifest,
        precision,
        workspace_bytes=workspace_bytes,
        timing_cache=cache_home() / "tensorrt.timing",
        fp32_nodes=kept,
    )


def rebuild_engines(
    folder: Path, workspace_bytes: int = WORKSPACE_BYTES, precision: Precision = "fp16"
) -> Proof:
    """Give a bundle engines for this machine, in the place of any of this precision. Needs no PyTorch.

    The engines are proven against the reference that lies in the bundle. The bundle is replaced when that
    is done; whatever fails before leaves it as it was.

    Args:
        folder: of a bundle with ONNX graphs of this precision and a reference.
        workspace_bytes: most device memory that the builder may plan with.
        precision: fp16, int8-fp16 or fp8-fp16.

    Raises:
        BundleError: it has none of these, or the engines miss a bound.
        BackendError: no GPU or one without this precision, no TensorRT, or a graph is refused.
    """
    target = Target("tensorrt", precision)
    bundle = Bundle.draft(folder)
    bundle.artefact("encode", Target("onnx", precision))
    if "reference" not in bundle.manifest.attachments:
        raise BundleError(
            f"bundle {folder}: holds no reference to prove engines with; export it with --reference, or "
            "with --trt on this machine"
        )
    open_tensorrt(precision)  # before the bundle is copied
    with replaced_bundle(folder) as staging:
        manifest = add_audited_engines(staging, bundle.manifest, precision, workspace_bytes)
        write_manifest(staging, manifest)
        proof = check_reference(Bundle.draft(staging), target, "cuda")
        faults = broken_bounds(proof)
        if faults:
            raise BundleError(f"bundle {folder}: its new engines differ from PyTorch: {'; '.join(faults)}")
        others = tuple(p for p in manifest.proofs if p.target != str(target))
        write_manifest(staging, manifest.changed(proofs=(*others, proof)))
        Bundle.open(staging)
    return proof


def _profile(role: Role) -> tuple[int, int, int]:
    return CLIPS_PROFILE if role == "encode" else BATCH_PROFILE


def _artefact(
    role: Role, precision: Precision, path: Path, report: EngineReport, version: str, gpu: cuda.Gpu
) -> Artefact:
    return Artefact(
        role=role,
        file=path.name,
        precision=precision,
        backend="tensorrt",
        opset=report.opset,
        sha256=sha256_file(path),
        bytes=report.bytes,
        engine=Engine(
            tensorrt=version,
            compute_capability=gpu.compute_capability,
            gpu=gpu.name,
            driver=gpu.driver,
            onnx_sha256=report.onnx_sha256,
            profile=_profile(role),
            inputs={name: str(info) for name, info in report.inputs.items()},
            outputs={name: str(info) for name, info in report.outputs.items()},
        ),
    )
