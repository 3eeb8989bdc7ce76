"""Crops on a real disk, right and wrong, as both calibrations read them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from worlds import write_picture

from s3clip.clips import load_crops
from s3clip.datasets import Tracklet as TrainingTracklet
from s3clip.datasets import folder
from s3clip.datasets.sizes import SizeCache
from s3clip.synthetic import write_dataset
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.clips import spread_indices
from s3clip_runtime.inference.pictures import picture_files, read_picture, read_upright
from s3clip_runtime.inference.tracklets import SHOWN_PROBLEMS, Tracklet, read_clip, read_tracklets


def colours(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(suffix: str, picture: np.ndarray) -> bytes:
    """By OpenCV: a writer that is not Pillow."""
    return bytes(cv2.imencode(suffix, picture)[1].tobytes())


def assert_same_tracklets(root: Path, split: Path, sizes: SizeCache) -> list[Tracklet]:
    """As the reader of the training room sees them, one by one and by their pixels."""
    found = {tracklet.name: tracklet for tracklet in read_tracklets(split)}
    known = {tracklet.name: tracklet for tracklet in folder.read_train(root, sizes)}
    assert found.keys() == known.keys()
    for name, truth in known.items():
        tracklet = found[name]
        assert tracklet.identity is not None
        assert (tracklet.platform, tracklet.camera) == (truth.platform, truth.camera)
        assert int(tracklet.identity) == truth.identity
        assert tracklet.files == tuple(truth.frame(i) for i in range(len(truth)))
        assert tracklet.sizes == truth.sizes
        clip = read_clip(tracklet)
        assert (clip.platform, clip.hr) == (truth.platform, truth.hr)
        for crop, expected in zip(clip.crops, load_crops(truth, spread_indices(len(truth))), strict=True):
            np.testing.assert_array_equal(crop, expected)
    return list(found.values())


def test_the_synthetic_world_reads_as_training_reads_it(tmp_path: Path, size_cache: SizeCache) -> None:
    root = tmp_path / "world"
    write_dataset(root, seed=3, train_identities=3, test_identities=1, frames=11, progress=False)
    found = assert_same_tracklets(root, root / "train", size_cache)
    assert len(found) == 3 * 2 * 2
    whole = read_tracklets(root)
    assert len(whole) == len(found) + 4
    assert {tracklet.name for tracklet in whole} >= {f"train/{tracklet.name}" for tracklet in found}


def test_the_block_world_reads_as_training_reads_it(tiny_world: Path, size_cache: SizeCache) -> None:
    found = assert_same_tracklets(tiny_world, tiny_world / "train", size_cache)
    assert {tracklet.platform for tracklet in found} == {0, 1}


LAYOUTS = {
    # path of the tracklet's folder: platform, camera, identity
    "train/ground/0007/cam0_0003": (0, "ground/cam0", "0007"),
    "aerial/cam1_12_b": (1, "aerial/cam1", None),
    "site/ground/gate/12": (0, "ground/gate", None),
    "ground/0007/12": (0, "ground/camera", "0007"),
    "ground/0007/gate/12": (0, "ground/gate", "0007"),
    "ground/12": (0, "ground/camera", None),
    "aerial": (1, "aerial/camera", None),
    "ground/_12": (0, "ground/camera", None),
}


@pytest.mark.parametrize("path", LAYOUTS)
def test_what_a_path_tells(tmp_path: Path, path: str) -> None:
    write_picture(tmp_path / path / "1.png")
    (found,) = read_tracklets(tmp_path)
    assert (found.name, found.platform, found.camera, found.identity) == (path, *LAYOUTS[path])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_root_may_lie_below_the_platform(
    tmp_path: Path, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("aerial", "0007", "cam0_0003")
    write_picture(tmp_path.joinpath(*parts, "1.jpg"))
    root = tmp_path.joinpath(*parts[:depth])
    (found,) = read_tracklets(root)
    assert (found.platform, found.camera, found.identity) == (1, "aerial/cam0", "0007")
    assert found.name == ("/".join(parts[depth:]) or ".")
    monkeypatch.chdir(root)
    (relative,) = read_tracklets(Path())
    assert (relative.name, relative.platform, relative.camera) == (found.name, 1, "aerial/cam0")


def test_the_platform_below_the_root_goes_before_that_above(tmp_path: Path) -> None:
    write_picture(tmp_path / "ground/new/aerial/cam0_1/1.jpg")
    (found,) = read_tracklets(tmp_path / "ground")
    assert (found.platform, found.camera) == (1, "aerial/cam0")
    (above,) = read_tracklets(tmp_path / "ground/new/aerial")
    assert above.platform == 1
    write_picture(tmp_path / "aerial/ground/cam0_1/1.jpg")
    (nearest,) = read_tracklets(tmp_path / "aerial/ground")
    assert (nearest.platform, nearest.camera, nearest.identity) == (0, "ground/cam0", None)


def test_frames_and_tracklets_sort_by_their_numbers_and_hidden_ones_are_left(tmp_path: Path) -> None:
    for name in ("f10.JPG", "f9.jpeg", "f100.png", "e11.bmp", "g1.webp", "g2.tif", "g3.TIFF", "._f9.jpg"):
        buffer = io.BytesIO()
        kind = {"jpeg": "JPEG", "jpg": "JPEG", "tif": "TIFF"}.get(name.rpartition(".")[2].lower())
        Image.new("RGB", (4, 6)).save(buffer, kind or name.rpartition(".")[2])
        (tmp_path / "ground/cam_10").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ground/cam_10" / name).write_bytes(buffer.getvalue())
    write_picture(tmp_path / "ground/cam_9/1.jpg")
    write_picture(tmp_path / "ground/.thumbnails/1.jpg")
    (tmp_path / "ground/cam_9/notes.txt").write_text("sunny")
    nine, ten = read_tracklets(tmp_path)
    assert (nine.name, ten.name) == ("ground/cam_9", "ground/cam_10")
    names = [file.name for file in ten.files]
    assert names == ["e11.bmp", "f9.jpeg", "f10.JPG", "f100.png", "g1.webp", "g2.tif", "g3.TIFF"]
    assert ten.sizes == ((6, 4),) * 7


def test_hr_is_decided_on_all_frames_not_on_the_chosen_ones(tmp_path: Path) -> None:
    # Of 24 frames 0, 3, 6 ... are chosen; only these are HR, a third of all.
    for i in range(24):
        write_picture(tmp_path / f"ground/cam_1/{i}.png", (128, 64) if i % 3 == 0 else (40, 20))
    (tracklet,) = read_tracklets(tmp_path)
    clip = read_clip(tracklet)
    assert [crop.shape for crop in clip.crops] == [(128, 64, 3)] * 8
    assert not clip.hr


def test_short_tracklets_repeat_the_last_frame(tmp_path: Path) -> None:
    for i in range(3):
        write_picture(tmp_path / f"ground/{i}.png", (9 + i, 5))
    clip = read_clip(read_tracklets(tmp_path)[0])
    assert [len(crop) for crop in clip.crops] == [9, 10, 11, 11, 11, 11, 11, 11]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_eight_bit_pictures_become_rgb_as_training_makes_them(
    tmp_path: Path, mode: str, suffix: str, size_cache: SizeCache
) -> None:
    place = tmp_path / "train/ground/0001/cam_1"
    place.mkdir(parents=True)
    alpha = mode in ("RGBA", "LA")
    Image.fromarray(colours(12, 7, 4 if alpha else 3)).convert(mode).save(place / f"1{suffix}")
    (tracklet,) = read_tracklets(tmp_path)
    crop = read_clip(tracklet).crops[0]
    assert crop.dtype == np.uint8
    truth = TrainingTracklet("", 1, "", 0, place, (f"1{suffix}",), ((12, 7),))
    np.testing.assert_array_equal(crop, load_crops(truth, [0])[0])


def test_missing_and_empty_roots(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"absent: calibration data must be a folder, and there is none; name"
    ):
        read_tracklets(tmp_path / "absent")
    write_picture(tmp_path / "file.jpg")
    with pytest.raises(DataError, match=r"file\.jpg: calibration data must be a folder"):
        read_tracklets(tmp_path / "file.jpg")
    (tmp_path / "empty/ground/cam_1").mkdir(parents=True)
    (tmp_path / "empty/ground/cam_1/notes.txt").touch()
    with pytest.raises(DataError, match=r"empty: calibration data must hold pictures.*or record crops"):
        read_tracklets(tmp_path / "empty")


def test_a_folder_without_platform_or_with_two(tmp_path: Path) -> None:
    write_picture(tmp_path / "space/cam_1/1.jpg")
    write_picture(tmp_path / "ground/aerial/cam_1/1.jpg")
    write_picture(tmp_path / "ground/cam_1/1.jpg")
    with pytest.raises(DataError) as caught:
        read_tracklets(tmp_path)
    title, two, none = str(caught.value).splitlines()
    assert title == f"{tmp_path}: 2 problem(s) with the calibration data"
    assert two.startswith(f"  {tmp_path}/ground/aerial/cam_1: one folder of a path names the platform")
    assert two.endswith("found aerial and ground; rename all but one")
    assert none.startswith(
        f"  {tmp_path}/space/cam_1: a tracklet must lie below a folder named ground or aerial"
    )
    assert none.endswith(f"move it into one, as {tmp_path}/ground")


DEEP = {
    # what a file is: its suffix, its bytes
    "float32 TIF": (".tif", encoded(".tiff", np.full((8, 4), np.nan, np.float32))),
    "float32 TIFF": (".tiff", encoded(".tiff", np.full((8, 4, 3), np.nan, np.float32))),
    "float64 TIF": (".tif", encoded(".tiff", np.full((8, 4, 3), 0.5))),
    "uint16 TIFF": (".tiff", encoded(".tiff", np.full((8, 4, 3), 9000, np.uint16))),
    "uint16 PNG": (".png", encoded(".png", np.full((8, 4), 9000, np.uint16))),
    "uint16 PNG colour": (".png", encoded(".png", np.full((8, 4, 3), 9000, np.uint16))),
    "uint16 PNG alpha": (".png", encoded(".png", np.full((8, 4, 4), 9000, np.uint16))),
    # Contents count, not what the file is called.
    "float32 JPG": (".jpg", encoded(".tiff", np.full((8, 4), 0.5, np.float32))),
}


@pytest.mark.parametrize("kind", DEEP)
def test_pictures_of_other_depths_are_refused_by_name_and_kind(tmp_path: Path, kind: str) -> None:
    suffix, content = DEEP[kind]
    path = tmp_path / f"ground/cam_1/crop{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    found = " ".join(kind.split()[:2])
    sentence = (
        f"{path}: a crop must be an 8-bit grey or colour picture, found {found}; write it with values of"
    )
    with pytest.raises(DataError) as caught:
        read_tracklets(tmp_path)
    assert sentence in str(caught.value)
    # Also when the file was replaced after the headers were read.
    with pytest.raises(DataError) as caught:
        read_clip(Tracklet("t", (path,), 0, "ground/cam", None, ((8, 4),)))
    assert str(caught.value).startswith("tracklet t: 1 of its crops cannot be used\n")
    assert sentence in str(caught.value)


def test_pillow_itself_would_have_taken_16_bit_colour(tmp_path: Path) -> None:
    """Why headers are read at all: the mode does not tell."""
    with Image.open(io.BytesIO(DEEP["uint16 PNG colour"][1])) as picture:
        assert picture.mode == "RGB"


def test_float_grey_that_pillow_writes_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "aerial").mkdir()
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "aerial/nan.tif")
    with pytest.raises(DataError, match=r"nan\.tif: a crop must be an 8-bit .* found float32 TIF;"):
        read_tracklets(tmp_path)
    Image.new("LAB", (4, 4)).save(tmp_path / "aerial/nan.tif")
    with pytest.raises(DataError, match=r"found mode LAB TIF;"):
        read_tracklets(tmp_path)


def test_a_jpeg_that_is_cut_off_is_found_when_it_is_decoded(tmp_path: Path) -> None:
    place = tmp_path / "ground/cam_1"
    place.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(colours(160, 80)).save(place / f"{i}.jpg")
    for i in (1, 3):
        content = (place / f"{i}.jpg").read_bytes()
        (place / f"{i}.jpg").write_bytes(content[: len(content) // 2])
    (tracklet,) = read_tracklets(tmp_path)
    with pytest.raises(DataError) as caught:
        read_clip(tracklet)
    title, *lines = str(caught.value).splitlines()
    assert title == "tracklet ground/cam_1: 2 of its crops cannot be used"
    for i, line in zip((1, 3), lines, strict=True):
        assert line.startswith(f"  {place}/{i}.jpg: a crop must be a readable picture (")
        assert line.endswith("; restore or remove it")


def refusal(path: Path) -> str | None:
    try:
        crop = read_picture(path)
    except DataError as error:
        return str(error)
    assert crop.dtype == np.uint8
    assert crop.shape[2:] == (3,)
    return None


def with_bytes(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


PNG, TIFF, BMP = (encoded(suffix, colours(16, 8)) for suffix in (".png", ".tiff", ".bmp"))
BITS = TIFF.index(b"\x02\x01\x03\x00")
"""Where the TIFF's tag of bits a sample is: number 258, kind 3."""

