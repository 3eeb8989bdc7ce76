"""Kept crops: the same pixels come back, damage never gives others."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.storage.clips import pack, unpack

SIZES = [(1, 1), (3, 7), (7, 3), (64, 32), (300, 150), (1, 500)]
DEMO = Path(__file__).parents[1] / "runtime/s3clip_runtime/demo"
Crop = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Crop:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def zipped(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, file in files.items():
            archive.writestr(name.removeprefix("_") + ".png", file)
        archive.comment = f"{len(files)} crops".encode()
    return data.getvalue()


def png(picture: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    done, data = cv2.imencode(".png", picture)
    assert done
    return data.tobytes()


def same(found: tuple[Crop, ...], crops: list[Crop]) -> bool:
    pairs = list(zip(found, crops, strict=True))
    return all(a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) for a, b in pairs)


def test_pixels_come_back_at_every_size() -> None:
    crops = [noise(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
    crops += [np.full((5, 4, 3), value, np.uint8) for value in (0, 255)]
    found = unpack(pack(crops))
    assert same(found, crops)
    assert all(crop.flags.c_contiguous for crop in found)


def test_more_than_ten_keep_their_order() -> None:
    crops = [np.full((2, 2, 3), value, np.uint8) for value in range(25)]
    assert same(unpack(pack(crops)), crops)


def test_views_of_a_frame_are_packed_as_they_look() -> None:
    frame = noise(40, 40)
    crops = [frame[3:20, 5:17], frame[::-1, :, ::-1], frame[::2, ::3]]
    assert same(unpack(pack(crops)), [np.ascontiguousarray(crop) for crop in crops])


def test_pillow_reads_the_same_colours() -> None:
    crops = [noise(3, 7), np.array([[[255, 0, 0]]], np.uint8)]
    with zipfile.ZipFile(io.BytesIO(pack(crops))) as archive:
        assert archive.namelist() == ["0.png", "1.png"]
        assert archive.comment == b"2 crops"
        pictures = [Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    assert [picture.mode for picture in pictures] == ["RGB", "RGB"]
    assert same(tuple(np.asarray(picture) for picture in pictures), crops)


def test_what_pillow_wrote_is_read() -> None:
    crop, file = noise(9, 5), io.BytesIO()
    Image.fromarray(crop).save(file, "PNG")
    assert same(unpack(zipped(_0=file.getvalue())), [crop])


def test_the_same_crops_give_the_same_bytes() -> None:
    crops = [noise(8, 4, seed) for seed in range(3)]
    assert pack(crops) == pack(tuple(crops))


@pytest.mark.parametrize(("size", "most"), [((64, 32), 0.4), ((256, 128), 0.4)])
def test_crops_of_a_video_take_less_than_their_pixels(size: tuple[int, int], most: float) -> None:
    video = cv2.VideoCapture(str(DEMO / "ground.mp4"))
    frames = [video.read()[1] for _ in range(8)]
    video.release()
    crops = [np.asarray(frame[50 : 50 + size[0], 200 : 200 + size[1]], np.uint8) for frame in frames]
    assert 0 < len(pack(crops)) < most * sum(crop.nbytes for crop in crops)


def test_no_changed_bit_gives_other_pixels() -> None:
    """Some bytes of an archive tell dates and versions: they may change, and the pixels stay."""
    crops = [noise(2, 3), noise(3, 1, 1)]
    data = pack(crops)
    refused = 0
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            try:
                found = unpack(bytes(changed))
            except GalleryError:
                refused += 1
            else:
                assert same(found, crops), place
    assert refused > 4 * len(data)


def test_no_cut_and_no_zeroed_bytes_give_other_pixels() -> None:
    crops = [noise(2, 3), noise(3, 1, 1)]
    data = pack(crops)
    for end in range(len(data)):
        with pytest.raises(GalleryError, match="damaged"):
            unpack(data[:end])
        with pytest.raises(GalleryError, match="damaged"):
            unpack(data[:end] + bytes(len(data) - end))


def test_a_crop_that_the_index_lost_is_noticed() -> None:
    file = png(noise(2, 2))
    fewer = zipped(_0=file).replace(b"1 crops", b"2 crops")
    for data in (fewer, zipped(_1=file), zipped(), zipped(_1=file, _0=file)):
        with pytest.raises(GalleryError, match=r"must be 0\.png, 1\.png, \.\.\. and all there"):
            unpack(data)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"no picture",
        png(noise(4, 4)[..., 0]),
        png(np.zeros((4, 4, 4), np.uint8)),
        png(np.zeros((4, 4, 3), np.uint16)),
    ],
    ids=["empty", "text", "grey", "alpha", "16 bit"],
)
def test_other_files_in_an_archive_are_refused(file: bytes) -> None:
    with pytest.raises(GalleryError, match=r"kept crop .*damaged"):
        unpack(zipped(_0=file))


def test_a_compressed_archive_is_refused() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", png(noise(4, 4)))
        archive.comment = b"1 crops"
    with pytest.raises(GalleryError, match="uncompressed"):
        unpack(data.getvalue())


@pytest.mark.parametrize(
    "crop",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
    ids=["grey", "alpha", "empty", "float"],
)
def test_what_is_no_crop_is_not_packed(crop: Crop) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \(h, w, 3\), found"):
        pack([crop])


def test_no_crops_are_not_packed() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack([])
