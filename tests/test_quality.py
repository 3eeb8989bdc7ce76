"""What a crop is worth, and which crops are chosen, beside slow and obvious versions."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_runtime.streams.looks import CropQuality
from s3clip_runtime.streams.tracking.quality import choose, crop_quality


def textured(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def rated(image: NDArray[np.uint8], *boxes: tuple[float, ...], score: float = 0.9) -> list[CropQuality]:
    return crop_quality(image, np.array(boxes, np.float32), np.full(len(boxes), score, np.float32))


def worth(value: float) -> CropQuality:
    return CropQuality(value, 0.0, 0.0, 0.0, 0.0, False)


def random_boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    corners = rng.uniform(-20, 220, (count, 2, 2)).astype(np.float32)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def slow_quality(
    image: NDArray[np.uint8], boxes: list[list[float]], scores: list[float], number: int
) -> tuple[float, float, float, float, float, bool]:
    """The rule of one box in plain words and loops. Value, size, sharp, score, covered, cut."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = boxes[number]
    area = max((x2 - x1) * (y2 - y1), 1.0)
    size = min((area / (128 * 64)) ** 0.5, 1.0)
    left, top = (min(max(int(np.floor(edge)), 0), side - 1) for edge, side in ((x1, width), (y1, height)))
    right, bottom = (min(max(int(np.ceil(edge)), 1), side) for edge, side in ((x2, width), (y2, height)))
    crop = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    small = cv2.resize(crop, (32, 64), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(float)
    around = np.pad(grey, 1, mode="reflect")
    laplacian = [
        [
            around[r, c + 1] + around[r + 2, c + 1] + around[r + 1, c] + around[r + 1, c + 2] - 4 * grey[r, c]
            for c in range(32)
        ]
        for r in range(64)
    ]
    variance = float(np.var(laplacian))
    sharp = variance / (variance + 500)
    cut = x1 < 1 or y1 < 1 or x2 > width - 1 or y2 > height - 1
    covered = 0.0
    for other, (a1, b1, a2, b2) in enumerate(boxes):
        if other != number:
            shared = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
            covered = max(covered, min(shared / area, 1.0))
    whole = 0.4 * size + 0.4 * sharp + 0.2 * scores[number]
    return whole * (0.5 if cut else 1) * (1 - covered), size, sharp, scores[number], covered, cut


def test_quality_and_all_its_terms_equal_the_slow_version() -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        image = textured(200, 180, seed)
        boxes = random_boxes(rng, 6)
        boxes[0] = (30, 40, 31.5, 41)  # less than two pixels
        scores = rng.uniform(0, 1, 6).astype(np.float32)
        for number, got in enumerate(crop_quality(image, boxes, scores)):
            want = slow_quality(image, boxes.tolist(), scores.tolist(), number)
            assert (got.value, got.size, got.sharp, got.score, got.covered) == pytest.approx(
                want[:5], abs=1e-5
            )
            assert got.cut is want[5]
    assert crop_quality(image, np.zeros((0, 4), np.float32), np.zeros(0, np.float32)) == []


def test_quality_orders_crops_as_people_would() -> None:
    sharp = textured(300, 300)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 12).astype(np.uint8)
    box = (100, 100, 140, 200)
    alone = rated(sharp, box)[0].value
    assert rated(blurred, box)[0].value < alone
    assert rated(sharp, (100, 100, 120, 150))[0].value < alone  # smaller
    assert rated(sharp, (0, 100, 40, 200))[0].value < alone  # cut by the border
    assert rated(sharp, (260, 200, 300, 300))[0].value < alone
    assert rated(sharp, box, score=0.3)[0].value < alone
    together = rated(sharp, box, (120, 100, 160, 200), (200, 10, 240, 110))
    assert together[0].value == pytest.approx(alone / 2, rel=1e-5)  # half of it is covered
    assert together[2].value == pytest.approx(rated(sharp, (200, 10, 240, 110))[0].value, rel=1e-5)


def test_quality_is_bounded() -> None:
    rng = np.random.default_rng(2)
    for image in (
        textured(200, 200),
        np.zeros((200, 200, 3), np.uint8),
        np.full((200, 200, 3), 255, np.uint8),
    ):
        boxes = random_boxes(rng, 50)
        for one in crop_quality(image, boxes, rng.uniform(0, 1, 50).astype(np.float32)):
            terms = np.array([one.value, one.size, one.sharp, one.score, one.covered])
            assert np.isfinite(terms).all()
            assert ((terms >= 0) & (terms <= 1)).all()


@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 15, 16, 17, 40, 64])
def test_choice_is_the_best_of_eight_equal_spans(count: int) -> None:
    """By exhaustion: of all crops of a span none is better, and of equal ones none comes earlier."""
    values = np.random.default_rng(count).integers(1, 6, count) / 5
    chosen = choose([worth(float(value)) for value in values])
    assert len(chosen) == 8
    assert sum(one.weight for one in chosen) == pytest.approx(1)
    total = sum(float(values[one.position]) for one in chosen)
    for number, one in enumerate(chosen):
        span = [i for i in range(count) if number * count // 8 <= i < (number + 1) * count // 8]
        if count <= 8:
            span = [min(number, count - 1)]
        best = max(span, key=lambda i: (values[i], -i))
        assert one.position == best
        assert one.weight == pytest.approx(values[best] / total)


def test_crops_without_any_quality_weigh_the_same() -> None:
    for count in (1, 8, 20):
        chosen = choose([worth(0.0)] * count)
        assert [one.weight for one in chosen] == [1 / 8] * 8
    one_good = choose([worth(0.0), worth(0.5), worth(0.0)])
    assert [(one.position, one.weight) for one in one_good] == [(0, 0.0), (1, 1.0)] + [(2, 0.0)] * 6
