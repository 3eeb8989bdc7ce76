"""Network detectors against slow decoders that follow the layouts' descriptions, one box at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from detector_graphs import query_file, random_image, rt_detr_file, ssd_file, yolox_file
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from s3clip_runtime.errors import BackendError, ConfigError
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.streams.detection.layouts import LAYOUTS, recognise
from s3clip_runtime.streams.detection.network import MAX_BATCH, NetworkDetector, Settings
from s3clip_runtime.streams.frames import Detections, Frame

Box = tuple[float, float, float, float]
Found = tuple[Box, float]
Picture = NDArray[np.float32]
SIZE = (64, 96)


def as_frame(image: NDArray[np.uint8], camera: str = "cam") -> Frame:
    return Frame(camera, 0, 0.0, image)


def opened(path: Path) -> OrtSession:
    return OrtSession(path, threads=1)


def iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inner = width * height
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def slow_best(candidates: list[Found], shape: tuple[int, ...], limit: float = 0.45) -> list[Found]:
    """Suppression, then the boxes clipped to the picture; best first."""
    kept: list[Found] = []
    for box, score in sorted(candidates, key=lambda c: -c[1]):
        if all(iou(box, other) <= limit for other, _ in kept):
            kept.append((box, score))
    right, bottom = float(shape[1]), float(shape[0])
    clipped = [((max(b[0], 0), max(b[1], 0), min(b[2], right), min(b[3], bottom)), s) for b, s in kept]
    return [(b, s) for b, s in clipped if b[2] - b[0] >= 2 and b[3] - b[1] >= 2]


def found_in(detections: Detections) -> list[Found]:
    boxes = [(float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in detections.boxes]
    return list(zip(boxes, map(float, detections.scores), strict=True))


def assert_same(
    detections: Detections, expected: list[Found], pixels: float = 0.02, score_error: float = 1e-5
) -> None:
    assert detections.boxes.dtype == detections.scores.dtype == np.float32
    assert len(detections.boxes) == len(expected) > 3
    for box, score, (true_box, true_score) in zip(detections.boxes, detections.scores, expected, strict=True):
        np.testing.assert_allclose(box, true_box, atol=pixels)
        assert score == pytest.approx(true_score, abs=score_error)


# YOLOX


def slow_yolox(session: OrtSession, image: NDArray[np.uint8], size: tuple[int, int]) -> list[Found]:
    """The layout as its paper and README describe it, before suppression."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    resized = cv2.resize(image, (int(image.shape[1] * scale), int(image.shape[0] * scale)))
    canvas = np.full((*size, 3), 114.0, np.float32)
    for row in range(resized.shape[0]):
        for column in range(resized.shape[1]):
            red, green, blue = resized[row, column]
            canvas[row, column] = (blue, green, red)
    output = session.run({"images": canvas.transpose(2, 0, 1)[None].copy()})["output"][0]
    candidates: list[Found] = []
    cell = 0
    for stride in (8, 16, 32):
        for row in range(size[0] // stride):
            for column in range(size[1] // stride):
                x, y, w, h, objectness, person = map(float, output[cell][:6])
                cell += 1
                if objectness * person >= 0.25:
                    cx, cy = (x + column) * stride / scale, (y + row) * stride / scale
                    bw, bh = math.exp(w) * stride / scale, math.exp(h) * stride / scale
                    box = (cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2)
                    candidates.append((box, objectness * person))
    return candidates


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (40, 30), (480, 640)])
def test_yolox_equals_the_slow_decoder(tmp_path: Path, shape: tuple[int, int]) -> None:
    session = opened(yolox_file(tmp_path / "y.onnx", (96, 160)))
    image = random_image(*shape)
    expected = slow_best(slow_yolox(session, image, (96, 160)), shape)
    assert_same(NetworkDetector(session).detect([as_frame(image)])[0], expected)


