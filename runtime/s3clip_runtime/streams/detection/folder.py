"""A detector's folder: an ONNX graph, perhaps an engine of it, and one `detector.json` that proves them.

`s3clip-export detector` writes it; the reader verifies every byte before anything is loaded.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, NonNegativeInt, model_validator

from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference.backends import Session, cuda
from s3clip_runtime.inference.backends.onnxruntime import OrtSession, choose_device
from s3clip_runtime.inference.backends.tensorrt import TensorRtSession
from s3clip_runtime.inference.bundle import check_file
from s3clip_runtime.inference.manifest import Attachment, Engine
from s3clip_runtime.inference.records import Record, read_record, write_record
from s3clip_runtime.streams.detection.network import Settings

_LOG = logging.getLogger(__name__)

DETECTOR_FILE = "detector.json"
SCHEMA_VERSION: Final = 1

Precision = Literal["fp32", "fp16"]
"""Of a detector's weights."""


class EngineFile(Attachment):
    """A TensorRT engine and for what it was built."""

    engine: Engine


class DetectorManifest(Record):
    """Content of `detector.json`.

    Attributes:
        layout: name in `layouts.LAYOUTS`.
        person_class: index of the class person, from 0.
        threshold: least score.
        nms_iou: of two boxes that overlap more, the better one stays; None: the layout needs no suppression.
        precision: of the graph's weights; an engine computes in the same.
        graph: the ONNX file.
        tensorrt: the engine built from it, if any.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    s3clip_version: str
    layout: str
    person_class: NonNegativeInt
    threshold: Annotated[float, Field(gt=0, le=1)]
    nms_iou: Annotated[float, Field(ge=0, le=1)] | None
    precision: Precision
    graph: Attachment
    tensorrt: EngineFile | None = None

    @model_validator(mode="after")
    def _engine_is_of_graph(self) -> DetectorManifest:
        if self.tensorrt is not None and self.tensorrt.engine.onnx_sha256 != self.graph.sha256:
            raise ValueError(f"{self.tensorrt.file} was built from another graph than {self.graph.file}")
        return self

    @property
    def settings(self) -> Settings:
        """How its `NetworkDetector` is made."""
        return Settings(self.layout, self.person_class, self.threshold, self.nms_iou)


def write_detector(folder: Path, manifest: DetectorManifest) -> None:
    """Write `detector.json`. Raises as `bundle.write_record`."""
    write_record(folder / DETECTOR_FILE, manifest)


def read_detector(folder: Path) -> DetectorManifest:
    """Read and verify a detector's folder.

    Raises:
        BundleError: it is no such folder, or a file of it is not what the manifest says.
    """
    if not (folder / DETECTOR_FILE).is_file():
        raise BundleError(
            f"detector {folder}: holds no {DETECTOR_FILE}; write it with s3clip-export detector, or name an "
            ".onnx file"
        )
    manifest = read_record(folder / DETECTOR_FILE, DetectorManifest, SCHEMA_VERSION)
    check_file(folder, "graph", manifest.graph)
    if manifest.tensorrt is not None:
        check_file(folder, "tensorrt", manifest.tensorrt)
    return manifest


def open_folder(folder: Path, device: str, threads: int | None) -> tuple[Session, Settings]:
    """Open what a folder holds for a device; the caller closes the session.

    Args:
        folder: of `s3clip-export detector`.
        device: "cpu" runs the graph, "cuda" the engine if there is one, else the graph. "auto" takes an
            engine if there is one and a driver, even if it turns out to be built for another machine: that
            is an error to be told.
        threads: CPU threads; None takes all.

    Raises:
        BundleError: as `read_detector`.
        BackendError: the device is unknown or cannot run it.
    """
    manifest = read_detector(folder)
    engine = manifest.tensorrt
    unused = ""
    if engine is not None and device in ("auto", "cuda"):
        problem = None if device == "cuda" else cuda.driver_problem()
        if problem is None:
            _LOG.info("detector %s: %s on cuda (%s)", folder, engine.file, _why(device))
            return TensorRtSession(folder / engine.file, engine.engine), manifest.settings
        unused = f"; {engine.file} is left unused: {problem}"
    path = folder / manifest.graph.file
    return open_graph(path, device, threads, manifest.precision, unused), manifest.settings


def open_graph(
    path: Path, device: str, threads: int | None, precision: Precision = "fp32", note: str = ""
) -> OrtSession:
    """Open an ONNX file on "auto", "cpu" or "cuda"; `note` is added to the log's line.

    Raises:
        BackendError: the device is unknown or cannot run it, or the file cannot be loaded.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BackendError(f"device {device!r} is unknown; use auto, cpu or cuda")
    if not path.is_file():
        raise BackendError(f"detector {path}: the file does not exist; check the path")
    chosen, reason = choose_device(device)
    _LOG.info("detector %s: onnx on %s (%s%s)", path, chosen, reason, note)
    return OrtSession(path, device=chosen, threads=threads, precision=precision)


def _why(device: str) -> str:
    return "as asked" if device == "cuda" else "there is an engine and a GPU"
