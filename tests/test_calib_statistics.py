"""What is told about a clip, against the definitions."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from s3clip_calib.statistics import STATISTICS, describe
from s3clip_runtime.inference.clips import Clip


def clip_of(*crops: np.ndarray) -> Clip:
    return Clip(tuple(np.asarray(crop, np.uint8) for crop in crops), 0, False)


def described(*crops: np.ndarray) -> dict[str, float]:
    values = describe(clip_of(*crops))
    assert values.dtype == np.float32
    return dict(zip(STATISTICS, values.tolist(), strict=True))


def test_flat_crops_have_known_statistics() -> None:
    colour = np.full((50, 20, 3), (200, 100, 50))
    found = described(*[colour] * 8)
    expected = {
        "log_height": np.log(50),
        "log_aspect": np.log(2.5),
        "luminance": round(0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255,
        "contrast": 0,
        "log_sharpness": 0,
        "saturation": 150 / 255,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert described(colour * 0) == pytest.approx(expected | dict.fromkeys(STATISTICS[2:], 0), abs=1e-6)


def test_sizes_count_by_the_median_and_crops_by_their_mean() -> None:
    black, white = np.zeros((30, 10, 3)), np.full((60, 20, 3), 255)
    found = described(black, black, white, np.full((90, 10, 3), 255))
    assert found["log_height"] == pytest.approx(np.log(45))
    assert found["log_aspect"] == pytest.approx((3 * np.log(3) + np.log(9)) / 4)
    assert found["luminance"] == pytest.approx(0.5)


def test_contrast_and_sharpness_by_their_definition() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (64, 32), dtype=np.uint8)
    found = described(np.repeat(grey[..., None], 3, axis=2))
    wide = np.pad(grey.astype(np.float64), 1, mode="reflect")
    laplacian = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * wide[1:-1, 1:-1]
    assert found["contrast"] == pytest.approx(grey.std() / 255, rel=1e-5)
    assert found["log_sharpness"] == pytest.approx(np.log(laplacian.var() + 1), rel=1e-5)
    assert found["saturation"] == 0


def test_sharpness_compares_sizes_and_sees_blur() -> None:
    rng = np.random.default_rng(1)
    person = cv2.resize(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8), (128, 256))
    half = cv2.resize(person, (64, 128), interpolation=cv2.INTER_AREA)
    far = cv2.resize(person, (10, 20), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(person, (0, 0), 6)
    sharp = described(person)["log_sharpness"]
    assert described(half)["log_sharpness"] == pytest.approx(sharp, abs=0.3)
    assert described(far)["log_sharpness"] < sharp - 1
    assert described(blurred)["log_sharpness"] < sharp - 1
