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
from s3clip_runtime.inference.manifest import Artefact, Engine, Manifest, Precision, Role, Target
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.replace import replaced_bundle
from s3clip_runtime.inference.spec import BATCH_PROFILE, CLIPS_PROFILE

ENGINES = Target("tensorrt", "fp16")


def open_tensorrt() -> tuple[TensorRT, cuda.Gpu]:
    """The installed TensorRT and the GPU that it builds for.

    Raises:
        BackendError: there is no usable driver, or TensorRT cannot be imported.
    """
    problem = cuda.driver_problem()
    if problem is not None:
        raise BackendError(
            f"TensorRT engines are built on the GPU that runs them, and here none can be used: {problem}; "
            "export on the machine of deployment"
        )
    try:
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendError(
            f"tensorrt cannot be imported ({error}); install TensorRT 10.3 or newer as NVIDIA's guide says"
        ) from error
    return cast(TensorRT, module), cuda.gpu()


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
        fp32_nodes: nodes that the FP16 graphs keep in FP32 on purpose.

    Returns:
        The manifest with the engines.

    Raises:
        BackendError: no GPU, no TensorRT, a graph is refused, or an engine has another precision than asked.
        BundleError: the draft holds no ONNX graphs of this precision, or cannot be written.
    """
    graphs = {a.role: a for a in manifest.artefacts if a.target == Target("onnx", precision)}
    missing = [role for role in get_args(Role) if role not in graphs]
    if missing:
        raise BundleError(
            f"bundle {folder}: holds no {precision} ONNX graph {', '.join(missing)} to build an engine from; "
            f"export its {precision} graphs first"
        )
    trt, gpu = open_tensorrt()
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
            check_precisions(report.layers, precision, fp32_nodes=(fp32_nodes or {}).get(role, ()))
        except BackendError as error:
            path.unlink()
            raise BackendError(f"{path.name}: {error}") from error
        engines.append(_artefact(role, precision, path, report, trt.__version__, gpu))
    others = tuple(a for a in manifest.artefacts if a.target != Target("tensorrt", precision))
    return manifest.model_copy(update={"artefacts": (*others, *engines)})


def add_fp16_engines(folder: Path, manifest: Manifest, workspace_bytes: int) -> Manifest:
    """`add_engines` of the FP16 graphs, with this user's timing cache. Raises as `add_engines`."""
    audit = manifest.attachments.get("range_audit")
    kept = {} if audit is None else json.loads((folder / audit.file).read_text("utf-8"))["kept"]
    return add_engines(
        folder,
        manifest,
        "fp16",
        workspace_bytes=workspace_bytes,
        timing_cache=cache_home() / "tensorrt.timing",
        fp32_nodes=kept,
    )


def rebuild_engines(folder: Path, workspace_bytes: int = WORKSPACE_BYTES) -> Proof:
    """Give a bundle FP16 engines for this machine, in the place of any that it had. Needs no PyTorch.

    The engines are proven against the reference that lies in the bundle. The bundle is replaced when that
    is done; whatever fails before leaves it as it was.

    Args:
        folder: of a bundle with FP16 graphs and a reference.
        workspace_bytes: most device memory that the builder may plan with.

    Raises:
        BundleError: it has none of these, or the engines miss a bound.
        BackendError: no GPU, no TensorRT, or a graph is refused.
    """
    bundle = Bundle.draft(folder)
    bundle.artefact("encode", Target("onnx", "fp16"))
    if "reference" not in bundle.manifest.attachments:
        raise BundleError(
            f"bundle {folder}: holds no reference to prove engines with; export it with --reference, or "
            "with --trt on this machine"
        )
    open_tensorrt()  # before the bundle is copied
    with replaced_bundle(folder) as staging:
        manifest = add_fp16_engines(staging, bundle.manifest, workspace_bytes)
        write_manifest(staging, manifest)
        proof = check_reference(Bundle.draft(staging), ENGINES, "cuda")
        faults = broken_bounds(proof)
        if faults:
            raise BundleError(f"bundle {folder}: its new engines differ from PyTorch: {'; '.join(faults)}")
        others = tuple(p for p in manifest.proofs if p.target != str(ENGINES))
        write_manifest(staging, manifest.model_copy(update={"proofs": (*others, proof)}))
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