DAMAGED = {
    "nothing": b"",
    "short header.png": with_bytes(PNG, 8, b"\0\0\0\5"),
    "strange chunk.png": with_bytes(PNG, 37, b"\xdf\x01"),
    "cut header.tif": TIFF[:6],
    "cut directory.tif": TIFF[: BITS + 5],
    "bits in letters.tif": with_bytes(TIFF, BITS + 2, b"\2\0"),
    "square of 60000.bmp": with_bytes(BMP, 18, (60_000).to_bytes(4, "little") * 2),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", DAMAGED)
def test_headers_that_are_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / f"ground/cam_1/{damage}"
    path = path if path.suffix else path.with_suffix(".jpg")
    write_picture(tmp_path / "ground/cam_1/good.jpg")
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(DataError) as caught:
        read_tracklets(tmp_path)
    _, line = str(caught.value).splitlines()
    assert line.startswith(f"  {path}: a crop must be ")
    assert line.endswith("; restore or remove it")


def test_a_png_whose_pixels_end_in_another_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(with_bytes(PNG, PNG.index(b"IDAT") - 4, (40).to_bytes(4, "big")))
    with pytest.raises(DataError, match=r"a\.png: a crop must be a readable picture \(broken PNG"):
        read_picture(path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_every_damage_is_a_sentence(tmp_path: Path, suffix: str) -> None:
    """Cut off anywhere, or with bytes changed: a picture or a DataError that names the file, nothing else."""
    path = tmp_path / f"crop{suffix}"
    Image.fromarray(colours(16, 8)).save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = []
    for attempt in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 200), 3).tolist():
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged if attempt % 2 else content[: int(rng.integers(len(content)))])
        refusals.append(refusal(path))
    found = [told for told in refusals if told is not None]
    assert len(found) > 150
    assert all(told.startswith(f"{path}: a crop must be ") for told in found)


