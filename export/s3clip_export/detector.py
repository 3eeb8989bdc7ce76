"""A detector's graph to a folder that the runtime verifies before it loads it, with an engine if wanted."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from s3clip.datasets.sizes import cache_home
from s3clip_export.tensorrt.build import WORKSPACE_BYTES, build_engine
from s3clip_export.tensorrt.engines import open_tensorrt
from s3clip_runtime.errors import BackendError, BundleError, ConfigError
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.bundle import attachment_of
from s3clip_runtime.inference.manifest import Engine
from s3clip_runtime.streams.detection.folder import (
    DetectorManifest,
    EngineFile,
    Precision,
    open_folder,
    read_detector,
    write_detector,
)
from s3clip_runtime.streams.detection.network import MAX_BATCH, NetworkDetector, Settings
from s3clip_runtime.streams.frames import Frame

BATCHES: Final = (1, 4, MAX_BATCH)
"""Smallest, usual and largest batch of an engine: pictures of one run."""

GRAPH_FILE = "detector.onnx"
ENGINE_FILE = "detector.engine"


def export_detector(
    graph: Path,
    out: Path,
    *,
    settings: Settings,
    trt: bool = False,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> DetectorManifest:
    """Write a detector's folder, or nothing.

    Args:
        graph: ONNX file of a known layout, see docs/detectors.md. External weights are taken into the file.
        out: the folder; must not exist.
        settings: None of them means the layout's own.
        trt: also build a TensorRT engine on and for this machine, in the precision of the graph. The graph
            must have a dynamic batch and nothing else dynamic.
        workspace_bytes: most device memory that the builder may plan with.

    Raises:
        BundleError: `out` exists, or the graph cannot be read.
        BackendError: the graph is of no known layout or cannot run, or an engine cannot be built here.
        ConfigError: a setting is out of range.
    """
    if out.exists():
        raise BundleError(f"detector {out}: exists already; choose another folder or delete it")
    if trt:
        open_tensorrt()  # found out before any work, not after
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        precision = _write_graph(graph, staging / GRAPH_FILE)
        chosen = _tried(graph, staging / GRAPH_FILE, precision, settings)
        manifest = _manifest(staging, chosen, precision)
        if trt:
            engine = _build(staging, workspace_bytes)
            manifest = manifest.model_copy(update={"tensorrt": engine})
        write_detector(staging, manifest)
        read_detector(staging)
        if trt:
            _try_engine(staging)
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _write_graph(source: Path, target: Path) -> Precision:
    """Copy a graph as one file, and tell the precision of most of its weights."""
    try:
        model = onnx.load(source, load_external_data=False)
        outside = [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            onnx.save(onnx.load(source), target)
        else:
            shutil.copyfile(source, target)
    except Exception as error:  # protobuf's errors have no base class but Exception
        raise BundleError(f"{source}: cannot be read as ONNX ({error}); check the path") from error
    sizes = dict.fromkeys((onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT), 0)
    for one in model.graph.initializer:
        if one.data_type in sizes:
            sizes[one.data_type] += int(np.prod(one.dims))
    return "fp16" if sizes[onnx.TensorProto.FLOAT16] > sizes[onnx.TensorProto.FLOAT] else "fp32"


def _tried(source: Path, graph: Path, precision: Precision, settings: Settings) -> Settings:
    """The settings in force, after the graph has answered for two grey frames."""
    try:
        with closing(NetworkDetector(OrtSession(graph, precision=precision), settings)) as detector:
            detector.detect(_grey_frames())
            return detector.settings
    except (BackendError, ConfigError) as error:
        raise type(error)(f"{source}: {error}") from error


def _grey_frames() -> list[Frame]:
    grey = np.full((360, 640, 3), 127, np.uint8)
    return [Frame(f"grey-{number}", 0, 0.0, grey) for number in range(2)]


def _manifest(folder: Path, settings: Settings, precision: Precision) -> DetectorManifest:
    assert settings.layout is not None  # a detector's own settings are complete
    assert settings.person_class is not None
    assert settings.threshold is not None
    return DetectorManifest(
        s3clip_version=version("s3clip"),
        layout=settings.layout,
        person_class=settings.person_class,
        threshold=settings.threshold,
        nms_iou=settings.nms_iou,
        precision=precision,
        graph=attachment_of(folder / GRAPH_FILE),
    )


def _build(folder: Path, workspace_bytes: int) -> EngineFile:
    trt, gpu = open_tensorrt()
    path = folder / ENGINE_FILE
    report = build_engine(
        trt,
        folder / GRAPH_FILE,
        path,
        workspace_bytes=workspace_bytes,
        timing_cache=cache_home() / "tensorrt.timing",
        batches=BATCHES,
    )
    return EngineFile(
        **attachment_of(path).model_dump(),
        engine=Engine(
            tensorrt=trt.__version__,
            compute_capability=gpu.compute_capability,
            gpu=gpu.name,
            driver=gpu.driver,
            onnx_sha256=report.onnx_sha256,
            profile=BATCHES,
            inputs={name: str(info) for name, info in report.inputs.items()},
            outputs={name: str(info) for name, info in report.outputs.items()},
        ),
    )


def _try_engine(folder: Path) -> None:
    """The engine must run, too."""
    session, settings = open_folder(folder, "cuda", None)
    with closing(session):
        NetworkDetector(session, settings).detect(_grey_frames())
