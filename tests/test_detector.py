"""Detectors against rendered persons, an obvious YOLOX decoder, and hand-written MOT lines."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from s3clip_runtime.errors import BackendError, ConfigError, SourceError
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.streams.detection.background import BackgroundDetector
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.detection.yolox import YoloxDetector
from s3clip_runtime.streams.frames import Detections, Frame

Box = tuple[float, float, float, float]
Found = tuple[Box, float]
CLASSES = 2


def iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inner = width * height
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def as_frame(image: NDArray[np.uint8], index: int = 0) -> Frame:
    return Frame("cam", index, index / 10, image)


def found_in(detections: Detections) -> list[Found]:
    boxes = [(float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in detections.boxes]
    return list(zip(boxes, map(float, detections.scores), strict=True))


def scene(
    background: NDArray[np.uint8], boxes: list[Box], rng: np.random.Generator, belt: float = 0.0
) -> NDArray[np.uint8]:
    """Head, trunk and two legs in each box, camera noise on top; `belt`: share of the height left out."""
    image = background.copy()
    for box in boxes:
        x1, y1, x2, y2 = map(int, box)
        width, height = x2 - x1, y2 - y1
        waist, gap = y1 + height // 2, int(height * belt)
        cv2.ellipse(
            image,
            ((x1 + x2) // 2, y1 + height // 10),
            (width // 4, height // 10),
            0,
            0,
            360,
            (220, 180, 150),
            -1,
        )
        image[y1 + height // 6 : waist, x1:x2] = (200, 30, 40)
        image[waist + gap : y2, x1 + width // 8 : x1 + width // 2] = (20, 20, 80)
        image[waist + gap : y2, x1 + width // 2 + 1 : x2 - width // 8] = (20, 20, 80)
    noise = rng.normal(0, 3, (16, *image.shape[1:])).repeat(-(-image.shape[0] // 16), axis=0)
    return np.asarray(np.clip(image + rng.permutation(noise)[: image.shape[0]], 0, 255), np.uint8)


def walk(
    size: tuple[int, int], person: tuple[int, int], step: float, belt: float = 0.0
) -> tuple[int, list[float], int]:
    """Two persons walk for 40 frames. Returns persons to find, IoU of those found, false boxes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(90, 170, (size[0] // 40, size[1] // 40, 3), np.uint8)
    background = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    detector = BackgroundDetector()
    overlaps, wanted, false = [], 0, 0
    for index in range(48):
        height, width = person
        x = 40 + step * (index - 8)
        truth: list[Box] = [
            (x, size[0] * 0.2, x + width, size[0] * 0.2 + height),
            (size[1] - x - width, size[0] * 0.5, size[1] - x, size[0] * 0.5 + height),
        ]
        walkers = truth if index >= 8 else []  # they enter when the background is learnt
        found = found_in(detector.detect(as_frame(scene(background, walkers, rng, belt), index)))
        for box in walkers:
            wanted += 1
            overlaps += [
                best for best in [max((iou(box, other) for other, _ in found), default=0)] if best >= 0.5
            ]
        false += sum(all(iou(box, other) < 0.3 for box in walkers) for other, _ in found)
        assert all(0 < score <= 1 for _, score in found)
    return wanted, overlaps, false


@pytest.mark.parametrize(
    ("size", "person", "step"),
    [
        ((360, 640), (14, 6), 2.0),
        ((360, 640), (40, 16), 4.0),
        ((360, 640), (150, 56), 8.0),
        pytest.param((1080, 1920), (150, 56), 9.0, marks=pytest.mark.slow),
    ],
)
def test_background_finds_walkers_of_all_sizes(
    size: tuple[int, int], person: tuple[int, int], step: float
) -> None:
    wanted, overlaps, false = walk(size, person, step)
    assert len(overlaps) >= 0.9 * wanted
    assert np.mean(overlaps) > 0.7
    assert false <= 0.05 * wanted


def test_background_joins_a_person_split_by_a_belt() -> None:
    wanted, overlaps, _ = walk((360, 640), (100, 40), 6.0, belt=0.08)
    assert len(overlaps) >= 0.9 * wanted
    assert np.mean(overlaps) > 0.85  # one half alone reaches 0.5


def test_background_starts_again_after_a_change_of_size_and_ignores_a_lamp() -> None:
    rng = np.random.default_rng(1)
    detector = BackgroundDetector()
    grey = np.full((120, 160, 3), 100, np.uint8)
    for index in range(10):
        assert len(detector.detect(as_frame(scene(grey, [], rng), index)).boxes) == 0
    lamp = np.full((120, 160, 3), 180, np.uint8)
    assert len(detector.detect(as_frame(lamp)).boxes) == 0
    large = np.full((240, 320, 3), 100, np.uint8)
    person: Box = (100, 60, 140, 160)
    assert len(detector.detect(as_frame(scene(large, [person], rng))).boxes) == 0


def yolox_file(path: Path, size: tuple[int, int], batch: int | str = 1) -> Path:
    """A network of the YOLOX layout: one strided convolution for each stride, random weights."""
    rng = np.random.default_rng(3)
    channels = 5 + CLASSES
    nodes, weights = [], []
    for stride in (8, 16, 32):
        weight = rng.normal(0, 0.02 / stride, (channels, 3, stride, stride)).astype(np.float32)
        bias = rng.normal(0, 0.3, channels).astype(np.float32) + np.array([0, 0, 0, 0.8, 1, 1, 0], np.float32)
        weights += [
            numpy_helper.from_array(weight, f"w{stride}"),
            numpy_helper.from_array(bias, f"b{stride}"),
        ]
        nodes += [
            helper.make_node(
                "Conv", ["images", f"w{stride}", f"b{stride}"], [f"c{stride}"], strides=[stride, stride]
            ),
            helper.make_node("Reshape", [f"c{stride}", "flat"], [f"r{stride}"]),
        ]
    weights += [
        numpy_helper.from_array(np.array([0, channels, -1], np.int64), "flat"),
        numpy_helper.from_array(np.array([4, channels - 4], np.int64), "parts"),
    ]
    nodes += [
        helper.make_node("Concat", ["r8", "r16", "r32"], ["all"], axis=2),
        helper.make_node("Split", ["all", "parts"], ["box", "logit"], axis=1),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
        helper.make_node("Concat", ["box", "score"], ["joined"], axis=1),
        helper.make_node("Transpose", ["joined"], ["output"], perm=[0, 2, 1]),
    ]
    cells = sum((size[0] // s) * (size[1] // s) for s in (8, 16, 32))
    graph = helper.make_graph(
        nodes,
        "yolox",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, cells, channels])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def slow_candidates(session: OrtSession, image: NDArray[np.uint8], size: tuple[int, int]) -> list[Found]:
    """The layout as its paper and README describe it, one box at a time, before suppression."""
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


def slow_best(candidates: list[Found], shape: tuple[int, ...]) -> list[Found]:
    """Suppression at 0.45, then the boxes clipped to the picture."""
    kept: list[Found] = []
    for box, score in sorted(candidates, key=lambda c: -c[1]):
        if all(iou(box, other) <= 0.45 for other, _ in kept):
            kept.append((box, score))
    right, bottom = float(shape[1]), float(shape[0])
    clipped = [((max(b[0], 0), max(b[1], 0), min(b[2], right), min(b[3], bottom)), s) for b, s in kept]
    return [(b, s) for b, s in clipped if b[2] - b[0] >= 2 and b[3] - b[1] >= 2]


def assert_same(detections: Detections, expected: list[Found]) -> None:
    found = found_in(detections)
    assert len(found) == len(expected) > 5
    for (box, score), (true_box, true_score) in zip(found, expected, strict=True):
        np.testing.assert_allclose(box, true_box, atol=0.02)
        assert score == pytest.approx(true_score, abs=1e-5)


def random_image(height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(5).integers(0, 256, (9, 16, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (40, 30), (480, 640)])
def test_yolox_equals_the_slow_decoder(tmp_path: Path, shape: tuple[int, int]) -> None:
    session = OrtSession(yolox_file(tmp_path / "y.onnx", (96, 160)), threads=1)
    image = random_image(*shape)
    expected = slow_best(slow_candidates(session, image, (96, 160)), shape)
    assert_same(YoloxDetector(session).detect(as_frame(image)), expected)


@pytest.mark.parametrize("batch", [1, 4, "n"])  # 7 pictures: one by one, one padded run, all at once
def test_yolox_tiles_equal_the_slow_decoder_on_each_tile(tmp_path: Path, batch: int | str) -> None:
    size = (64, 96)
    single = OrtSession(yolox_file(tmp_path / "y.onnx", size), threads=1)
    image = random_image(300, 400)
    candidates = slow_candidates(single, image, size)
    # Sides 300 / 1.8 = 166.7 and 400 / 2.6 = 153.8; neighbours share a fifth.
    for top, bottom in [(0, 167), (133, 300)]:
        for left, right in [(0, 154), (123, 277), (246, 400)]:
            for box, score in slow_candidates(single, image[top:bottom, left:right].copy(), size):
                x1, y1, x2, y2 = box[0] + left, box[1] + top, box[2] + left, box[3] + top
                cut_x = (left > 0 and x1 <= left + 2) or (right < 400 and x2 >= right - 2)
                cut_y = (top > 0 and y1 <= top + 2) or (bottom < 300 and y2 >= bottom - 2)
                if not cut_x and not cut_y:
                    candidates.append(((x1, y1, x2, y2), score))
    session = OrtSession(yolox_file(tmp_path / "b.onnx", size, batch), threads=1)
    detections = YoloxDetector(session, tiles=(2, 3)).detect(as_frame(image))
    assert_same(detections, slow_best(candidates, (300, 400)))


def graph_file(path: Path, inputs: list[int | str], outputs: list[int | str]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["output"])],
        "other",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, outputs)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


@pytest.mark.parametrize(
    "shape", [[1, 3, 416, 416], [1, 3, "h", "w"], [1, 3, 100, 100], [1, 416, 416, 3], [1, 3, 416]]
)
def test_yolox_refuses_other_layouts(tmp_path: Path, shape: list[int | str]) -> None:
    session = OrtSession(graph_file(tmp_path / "o.onnx", shape, shape), threads=1)
    with pytest.raises(BackendError, match=r"YOLOX|5 \+ classes") as caught:
        YoloxDetector(session)
    assert str(session.inputs["images"]) in str(caught.value) or str(session.outputs["output"]) in str(
        caught.value
    )


def test_yolox_refuses_no_tiles(tmp_path: Path) -> None:
    session = OrtSession(yolox_file(tmp_path / "y.onnx", (64, 64)), threads=1)
    with pytest.raises(ConfigError, match="0x2"):
        YoloxDetector(session, tiles=(0, 2))


def test_mot_gives_the_boxes_of_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "det.txt"
    path.write_text(
        "1,-1,10,20,30,40,0.9,-1,-1,-1\n"
        "1,-1,-5,90,30,40,0.5\n"  # over the left and lower border
        "1,-1,50,50,10,10,0\n"  # ignored
        "1,-1,200,10,10,10,1\n"  # outside
        "\n"
        "3,7,1.5,2.5,10,20,-1,-1,-1,-1\n"
    )
    detector = MotDetector(path)
    image = np.zeros((100, 100, 3), np.uint8)
    first = detector.detect(as_frame(image, 0))
    np.testing.assert_allclose(first.boxes, [[10, 20, 40, 60], [0, 90, 25, 100]])
    np.testing.assert_allclose(first.scores, [0.9, 0.5])
    assert first.boxes.dtype == first.scores.dtype == np.float32
    assert detector.detect(as_frame(image, 1)).boxes.shape == (0, 4)
    third = detector.detect(as_frame(image, 2))
    np.testing.assert_allclose(third.boxes, [[1.5, 2.5, 11.5, 22.5]])
    np.testing.assert_allclose(third.scores, [1])


@pytest.mark.parametrize(
    "line",
    ["1,2,3", "0,1,1,1,9,9,1", "1.5,1,1,1,9,9,1", "1,1,a,1,9,9,1", "1,1,1,1,nan,9,1", "1,1,1,1,9,9,35"],
)
def test_mot_names_the_malformed_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "det.txt"
    path.write_text(f"1,-1,10,20,30,40,1\n\n{line}\n")
    with pytest.raises(SourceError, match=r"det\.txt, line 3: .*found"):
        MotDetector(path)


def test_mot_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.txt"):
        MotDetector(tmp_path / "gone.txt")
