"""The folder reader on real files, right and wrong, and the protocols built from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from worlds import write_picture

from s3clip.datasets import Tracklet, cross_view_protocols
from s3clip.datasets.folder import read_protocols, read_train
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import DataError


def write_tracklet(folder: Path, *sizes: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(folder / f"{i:06}.jpg")


def test_reads_a_split_in_order_with_native_sizes(tmp_path: Path, size_cache: SizeCache) -> None:
    write_tracklet(tmp_path / "train/ground/0007/cam1_0003", (130, 70), (20, 10))
    write_tracklet(tmp_path / "train/ground/0007/cam0_0009", (128, 63))
    write_tracklet(tmp_path / "train/aerial/0012/cam0_0001", (30, 12), (31, 13), (128, 64))
    write_tracklet(tmp_path / "test/aerial/0099/cam0_0001", (30, 12))
    (tmp_path / "train/.DS_Store").touch()
    aerial, narrow, ground = read_train(tmp_path, size_cache)
    assert aerial == Tracklet(
        name="aerial/0012/cam0_0001",
        identity=12,
        camera="aerial/cam0",
        platform=1,
        folder=tmp_path / "train/aerial/0012/cam0_0001",
        files=("000000.jpg", "000001.jpg", "000002.jpg"),
        sizes=((30, 12), (31, 13), (128, 64)),
    )
    assert (narrow.name, narrow.camera, narrow.platform) == ("ground/0007/cam0_0009", "ground/cam0", 0)
    assert (ground.name, ground.identity) == ("ground/0007/cam1_0003", 7)
    assert [t.hr for t in (aerial, narrow, ground)] == [False, False, True]


def test_numbers_in_frame_names_sort_as_numbers(tmp_path: Path, size_cache: SizeCache) -> None:
    for name in ("f10.JPG", "f9.jpg", "f100.jpg", "e11.jpg", "f009.jpg"):
        write_picture(tmp_path / "train/ground/0007/cam1_0003" / name)
    (tracklet,) = read_train(tmp_path, size_cache)
    assert tracklet.files == ("e11.jpg", "f009.jpg", "f9.jpg", "f10.JPG", "f100.jpg")


def test_protocols_are_those_of_the_test_split(tmp_path: Path, size_cache: SizeCache) -> None:
    for split, identity in (("train", "0001"), ("test", "0002")):
        for platform in ("ground", "aerial"):
            write_tracklet(tmp_path / split / platform / identity / "cam0_1", (20, 10))
    protocols = read_protocols(tmp_path, size_cache)
    assert [(p.name, p.query[0].name, p.gallery[0].name) for p in protocols] == [
        ("aerial_to_ground", "aerial/0002/cam0_1", "ground/0002/cam0_1"),
        ("ground_to_aerial", "ground/0002/cam0_1", "aerial/0002/cam0_1"),
    ]


def test_missing_split(tmp_path: Path, size_cache: SizeCache) -> None:
    with pytest.raises(DataError, match="train: a split is a folder"):
        read_train(tmp_path, size_cache)


def test_empty_split(tmp_path: Path, size_cache: SizeCache) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="found none; add them"):
        read_train(tmp_path, size_cache)


def test_all_problems_come_in_one_message(tmp_path: Path, size_cache: SizeCache) -> None:
    top = tmp_path / "train"
    write_tracklet(top / "ground/0001/cam0_0001", (20, 10))
    write_tracklet(top / "space/0001/cam0_0001", (20, 10))
    write_tracklet(top / "ground/bob/cam0_0001", (20, 10))
    write_tracklet(top / "ground/12/cam0_0001", (20, 10))
    write_tracklet(top / "ground/0002/cam0_0001")
    write_tracklet(top / "ground/0003/cam0", (20, 10))
    write_tracklet(top / "aerial/0004/cam0_0001", (20, 10))
    (top / "aerial/0004/cam0_0001/000001.jpg").write_bytes(b"not a picture")
    (top / "aerial/0004/cam0_0001/000002.png").touch()
    (top / "aerial/readme.txt").touch()
    with pytest.raises(DataError) as caught:
        read_train(tmp_path, size_cache)
    lines = str(caught.value).splitlines()
    assert "8 problem(s)" in lines[0]
    rules = {
        "space": "a platform folder is one of ground, aerial",
        "ground/bob": "four or more digits",
        "ground/12": "four or more digits",
        "ground/0002/cam0_0001": "at least one .jpg frame",
        "ground/0003/cam0": "CAMERA_NAME",
        "aerial/0004/cam0_0001/000001.jpg": "readable image",
        "aerial/0004/cam0_0001/000002.png": ".jpg files",
        "aerial/readme.txt": "only folders",
    }
    assert len(lines) == 1 + len(rules)
    for path, rule in rules.items():
        assert any(line.strip().startswith(f"{top / path}: ") and rule in line for line in lines), path


def test_long_reports_are_cut_and_counted(tmp_path: Path, size_cache: SizeCache) -> None:
    for i in range(13):
        (tmp_path / f"train/ground/{i:04}/cam0_0001").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        read_train(tmp_path, size_cache)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert "13 problem(s)" in lines[0]
    assert lines[-1].strip() == "and 3 more"


def test_superscript_digits_are_no_identity(tmp_path: Path, size_cache: SizeCache) -> None:
    write_tracklet(tmp_path / "train/ground/000²/cam0_0001", (20, 10))
    with pytest.raises(DataError, match="four or more digits"):
        read_train(tmp_path, size_cache)


def tracklet(identity: int, platform: int, name: str, camera: str) -> Tracklet:
    return Tracklet(name, identity, camera, platform, Path(), ("frame.jpg",), ((20, 10),))


def test_three_protocols() -> None:
    split = [
        tracklet(1, 1, "a1-second", "air-b"),
        tracklet(1, 1, "a1-first", "air-a"),
        tracklet(1, 0, "g1", "ground"),
        tracklet(2, 1, "a2", "air-a"),
        tracklet(2, 0, "g2", "ground"),
    ]
    protocols = {
        p.name: ([t.name for t in p.query], [t.name for t in p.gallery])
        for p in cross_view_protocols(split, Path())
    }
    aerial, ground = ["a1-first", "a1-second", "a2"], ["g1", "g2"]
    assert protocols == {
        "aerial_to_ground": (aerial, ground),
        "ground_to_aerial": (ground, aerial),
        "aerial_to_aerial": (["a1-first", "a2"], ["a1-second"]),
    }


def test_protocols_that_cannot_be_measured_are_left_out() -> None:
    one_drone = [
        tracklet(1, 1, "a1-first", "air"),
        tracklet(1, 1, "a1-second", "air"),
        tracklet(1, 0, "g1", "ground"),
    ]
    assert [p.name for p in cross_view_protocols(one_drone, Path())] == [
        "aerial_to_ground",
        "ground_to_aerial",
    ]


def test_split_without_any_protocol() -> None:
    with pytest.raises(DataError, match="top: a protocol needs a query whose identity another camera"):
        cross_view_protocols([tracklet(1, 1, "a", "air"), tracklet(2, 0, "g", "ground")], Path("top"))