def test_yolox_in_float16_is_the_same_but_for_its_rounding(tmp_path: Path) -> None:
    plain = NetworkDetector(opened(yolox_file(tmp_path / "y.onnx", (96, 160))))
    half = NetworkDetector(opened(yolox_file(tmp_path / "h.onnx", (96, 160), kind=TensorProto.FLOAT16)))
    frame = as_frame(random_image(90, 160))
    one, other = plain.detect([frame])[0], half.detect([frame])[0]
    assert len(one.boxes) == len(other.boxes) > 5
    np.testing.assert_allclose(one.boxes, other.boxes, atol=0.3)


def slow_tiles(session: OrtSession, image: NDArray[np.uint8]) -> list[Found]:
    """2 x 3 tiles of 300 x 400: sides 300 / 1.8 = 166.7 and 400 / 2.6 = 153.8; neighbours share a fifth."""
    candidates = slow_yolox(session, image, SIZE)
    for top, bottom in [(0, 167), (133, 300)]:
        for left, right in [(0, 154), (123, 277), (246, 400)]:
            for box, score in slow_yolox(session, image[top:bottom, left:right].copy(), SIZE):
                x1, y1, x2, y2 = box[0] + left, box[1] + top, box[2] + left, box[3] + top
                cut_x = (left > 0 and x1 <= left + 2) or (right < 400 and x2 >= right - 2)
                cut_y = (top > 0 and y1 <= top + 2) or (bottom < 300 and y2 >= bottom - 2)
                if not cut_x and not cut_y:
                    candidates.append(((x1, y1, x2, y2), score))
    return candidates


class Counting:
    """A session that notes the batch of each run."""

    def __init__(self, session: OrtSession) -> None:
        self._session = session
        self.batches: list[int] = []
        self.inputs, self.outputs, self.device = session.inputs, session.outputs, session.device
        self.close = session.close

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.batches.append(len(next(iter(inputs.values()))))
        return self._session.run(inputs)


@pytest.mark.parametrize(
    ("batch", "runs"), [(1, [1] * 10), (4, [4, 4, 4]), ("n", [MAX_BATCH, 2])]
)  # 7 pictures of the tiled camera and 3 of the others
def test_frames_and_tiles_of_all_cameras_are_few_runs_and_equal_the_slow_decoder(
    tmp_path: Path, batch: int | str, runs: list[int]
) -> None:
    single = opened(yolox_file(tmp_path / "y.onnx", SIZE))
    shapes = {"a": (90, 160), "tiled": (300, 400), "b": (300, 400), "c": (50, 40)}
    frames = [
        as_frame(random_image(*shape, seed=seed), name) for seed, (name, shape) in enumerate(shapes.items())
    ]
    session = Counting(opened(yolox_file(tmp_path / "b.onnx", SIZE, batch)))
    found = NetworkDetector(session, tiles={"tiled": (2, 3)}).detect(frames)
    assert session.batches == runs
    for frame, detections in zip(frames, found, strict=True):
        slow = slow_tiles if frame.camera == "tiled" else lambda s, i: slow_yolox(s, i, SIZE)
        assert_same(detections, slow_best(slow(single, frame.image), frame.image.shape))
    assert NetworkDetector(session).detect([]) == []


# Queries: RF-DETR, RT-DETR


def slow_queries(
    boxes: NDArray[np.float32], logits: NDArray[np.float32], person: int, shape: tuple[int, ...]
) -> list[Found]:
    """Centre and size as shares, sigmoid of one class; no suppression."""
    found = []
    for (cx, cy, w, h), row in zip(boxes.tolist(), logits.tolist(), strict=True):
        score = 1 / (1 + math.exp(-row[person]))
        if score >= 0.3:
            x1, x2 = (cx - w / 2) * shape[1], (cx + w / 2) * shape[1]
            y1, y2 = (cy - h / 2) * shape[0], (cy + h / 2) * shape[0]
            found.append(((x1, y1, x2, y2), score))
    return slow_best(found, shape, limit=1.0)


