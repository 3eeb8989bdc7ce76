"""Detectors without a network against rendered persons and hand-written MOT lines, and choosing detectors."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from detector_graphs import random_image, yolox_file
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError, BundleError, ConfigError, S3ClipError, SourceError
from s3clip_runtime.streams.detection.background import BackgroundDetector
from s3clip_runtime.streams.detection.choose import Choice, open_detectors
from s3clip_runtime.streams.detection.external import ExternalBoxes
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.detection.network import NetworkDetector
from s3clip_runtime.streams.frames import Detections, Frame

Box = tuple[float, float, float, float]
Found = tuple[Box, float]


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
        found = found_in(detector.detect([as_frame(scene(background, walkers, rng, belt), index)])[0])
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
        assert len(detector.detect([as_frame(scene(grey, [], rng), index)])[0].boxes) == 0
    lamp = np.full((120, 160, 3), 180, np.uint8)
    assert len(detector.detect([as_frame(lamp)])[0].boxes) == 0
    large = np.full((240, 320, 3), 100, np.uint8)
    person: Box = (100, 60, 140, 160)
    assert len(detector.detect([as_frame(scene(large, [person], rng))])[0].boxes) == 0


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
    first = detector.detect([as_frame(image, 0)])[0]
    np.testing.assert_allclose(first.boxes, [[10, 20, 40, 60], [0, 90, 25, 100]])
    np.testing.assert_allclose(first.scores, [0.9, 0.5])
    assert first.boxes.dtype == first.scores.dtype == np.float32
    assert detector.detect([as_frame(image, 1)])[0].boxes.shape == (0, 4)
    third = detector.detect([as_frame(image, 2)])[0]
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


def test_cameras_share_a_network_and_an_address_and_nothing_else(tmp_path: Path) -> None:
    network = yolox_file(tmp_path / "net.onnx", (64, 96), "n")
    mot = tmp_path / "det.txt"
    mot.write_text("1,-1,10,20,30,15,0.9\n")
    choices = {
        "a": Choice(str(network)),
        "b": Choice(),
        "c": Choice(str(network), tiles=(1, 2)),
        "d": Choice(str(mot)),
        "e": Choice(),
        "f": Choice(f"unix:{tmp_path}/boxes.sock"),
        "g": Choice(f"unix:{tmp_path}/boxes.sock"),
    }
    detectors = open_detectors(choices, device="cpu", threads=1)
    own = {name: detectors.of_camera(name) for name in choices}
    assert own["a"] is own["c"]
    assert own["f"] is own["g"]
    assert len({id(one) for one in own.values()}) == 5
    kinds = [type(own[name]) for name in "abdf"]
    assert kinds == [NetworkDetector, BackgroundDetector, MotDetector, ExternalBoxes]
    image = random_image(90, 160)
    # Any order, not all cameras; live ones, for files would wait for boxes.
    frames = [Frame(name, 0, 1e9, image, "arrival") for name in "gdcba"]
    found = [own[frame.camera].detect([frame])[0] for frame in frames]
    found[2], found[4] = own["a"].detect([frames[2], frames[4]])  # one batch of two cameras
    assert [len(one.boxes) for one in (found[0], found[3])] == [0, 0]
    np.testing.assert_allclose(found[1].boxes, [[10, 20, 40, 35]])
    for number, name in ((2, "c"), (4, "a")):
        alone = own[name].detect([frames[number]])[0]
        assert len(alone.boxes) > 5
        np.testing.assert_allclose(found[number].boxes, alone.boxes, atol=1e-3)
    assert len(found[2].boxes) != len(found[4].boxes)  # c is tiled, a is not
    assert (tmp_path / "boxes.sock").exists()
    detectors.close()
    detectors.close()
    assert not (tmp_path / "boxes.sock").exists()
    with pytest.raises(BackendError, match="the session is closed"):
        own["a"].detect(frames[-1:])


def test_an_error_of_one_choice_leaves_nothing_open(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/boxes.sock"
    before = threading.active_count()
    with pytest.raises(SourceError, match=r"gone\.txt"):
        open_detectors({"a": Choice(address), "b": Choice(str(tmp_path / "gone.txt"))}, device="cpu")
    assert not (tmp_path / "boxes.sock").exists()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("choice", "error", "text"),
    [
        (
            Choice("yolo"),
            ConfigError,
            "camera gate: detector 'yolo' is unknown; give 'background', a network",
        ),
        (Choice("rtsp://me:secret@cam/x"), ConfigError, "detector 'rtsp://\\*\\*\\*@cam/x' is unknown"),
        (
            Choice("background", tiles=(2, 2)),
            ConfigError,
            "tiles work with a network, not with .*'background'",
        ),
        (Choice("det.txt", tiles=(2, 2)), ConfigError, "camera gate: tiles work with a network"),
        (Choice("-", layout="ssd"), ConfigError, "a layout is named for an .onnx file, not for detector '-'"),
        (Choice("tcp:0.0.0.0:9000"), ConfigError, "other machines could send boxes to 0.0.0.0; listen on"),
        (Choice("gone.onnx"), BackendError, "detector gone.onnx: the file does not exist"),
        (Choice("gone.txt"), SourceError, "gone.txt: cannot be read"),
        (
            Choice("."),
            BundleError,
            "detector .: holds no detector.json; write it with s3clip-export detector",
        ),
    ],
)
def test_a_choice_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: Choice, error: type[S3ClipError], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text) as caught:
        open_detectors({"gate": choice}, device="cpu")
    assert "secret" not in str(caught.value)


def test_the_file_is_named_when_its_graph_or_tiles_do_not_fit(tmp_path: Path) -> None:
    network = yolox_file(tmp_path / "net.onnx", (64, 96))
    with pytest.raises(ConfigError, match=r"net\.onnx: tiles must be at least 1x1, found 0x2"):
        open_detectors({"gate": Choice(str(network), tiles=(0, 2))}, device="cpu", threads=1)
    with pytest.raises(
        BackendError, match=r"net\.onnx: detector: the graph has inputs images .*Known is ssd"
    ):
        open_detectors({"gate": Choice(str(network), layout="ssd")}, device="cpu", threads=1)
