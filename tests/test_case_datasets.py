"""DetReIDX and AG-VPReID: trees of the published layout, and everything that breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from worlds import write_picture

from s3clip.datasets import Protocol, Tracklet, ag_vpreid, detreidx
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import DataError

GROUND, AERIAL = 0, 1


class Track(NamedTuple):
    """One tracklet as the tests write it; `view` is the expected camera."""

    split: str
    identity: str
    name: str
    view: str
    frames: int


# Names of the challenge: fields 6 to 8 are height, distance and angle, and the last but one the session.
DET_NAMES = {
    "ground": "U1_0012_G_2024_c1_{}.jpg",
    "aerial-session1": "U1_D_0012_2024_10_am_5.8_10_30_x_1_{}.jpg",
    "aerial-session2": "U1_D_0012_2024_10_am_120.0_0_90_x_2_{}.jpg",
}
DET_TREE = [
    Track("train", "0024", "5453", "ground", 12),
    Track("train", "0024", "0007", "aerial-session1", 3),
    Track("train", "0024", "0008", "aerial-session2", 3),
    Track("train", "0003", "5453", "aerial-session1", 2),
    Track("case1_aerial_to_ground/query", "0101", "1", "aerial-session1", 2),
    Track("case1_aerial_to_ground/query", "0102", "2", "aerial-session2", 2),
    Track("case1_aerial_to_ground/gallery", "0101", "3", "ground", 2),
    Track("case1_aerial_to_ground/gallery", "0103", "4", "ground", 2),
    Track("case2_ground_to_aerial/query", "0101", "3", "ground", 2),
    Track("case2_ground_to_aerial/gallery", "0101", "1", "aerial-session1", 2),
    Track("case2_ground_to_aerial/gallery", "0102", "2", "aerial-session2", 2),
    Track("case3_aerial_to_aerial/query", "0101", "1", "aerial-session1", 2),
    Track("case3_aerial_to_aerial/gallery", "0101", "5", "aerial-session2", 2),
    Track("case3_aerial_to_aerial/gallery", "0101", "6", "aerial-session1", 2),
]
# The second frame field of AG-VPReID decides the order; K, before it, runs the other way.
AG_TREE = [
    Track("train", "0012", "3", "C0", 11),
    Track("train", "0012", "4", "C5", 2),
    Track("train", "0020", "3", "C2", 2),
    Track("case1_aerial_to_ground/query", "0300", "1", "C4", 2),
    Track("case1_aerial_to_ground/gallery", "0300", "1", "C3", 2),
    Track("case1_aerial_to_ground/gallery", "0301", "2", "C1", 2),
    Track("case2_ground_to_aerial/query", "0300", "1", "C3", 2),
    Track("case2_ground_to_aerial/query", "0300", "2", "C2", 2),
    Track("case2_ground_to_aerial/gallery", "0300", "1", "C4", 2),
]


def det_files(track: Track) -> list[str]:
    """In temporal order; not padded, so that the order of names is another one."""
    return [DET_NAMES[track.view].format(i) for i in range(1, track.frames + 1)]


def ag_files(track: Track) -> list[str]:
    return [f"P81T2310171A2{track.view}E152K{90 - i}F{i + 5}.jpg" for i in range(track.frames)]


def write_det(root: Path) -> Path:
    for track in DET_TREE:
        for i, name in enumerate(det_files(track)):
            write_picture(root / track.split / track.identity / track.name / name, (20 + i, 10))
    (root / "train/.DS_Store").touch()
    (root / "train/0024/5453/.hidden.jpg").touch()
    return root


def write_ag(root: Path) -> Path:
    for track in AG_TREE:
        for i, name in enumerate(ag_files(track)):
            write_picture(root / track.split / track.identity / track.name / name, (20 + i, 10))
    (root / "attributes").mkdir()
    (root / "attributes/gallery.csv").touch()
    return root


def expected(root: Path, track: Track, files: list[str], aerial: set[str]) -> Tracklet:
    return Tracklet(
        name=f"{track.split}/{track.identity}/{track.name}",
        identity=int(track.identity),
        camera=track.view,
        platform=AERIAL if track.view in aerial else GROUND,
        folder=root / track.split / track.identity / track.name,
        files=tuple(files),
        sizes=tuple((20 + i, 10) for i in range(len(files))),
    )


def names(protocols: list[Protocol]) -> dict[str, tuple[set[str], set[str]]]:
    return {p.name: ({t.name for t in p.query}, {t.name for t in p.gallery}) for p in protocols}


def recount(tree: list[Track], cases: dict[str, str]) -> dict[str, tuple[set[str], set[str]]]:
    def side(split: str) -> set[str]:
        return {f"{split}/{t.identity}/{t.name}" for t in tree if t.split == split}

    return {name: (side(f"{case}/query"), side(f"{case}/gallery")) for case, name in cases.items()}


def test_detreidx_train(tmp_path: Path, size_cache: SizeCache) -> None:
    read = detreidx.read_train(write_det(tmp_path), size_cache)
    aerial = {"aerial-session1", "aerial-session2"}
    want = [expected(tmp_path, t, det_files(t), aerial) for t in DET_TREE if t.split == "train"]
    assert sorted(read, key=lambda t: t.name) == sorted(want, key=lambda t: t.name)
    assert [t.name for t in read] == sorted(t.name for t in want)


def test_detreidx_protocols(tmp_path: Path, size_cache: SizeCache) -> None:
    protocols = detreidx.read_protocols(write_det(tmp_path), size_cache)
    cases = {
        "case1_aerial_to_ground": "aerial_to_ground",
        "case2_ground_to_aerial": "ground_to_aerial",
        "case3_aerial_to_aerial": "aerial_to_aerial",
    }
    assert names(protocols) == recount(DET_TREE, cases)
    everything = [t.name for p in protocols for t in (*p.query, *p.gallery)]
    assert len(everything) == len(set(everything))
    # Within a session clothes are the same: such a match must not count (method.md 8.1 and 8.3).
    (query,), gallery = protocols[2].query, protocols[2].gallery
    assert {t.name.rpartition("/")[2] for t in gallery if t.camera == query.camera} == {"6"}


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("a.jpg", "ground"),
        ("1_2_3_4_5_6_7.jpg", "ground"),
        ("0_1_2_3_4_5_17.3_30_30_x_1_7.jpg", "aerial-session1"),
        ("0_1_2_3_4_5_17.3_30_30_01_7.jpg", "aerial-session1"),
        ("0_1_2_3_4_5_17.3_30_30_2_7.jpg", "aerial-session2"),
        ("0_1_2_3_4_5_17.3_30_30_3_7.jpg", "aerial-session2"),
    ],
)
def test_detreidx_names(tmp_path: Path, size_cache: SizeCache, name: str, camera: str) -> None:
    write_picture(tmp_path / "train/1/1" / name)
    (tracklet,) = detreidx.read_train(tmp_path, size_cache)
    assert tracklet.camera == camera
    assert tracklet.platform == (GROUND if camera == "ground" else AERIAL)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("0_1_2_3_4_5_6_7.jpg", "found 8"),
        ("0_1_2_3_4_5_6_7_8_9.jpg", "found 10"),
        ("0_1_2_3_4_5_high_7_8_1_9.jpg", "field 6 is the height, a number, found 'high'"),
        ("0_1_2_3_4_5_6_nan_8_1_9.jpg", "field 7 is the distance, a number, found 'nan'"),
        ("0_1_2_3_4_5_6_7__1_9.jpg", "field 8 is the angle, a number, found ''"),
        ("0_1_2_3_4_5_6_7_8_S1_9.jpg", "session, a whole number, found 'S1'"),
        ("0_1_2_3_4_5_6_7_8_-1_9.jpg", "session, a whole number, found '-1'"),
        ("0_1_2_3_4_5_6_7_8_1.5_9.jpg", "session, a whole number, found '1.5'"),
    ],
)
def test_detreidx_names_that_do_not_parse(
    tmp_path: Path, size_cache: SizeCache, name: str, rule: str
) -> None:
    path = tmp_path / "train/0001/1" / name
    write_picture(path)
    with pytest.raises(DataError) as caught:
        detreidx.read_train(tmp_path, size_cache)
    assert str(caught.value).startswith(f"{tmp_path}/train: 1 problem(s)")
    assert f"{path}: " in str(caught.value)
    assert rule in str(caught.value)


def test_detreidx_problems_of_a_whole_tree(tmp_path: Path, size_cache: SizeCache) -> None:
    write_det(tmp_path)
    case = tmp_path / "case1_aerial_to_ground"
    write_picture(case / "query/0101/1" / DET_NAMES["aerial-session2"].format(9))
    write_picture(case / "query/0101/9" / DET_NAMES["ground"].format(1))
    write_picture(case / "query/anna/1" / DET_NAMES["aerial-session1"].format(1))
    (case / "gallery/0103/4/notes.txt").touch()
    (case / "gallery/0103/4" / DET_NAMES["ground"].format(9)).write_bytes(b"no picture")
    (case / "gallery/0104/1").mkdir(parents=True)
    (tmp_path / "case3_aerial_to_aerial").rename(tmp_path / "case3")
    rules = {
        "query/0101/1/" + DET_NAMES["aerial-session2"].format(9): "of one camera",
        "query/0101/9": "takes aerial tracklets, and the file names say ground",
        "query/anna": "a whole number",
        "gallery/0103/4/notes.txt": ".jpg files",
        "gallery/0103/4/" + DET_NAMES["ground"].format(9): "readable image",
        "gallery/0104/1": "at least one .jpg frame",
        "../case3_aerial_to_aerial/query": "does not exist",
        "../case3_aerial_to_aerial/gallery": "does not exist",
    }
    with pytest.raises(DataError) as caught:
        detreidx.read_protocols(tmp_path, size_cache)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path}: {len(rules)} problem(s)")
    assert len(lines) == 1 + len(rules)
    for path, rule in rules.items():
        start = f"{tmp_path}/{path[3:]}: " if path.startswith("../") else f"{case}/{path}: "
        assert any(line.strip().startswith(start) and rule in line for line in lines), path


def test_an_empty_split_and_anonymised_labels(tmp_path: Path, size_cache: SizeCache) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="found none; add them"):
        detreidx.read_train(tmp_path, size_cache)
    for folder in (
        "case1_aerial_to_ground/query/1/1/P1T1A1C4E1K1F1.jpg",
        "case1_aerial_to_ground/gallery/2/1/P1T1A1C0E1K1F1.jpg",
        "case2_ground_to_aerial/query/3/1/P1T1A1C0E1K1F1.jpg",
        "case2_ground_to_aerial/gallery/4/1/P1T1A1C4E1K1F1.jpg",
    ):
        write_picture(tmp_path / folder)
    with pytest.raises(DataError, match=r"none of aerial_to_ground, ground_to_aerial has one.*anonymised"):
        ag_vpreid.read_protocols(tmp_path, size_cache)


def test_ag_vpreid_train(tmp_path: Path, size_cache: SizeCache) -> None:
    read = ag_vpreid.read_train(write_ag(tmp_path), size_cache)
    # The identity is the folder and not P, which is 81 everywhere.
    assert read == [expected(tmp_path, t, ag_files(t), {"C4", "C5"}) for t in AG_TREE if t.split == "train"]


def test_ag_vpreid_protocols(tmp_path: Path, size_cache: SizeCache) -> None:
    cases = {
        "case1_aerial_to_ground": "aerial_to_ground",
        "case2_ground_to_aerial": "ground_to_aerial",
    }
    assert names(ag_vpreid.read_protocols(write_ag(tmp_path), size_cache)) == recount(AG_TREE, cases)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("P1T230811A1C6E1K1F001.jpg", "0 to 5, found '6'"),
        ("P1T230811A1C-1E1K1F001.jpg", "0 to 5, found '-1'"),
        ("P1T230811A1C04E1K1F001.jpg", "0 to 5, found '04'"),
        ("P1T230811A1CE1K1F001.jpg", "0 to 5, found ''"),
        ("P1T230811A1E1K1F001.jpg", "the fields P, C, E and F"),
        ("P1T230811A1C2K1F001.jpg", "the fields P, C, E and F"),
        ("P1T230811A1C2E1K1.jpg", "the fields P, C, E and F"),
        ("P1T230811A1C2E1K1Fx.jpg", "the fields P, C, E and F"),
        ("000001.jpg", "the fields P, C, E and F"),
    ],
)
def test_ag_vpreid_names_that_do_not_parse(
    tmp_path: Path, size_cache: SizeCache, name: str, rule: str
) -> None:
    path = tmp_path / "train/0001/1" / name
    write_picture(path)
    with pytest.raises(DataError) as caught:
        ag_vpreid.read_train(tmp_path, size_cache)
    assert f"{path}: " in str(caught.value)
    assert rule in str(caught.value)