def torch_picture(image: NDArray[np.uint8]) -> Picture:
    """As RF-DETR's own prediction prepares it: plain bilinear, then ImageNet's mean and deviation."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(pixels, SIZE, mode="bilinear", align_corners=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return np.asarray(((resized - mean[:, None, None]) / std[:, None, None]).numpy(), np.float32)


def pillow_picture(image: NDArray[np.uint8]) -> Picture:
    """As RT-DETR's and Hugging Face's own preparation does: antialiased bilinear, 0..1."""
    resized = Image.fromarray(image).resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / np.float32(255)


@pytest.mark.parametrize("shape", [(90, 160), (300, 200), (40, 30)])
def test_rf_detr_equals_the_slow_decoder(tmp_path: Path, shape: tuple[int, int]) -> None:
    session = opened(query_file(tmp_path / "r.onnx", SIZE, 91, ("input", "dets", "labels")))
    image = random_image(*shape)
    outputs = session.run({"input": torch_picture(image)})
    expected = slow_queries(outputs["dets"][0], outputs["labels"][0], 1, shape)
    detector = NetworkDetector(session)
    assert detector.settings == Settings("rf-detr", 1, 0.3, None)
    assert_same(detector.detect([as_frame(image)])[0], expected, pixels=1.0, score_error=5e-3)


@pytest.mark.parametrize("open_size", [False, True])
@pytest.mark.parametrize("shape", [(90, 160), (300, 200)])
def test_rt_detr_of_hugging_face_equals_the_slow_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], open_size: bool
) -> None:
    names = ("pixel_values", "pred_boxes", "logits")
    path = query_file(tmp_path / "r.onnx", SIZE, 80, names, spread=5.0, open_size=open_size)
    session = opened(path)
    image = random_image(*shape)
    outputs = session.run({"pixel_values": pillow_picture(image)})
    expected = slow_queries(outputs["pred_boxes"][0], outputs["logits"][0], 0, shape)
    if open_size:  # such a graph is fed with 640 x 640: the same size is wanted here
        layout = LAYOUTS["rt-detr-hf"]
        monkeypatch.setitem(LAYOUTS, "rt-detr-hf", replace(layout, free_size=SIZE))
    detector = NetworkDetector(session, Settings("rt-detr-hf"))
    assert_same(detector.detect([as_frame(image)])[0], expected, pixels=1.5, score_error=1e-2)


def test_rt_detr_equals_the_slow_decoder_and_takes_the_best_class_only(tmp_path: Path) -> None:
    session = opened(rt_detr_file(tmp_path / "r.onnx", SIZE, 2))
    image = random_image(90, 160)
    size = np.array([[SIZE[1], SIZE[0]]], np.int64)
    outputs = session.run({"images": pillow_picture(image), "orig_target_sizes": size})
    expected = []
    for label, box, score in zip(*(outputs[name][0] for name in ("labels", "boxes", "scores")), strict=True):
        if label == 1 and score >= 0.25:
            x1, y1, x2, y2 = (float(v) for v in box)
            across, down = 160 / SIZE[1], 90 / SIZE[0]
            expected.append(((x1 * across, y1 * down, x2 * across, y2 * down), float(score)))
    assert set(outputs["labels"][0].tolist()) == {0, 1}
    detector = NetworkDetector(session, Settings(person_class=1, threshold=0.25))
    assert_same(
        detector.detect([as_frame(image)])[0],
        slow_best(expected, (90, 160), limit=1.0),
        pixels=1.5,
        score_error=1e-2,
    )


# SSD


@pytest.mark.parametrize("tf1", [True, False])
@pytest.mark.parametrize("count", [None, 250])
def test_ssd_equals_the_slow_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, tf1: bool
) -> None:
    session = opened(ssd_file(tmp_path / "s.onnx", 2, count=count, tf1=tf1))
    image = random_image(90, 160)
    picture = cv2.resize(image, (300, 300))  # the graph leaves the size open
    names = [name for name in session.outputs if "num" not in name]
    boxes, scores, labels = (session.run({next(iter(session.inputs)): picture[None]})[n][0] for n in names)
    rows = [
        ((left * 160, top * 90, right * 160, bottom * 90), float(score))
        for number, ((top, left, bottom, right), score, label) in enumerate(
            zip(boxes.tolist(), scores, labels, strict=True)
        )
        if label == 1 and score >= 0.3 and (count is None or number < count)
    ]
    expected = slow_best(rows, (90, 160))
    assert len(rows) > len(expected)  # there are raw duplicates
    detector = NetworkDetector(session)
    assert detector.settings == Settings("ssd", 1, 0.3, 0.45)
    assert_same(detector.detect([as_frame(image)])[0], expected)


# Batches and tiles of every layout

MAKERS: dict[str, Callable[[Path, int | str], Path]] = {
    "yolox": lambda path, batch: yolox_file(path, SIZE, batch),
    "rf-detr": lambda path, batch: query_file(path, SIZE, 91, ("input", "dets", "labels"), batch),
    "rt-detr": lambda path, batch: rt_detr_file(path, SIZE, 2, batch),
    "rt-detr-hf": lambda path, batch: query_file(
        path, SIZE, 80, ("pixel_values", "pred_boxes", "logits"), batch, spread=5.0
    ),
    "ssd": lambda path, batch: ssd_file(path, 2, batch),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_of_cameras_equals_one_by_one(tmp_path: Path, name: str) -> None:
    assert MAKERS.keys() == LAYOUTS.keys()
    tiles = {"b": (2, 2)}
    dynamic = NetworkDetector(opened(MAKERS[name](tmp_path / "n.onnx", "n")), Settings(name), tiles=tiles)
    single = NetworkDetector(opened(MAKERS[name](tmp_path / "1.onnx", 1)), Settings(name), tiles=tiles)
    shapes = [(90, 160), (120, 80), (64, 96)]
    frames = [
        as_frame(random_image(*shape, seed=7), camera) for shape, camera in zip(shapes, "abc", strict=True)
    ]
    together = dynamic.detect(frames)
    for frame, found in zip(frames, together, strict=True):
        alone = single.detect([frame])[0]
        assert len(found.boxes) == len(alone.boxes) > 0
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= np.array(frame.image.shape[1::-1])).all()


def test_tiles_are_suppressed_between_where_the_layout_needs_no_suppression(tmp_path: Path) -> None:
    session = opened(MAKERS["rf-detr"](tmp_path / "r.onnx", "n"))
    frame = as_frame(random_image(120, 200))
    tiles = {"cam": (2, 2)}
    kept = found_in(NetworkDetector(session, tiles=tiles).detect([frame])[0])
    everything = found_in(NetworkDetector(session, Settings(nms_iou=1.0), tiles=tiles).detect([frame])[0])
    assert 5 < len(kept) < len(everything)
    # Boxes at the frame's border were longer before they were cut.
    inside = [b for b, _ in kept if b[0] > 0 and b[1] > 0 and b[2] < 200 and b[3] < 120]
    assert all(iou(a, b) <= 0.4501 for i, a in enumerate(inside) for b in inside[:i])


def test_numbers_that_are_not_finite_are_no_persons(tmp_path: Path) -> None:
    path = query_file(tmp_path / "r.onnx", SIZE, 91, ("input", "dets", "labels"))
    model = onnx.load(path)
    bias = next(one for one in model.graph.initializer if one.name == "b")
    values = np.full(95, np.nan, np.float32)
    values[5] = 5.0  # sure of persons, at boxes that are not numbers
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "b"))
    onnx.save(model, path)
    found = NetworkDetector(opened(path)).detect([as_frame(random_image(90, 160))])[0]
    assert found.boxes.shape == (0, 4)


# Recognition


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "rt-detr-hf"])
def test_a_layout_is_recognised(tmp_path: Path, name: str) -> None:
    graph = recognise(opened(MAKERS[name](tmp_path / "g.onnx", "n")))
    assert graph.layout.name == name
    assert graph.batch is None
    assert graph.size == ((300, 300) if name == "ssd" else SIZE)


def test_what_fits_two_layouts_must_be_named(tmp_path: Path) -> None:
    session = opened(MAKERS["rt-detr-hf"](tmp_path / "g.onnx", "n"))
    with pytest.raises(BackendError, match="fits rf-detr and rt-detr-hf; say which"):
        recognise(session)
    assert recognise(session, "rt-detr-hf").layout.name == "rt-detr-hf"
    with pytest.raises(BackendError, match="rf-detr of 91 classes has persons as class 1, this one has 80"):
        NetworkDetector(session, Settings("rf-detr"))
    assert NetworkDetector(session, Settings("rf-detr", person_class=0)).settings.person_class == 0


def test_boxes_and_logits_of_four_classes_are_told_apart_by_name(tmp_path: Path) -> None:
    path = query_file(tmp_path / "g.onnx", SIZE, 4, ("input", "dets", "labels"))
    tensors = recognise(opened(path)).tensors
    assert tensors.outputs == {"boxes": "dets", "logits": "labels"}


def other_graph(path: Path, inputs: list[int | str], outputs: list[int | str], name: str = "output") -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], [name])],
        "other",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, outputs)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


@pytest.mark.parametrize(
    "shape", [[1, 3, 416, 416], [1, 3, "h", "w"], [1, 3, 100, 100], [1, 416, 416, 3], [1, 3, 416], []]
)
def test_an_unknown_layout_is_told_with_what_was_found_and_what_is_known(
    tmp_path: Path, shape: list[int | str]
) -> None:
    session = opened(other_graph(tmp_path / "o.onnx", shape, shape))
    with pytest.raises(BackendError) as caught:
        NetworkDetector(session)
    for text in (f"images {session.inputs['images']}", f"output {session.outputs['output']}", *LAYOUTS):
        assert text in str(caught.value)


def test_a_graph_of_open_size_is_refused_where_the_layout_has_none(tmp_path: Path) -> None:
    path = query_file(tmp_path / "g.onnx", SIZE, 91, ("input", "dets", "labels"), open_size=True)
    with pytest.raises(BackendError, match="rf-detr graphs need a fixed height and width, input is float32"):
        NetworkDetector(opened(path))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (Settings("yolo"), "detector layout 'yolo' is unknown; use one of yolox, rf-detr"),
        (Settings(person_class=2), "person class must be from 0 to 1, found 2"),
        (Settings(person_class=-1), "person class must be from 0 to 1, found -1"),
        (Settings(threshold=0.0), "threshold must be above 0"),
        (Settings(threshold=math.nan), "threshold must be above 0"),
        (Settings(nms_iou=1.5), "nms_iou must be from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: Settings, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        NetworkDetector(opened(yolox_file(tmp_path / "y.onnx", SIZE)), settings)


def test_settings_are_obeyed(tmp_path: Path) -> None:
    session = opened(yolox_file(tmp_path / "y.onnx", SIZE))
    frame = as_frame(random_image(90, 160))
    plain = NetworkDetector(session).detect([frame])[0]
    all_boxes = NetworkDetector(session, Settings(nms_iou=1.0)).detect([frame])[0]
    strict = NetworkDetector(session, Settings(threshold=float(plain.scores[3]))).detect([frame])[0]
    other = NetworkDetector(session, Settings(person_class=1)).detect([frame])[0]
    assert len(all_boxes.boxes) > len(plain.boxes)
    assert len(strict.boxes) == 4
    assert not np.array_equal(other.scores, plain.scores)
