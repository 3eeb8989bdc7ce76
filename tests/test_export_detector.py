"""A detector's folder: what the exporter writes, what the reader refuses, and the engine on a fake GPU."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from detector_graphs import query_file, random_image, rt_detr_file, yolox_file
from fake_tensorrt import FakeGpu, write_plan
from onnx import TensorProto, numpy_helper

from s3clip_export import detector as exporter
from s3clip_export.detector import BATCHES, ENGINE_FILE, GRAPH_FILE, export_detector
from s3clip_export.detector_command import detector_command
from s3clip_export.tensorrt.build import EngineReport, build_engine
from s3clip_runtime.errors import BackendError, BundleError, ConfigError, S3ClipError
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.streams.detection.choose import Choice, open_detectors
from s3clip_runtime.streams.detection.folder import DETECTOR_FILE, open_folder, read_detector
from s3clip_runtime.streams.detection.network import NetworkDetector, Settings
from s3clip_runtime.streams.frames import Frame

SIZE = (64, 96)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return yolox_file(tmp_path / "yolox.onnx", SIZE, "n")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """At the end of every test nothing may be left and nothing may have been misused."""
    made = fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(exporter, "build_engine", fake_build)
    yield made
    assert not made.alive()
    assert not made.violations


def fake_build(trt: object, graph: Path, engine: Path, **options: Any) -> EngineReport:  # noqa: ANN401
    """Write an engine of the fake TensorRT."""
    entry = write_plan(graph, engine, options["batches"])
    session = OrtSession(graph, threads=1)
    infos: list[dict[str, TensorInfo]] = [dict(session.inputs), dict(session.outputs)]
    return EngineReport(
        layers=(),
        inputs=infos[0],
        outputs=infos[1],
        onnx_sha256=entry.onnx_sha256,
        opset=18,
        quantised_nodes=(),
        activation_bytes=None,
        weights_bytes=None,
        parse_s=0,
        build_s=0,
        bytes=engine.stat().st_size,
        timing_cache="",
        warnings=(),
    )


def frames(count: int = 3) -> list[Frame]:
    return [Frame(f"c{number}", 0, 0.0, random_image(90, 160, seed=number)) for number in range(count)]


def assert_alike(one: NetworkDetector, other: NetworkDetector) -> None:
    for a, b in zip(one.detect(frames()), other.detect(frames()), strict=True):
        assert len(a.boxes) == len(b.boxes) > 3
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)


def test_a_folder_gives_what_its_graph_gives(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "people"
    manifest = export_detector(graph, out, settings=Settings(threshold=0.4))
    assert sorted(path.name for path in out.iterdir()) == [DETECTOR_FILE, GRAPH_FILE]
    assert (out / GRAPH_FILE).read_bytes() == graph.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["people"]
    assert manifest == read_detector(out)
    assert manifest.settings == Settings("yolox", 0, 0.4, 0.45)
    assert manifest.precision == "fp32"
    written = json.loads((out / DETECTOR_FILE).read_text())
    assert written["schema_version"] == 1
    assert written["graph"]["sha256"] == sha256_file(graph)
    session, settings = open_folder(out, "cpu", 1)
    with closing(session):
        plain = NetworkDetector(OrtSession(graph, threads=1), Settings(threshold=0.4))
        assert_alike(NetworkDetector(session, settings), plain)


def test_external_weights_are_taken_into_the_file(graph: Path, tmp_path: Path) -> None:
    source = tmp_path / "outside" / "net.onnx"
    source.parent.mkdir()
    onnx.save(onnx.load(graph), source, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert (source.parent / "net.bin").stat().st_size > 1000
    export_detector(source, tmp_path / "people", settings=Settings())
    shutil.rmtree(source.parent)
    session, settings = open_folder(tmp_path / "people", "cpu", 1)
    with closing(session):
        assert_alike(NetworkDetector(session, settings), NetworkDetector(OrtSession(graph, threads=1)))


def test_the_precision_is_that_of_most_weights(tmp_path: Path) -> None:
    path = yolox_file(tmp_path / "half.onnx", SIZE, "n", TensorProto.FLOAT16)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(10**6, np.float16), "unused"))
    onnx.save(model, path)
    assert export_detector(path, tmp_path / "people", settings=Settings()).precision == "fp16"


def test_settings_come_from_the_user_where_the_graph_does_not_tell(tmp_path: Path) -> None:
    path = query_file(tmp_path / "r.onnx", SIZE, 4, ("input", "dets", "labels"))
    with pytest.raises(BackendError, match=r"r\.onnx: detector: rf-detr of 91 classes .* this one has 4"):
        export_detector(path, tmp_path / "people", settings=Settings())
    assert not (tmp_path / "people").exists()
    asked = Settings(person_class=2, nms_iou=0.7)
    manifest = export_detector(path, tmp_path / "people", settings=asked)
    assert manifest.settings == Settings("rf-detr", 2, 0.3, 0.7)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / DETECTOR_FILE
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (
            lambda f: (f / GRAPH_FILE).write_bytes((f / GRAPH_FILE).read_bytes()[:-1] + b"?"),
            "SHA-256 must be",
        ),
        (lambda f: (f / GRAPH_FILE).write_bytes(b"short"), "size must be"),
        (lambda f: (f / GRAPH_FILE).unlink(), "the file of role graph is missing"),
        (lambda f: (f / DETECTOR_FILE).unlink(), "holds no detector.json; write it with s3clip-export"),
        (lambda f: (f / DETECTOR_FILE).write_text("{"), "not valid JSON"),
        (lambda f: change(f, lambda d: d.update(schema_version=2)), "schema_version must be 1, found 2"),
        (lambda f: change(f, lambda d: d.update(threshold=1.5)), "threshold: Input should be less than"),
        (lambda f: change(f, lambda d: d.update(colour="red")), "colour: Extra inputs"),
        (lambda f: change(f, lambda d: d["graph"].update(file="../yolox.onnx")), "must lie in the bundle's"),
        (lambda f: change(f, lambda d: d.update(layout="yolo")), "detector layout 'yolo' is unknown"),
        (lambda f: change(f, lambda d: d.update(layout="ssd")), "Known is ssd"),
    ],
)
def test_a_folder_that_was_altered_is_refused(
    graph: Path, tmp_path: Path, harm: Callable[[Path], object], text: str
) -> None:
    folder = tmp_path / "people"
    export_detector(graph, folder, settings=Settings())
    harm(folder)
    with pytest.raises(S3ClipError, match=text):
        open_detectors({"gate": Choice(str(folder))}, device="cpu", threads=1)


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (None, BundleError, "net.onnx: cannot be read as ONNX .*; check the path"),
        (b"no graph", BundleError, "cannot be read as ONNX"),
        (b"", BackendError, "cannot load it"),
    ],
)
def test_what_is_no_graph_leaves_nothing(
    tmp_path: Path, content: bytes | None, error: type[S3ClipError], text: str
) -> None:
    source = tmp_path / "net.onnx"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(error, match=text):
        export_detector(source, tmp_path / "people", settings=Settings())
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["net.onnx"])


def test_an_existing_folder_and_a_machine_without_gpu_are_refused_before_any_work(
    graph: Path, tmp_path: Path
) -> None:
    (tmp_path / "people").mkdir()
    with pytest.raises(BundleError, match="people: exists already"):
        export_detector(graph, tmp_path / "people", settings=Settings())
    with pytest.raises(BackendError, match="TensorRT engines are built on the GPU that runs them"):
        export_detector(tmp_path / "gone.onnx", tmp_path / "new", settings=Settings(), trt=True)


# Devices and engines


def test_a_folder_without_an_engine_obeys_the_device_or_refuses(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "people"
    export_detector(graph, folder, settings=Settings())
    session, _ = open_folder(folder, "auto", 1)
    assert session.device == "cpu"
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider"):
        open_folder(folder, "cuda", 1)
    with pytest.raises(BackendError, match="device 'gpu' is unknown; use auto, cpu or cuda"):
        open_folder(folder, "gpu", 1)


@pytest.mark.parametrize("make", [yolox_file, rt_detr_file])
def test_an_engine_serves_all_cameras_and_equals_its_graph(
    gpu: FakeGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[..., Path]
) -> None:
    path = make(tmp_path / "net.onnx", SIZE, *(() if make is yolox_file else (2,)), batch="n")
    folder = tmp_path / "people"
    manifest = export_detector(path, folder, settings=Settings(), trt=True)
    assert manifest.tensorrt is not None
    assert manifest.tensorrt.engine.profile == BATCHES
    assert manifest.tensorrt.engine.onnx_sha256 == manifest.graph.sha256
    gpu.runs.clear()
    names = {frame.camera: Choice(str(folder), tiles=(2, 2)) for frame in frames()}
    with caplog.at_level(logging.INFO), closing(open_detectors(names, device="auto")) as detectors:
        assert f"{ENGINE_FILE} on cuda (there is an engine and a GPU)" in caplog.text
        found = detectors.of_camera(frames()[0].camera).detect(frames())
        images = [next(array for array in run.values() if array.ndim == 4) for run in gpu.runs]
        # 15 pictures are 8 and 7, which is run as 8; what was run first is captured, then launched.
        assert [len(image) for image in images][-1] == 8
        assert len(images) == 2
    plain = NetworkDetector(OrtSession(path, threads=1), tiles=dict.fromkeys(names, (2, 2)))
    for one, other in zip(found, plain.detect(frames()), strict=True):
        assert len(one.boxes) == len(other.boxes) > 0
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


def test_the_graph_serves_the_cpu_and_machines_without_a_driver(
    gpu: FakeGpu,
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "people"
    export_detector(graph, folder, settings=Settings(), trt=True)
    session, _ = open_folder(folder, "cpu", 1)
    assert isinstance(session, OrtSession)
    monkeypatch.setattr("s3clip_runtime.inference.backends.cuda.driver_problem", lambda: "no driver here")
    with caplog.at_level(logging.INFO):
        session, _ = open_folder(folder, "auto", 1)
    assert session.device == "cpu"
    assert f"{ENGINE_FILE} is left unused: no driver here" in caplog.text


def test_an_engine_of_another_machine_or_graph_is_told_and_not_hidden(
    gpu: FakeGpu, graph: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "people"
    export_detector(graph, folder, settings=Settings(), trt=True)
    change(folder, lambda d: d["tensorrt"]["engine"].update(compute_capability="9.0"))
    with pytest.raises(BackendError, match=r"was built for compute capability 9\.0, here is 8\.6"):
        open_folder(folder, "auto", 1)
    change(folder, lambda d: d["tensorrt"]["engine"].update(onnx_sha256="0" * 64))
    with pytest.raises(
        BundleError, match=r"detector\.engine was built from another graph than detector\.onnx"
    ):
        open_folder(folder, "cpu", 1)


@pytest.mark.rtx
def test_tensorrt_takes_the_graphs_of_the_layouts(tmp_path: Path) -> None:
    """TensorRT-RTX builds without a GPU; the graphs are tiny, but have the postprocessing of real ones."""
    rtx = pytest.importorskip("tensorrt_rtx")
    for path in (
        yolox_file(tmp_path / "y.onnx", SIZE, "n"),
        query_file(tmp_path / "r.onnx", SIZE, 91, ("input", "dets", "labels")),
        rt_detr_file(tmp_path / "rt.onnx", SIZE, 2),
    ):
        report = build_engine(
            rtx, path, path.with_suffix(".engine"), target_capabilities=("8.6",), batches=BATCHES
        )
        session = OrtSession(path, threads=1)
        assert {name: str(info) for name, info in report.inputs.items()} == {
            name: str(info) for name, info in session.inputs.items()
        }
    fixed = yolox_file(tmp_path / "fixed.onnx", SIZE, 1)
    with pytest.raises(BackendError, match="the batch of input images must be dynamic"):
        build_engine(rtx, fixed, tmp_path / "f.engine", target_capabilities=("8.6",), batches=BATCHES)


# The command


def test_the_command_writes_and_says_what(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "people"
    words = [str(graph), "-o", str(out), "--threshold", "0.35", "--person-class", "1", "--nms-iou", "0.6"]
    done = CliRunner().invoke(detector_command, words)
    assert done.exit_code == 0, done.output
    assert done.output == f"detector {out}: yolox, fp32, person is class 1, threshold 0.35\n"
    assert read_detector(out).settings == Settings("yolox", 1, 0.35, 0.6)
    again = CliRunner().invoke(detector_command, [str(graph), "-o", str(out)])
    assert isinstance(again.exception, BundleError)
    wrong = CliRunner().invoke(detector_command, [str(graph), "-o", str(tmp_path / "x"), "--layout", "yolo"])
    assert isinstance(wrong.exception, ConfigError)