def test_long_reports_are_cut_and_counted(tmp_path: Path) -> None:
    (tmp_path / "ground").mkdir()
    for i in range(SHOWN_PROBLEMS + 3):
        (tmp_path / f"ground/{i}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        read_tracklets(tmp_path)
    title, *lines = str(caught.value).splitlines()
    assert "13 problem(s)" in title
    assert len(lines) == SHOWN_PROBLEMS + 1
    assert lines[0].startswith(
        f"  {tmp_path}/ground/0.jpg: a crop must be a picture (JPEG, PNG, BMP, WEBP, TIFF)"
    )
    assert lines[-1] == "  and 3 more"


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """Each folder is read once, by its own name, although links lead to it and round in circles."""
    outside = tmp_path / "disk2/aerial_crops"
    write_picture(outside / "cam_5/1.jpg")
    root = tmp_path / "data"
    write_picture(root / "train/ground/0001/cam_1/1.jpg")
    write_picture(tmp_path / "test/ground/0002/cam_1/1.jpg")
    for name in ("a_link", "z_link"):  # sort before and after the real one, and have no platform
        (root / name).symlink_to(root / "train/ground")
    (root / "train/ground/0001/cam_1/round").symlink_to(root)
    (root / "train/ground/up").symlink_to(tmp_path)  # would bring in test
    (root / "train/aerial").symlink_to(outside)
    (root / "train/aerial/cam_5/again").symlink_to(root / "train")
    assert [tracklet.name for tracklet in read_tracklets(root)] == [
        "train/aerial/cam_5",
        "train/ground/0001/cam_1",
    ]


def test_links_that_lead_nowhere_and_pipes_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "ground/1.jpg")
    (tmp_path / "ground/2.jpg").symlink_to("2.jpg")
    (tmp_path / "ground/3.jpg").symlink_to("absent.jpg")
    os.mkfifo(tmp_path / "ground/4.jpg")
    with pytest.raises(DataError) as caught:
        read_tracklets(tmp_path)
    _, itself, absent, pipe = str(caught.value).splitlines()
    assert "2.jpg: a crop must be a readable picture" in itself
    assert "3.jpg: a crop must be a readable picture" in absent
    assert "4.jpg: a crop must be a readable picture (it is no regular file)" in pipe


def test_names_that_no_manifest_can_hold(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path / "ground") + b"/cam_\xff"
    os.makedirs(place)
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    os.rename(tmp_path / "1.png", place + b"/1.png")
    with pytest.raises(DataError, match=r"names must be UTF-8, found 'ground/cam_\\udcff'; rename it"):
        read_tracklets(tmp_path)


def test_pictures_of_a_phone_are_turned_upright_and_crops_are_left(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene lies at the right edge
    lying = np.zeros((16, 32, 3), np.uint8)
    lying[:, 16:] = 255
    Image.fromarray(lying).save(tmp_path / "lying.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "lying.png"), lying)
    upright = read_upright(tmp_path / "lying.png")
    np.testing.assert_array_equal(upright, np.rot90(lying, -1))


def test_pictures_of_one_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.JPG", "2.tif", ".3.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in picture_files(tmp_path)] == ["2.tif", "9.JPG", "10.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"folder .*empty has no pictures \(\.jpg"):
        picture_files(tmp_path / "empty")
