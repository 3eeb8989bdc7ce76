"""Decoding: the same pixels as Pillow's, and no picture that is only half there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s3clip.clips import decode
from s3clip_runtime.errors import DataError


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height)
    small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "options", [{"quality": 60}, {"quality": 95, "subsampling": 0}, {"progressive": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_are_pillows(tmp_path: Path, options: dict[str, int], mode: str) -> None:
    for height, width in ((8, 5), (64, 33), (150, 71), (257, 120)):
        path = tmp_path / f"{height}.jpg"
        picture(height, width).convert(mode).save(path, "JPEG", **options)
        with Image.open(path) as image:
            np.testing.assert_array_equal(decode(path), np.asarray(image.convert("RGB")))


def test_exif_orientation_is_left_alone_as_pillow_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture(64, 32).save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg").shape == (64, 32, 3)


def test_other_formats_and_trailing_bytes(tmp_path: Path) -> None:
    shown = picture(40, 20)
    shown.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), np.asarray(shown))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue() + b"padding")
    assert decode(tmp_path / "a.jpg").shape == (40, 20, 3)


@pytest.mark.parametrize("keep", [0, 3, 300, -2])
def test_truncated_and_missing_files_are_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.jpg"
    buffer = io.BytesIO()
    picture(160, 80).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:keep])
    with pytest.raises(DataError, match=r"cut\.jpg: a frame must be a readable image"):
        decode(path)
    with pytest.raises(DataError, match=r"absent\.jpg"):
        decode(tmp_path / "absent.jpg")
