"""MARS and G2A-VReID: index files as scipy writes them, and everything that breaks them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.io import savemat
from worlds import write_picture

from s3clip.datasets import Tracklet, g2a_vreid, mars
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import DataError


class Row(NamedTuple):
    """One tracklet of an index."""

    identity: int
    camera: int
    track: int
    frames: int

    @property
    def folder(self) -> str:
        """As in the data sets: junk is 00-1."""
        return "00-1" if self.identity == -1 else f"{self.identity:04}"

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(
            f"{self.folder}C{self.camera}T{self.track:04}F{i:03}.jpg" for i in range(1, self.frames + 1)
        )


TRAIN = [Row(1, 1, 1, 16), Row(1, 1, 2, 3), Row(1, 6, 1, 2), Row(3, 2, 1, 1)]
# As in MARS the junk comes first, then the distractors, then the people.
TEST = [
    Row(-1, 1, 1, 2),
    Row(-1, 5, 2, 1),
    Row(0, 2, 1, 2),
    Row(0, 2, 2, 1),
    Row(2, 1, 1, 3),
    Row(2, 1, 2, 1),
    Row(2, 3, 1, 2),
    Row(4, 4, 1, 2),
    Row(4, 6, 1, 1),
]
QUERY = [5, 7, 9, 1]  # rows of TEST from 1; the last is junk
G2A_TRAIN = [Row(1, 1, 1, 3), Row(1, 2, 1, 2), Row(7, 1, 1, 1), Row(7, 2, 1, 2)]
G2A_TEST = [Row(2, 1, 1, 2), Row(2, 2, 1, 3), Row(5, 1, 1, 2), Row(5, 2, 1, 1)]
G2A_QUERY = [3, 1]


def table(rows: list[Row], dtype: str) -> np.ndarray:
    result, first = [], 1
    for row in rows:
        result.append((first, first + row.frames - 1, row.identity, row.camera))
        first += row.frames
    return np.array(result, dtype)


def write(root: Path, train: list[Row], test: list[Row], query: list[int]) -> Path:
    """The types are those of the originals: int32 tables, and queries in the narrowest unsigned type."""
    for split, rows in (("train", train), ("test", test)):
        for row in rows:
            for i, name in enumerate(row.files):
                write_picture(root / f"bbox_{split}" / row.folder / name, (20 + i, 10 + row.track))
        write_names(root, split, [name for row in rows for name in row.files])
        write_table(root, split, table(rows, "int32"))
    savemat(root / "info/query_IDX.mat", {"query_IDX": np.array([query], "uint16")})
    return root


def write_names(root: Path, split: str, names: list[str]) -> None:
    (root / "info").mkdir(exist_ok=True)
    (root / f"info/{split}_name.txt").write_text("".join(f"{name}\r\n" for name in names))


def write_table(root: Path, split: str, rows: np.ndarray) -> None:
    savemat(root / f"info/tracks_{split}_info.mat", {f"track_{split}_info": rows})


def expected(root: Path, split: str, number: int, row: Row, platforms: tuple[int, ...]) -> Tracklet:
    return Tracklet(
        name=f"{split}/{number:05}",
        identity=row.identity,
        camera=str(row.camera),
        platform=platforms[row.camera - 1],
        folder=root / f"bbox_{split}" / row.folder,
        files=row.files,
        sizes=tuple((20 + i, 10 + row.track) for i in range(row.frames)),
    )


@pytest.fixture
def mars_root(tmp_path: Path) -> Path:
    return write(tmp_path, TRAIN, TEST, QUERY)


def test_mars_train(mars_root: Path, size_cache: SizeCache) -> None:
    want = [expected(mars_root, "train", i, row, (0,) * 6) for i, row in enumerate(TRAIN, start=1)]
    assert mars.read_train(mars_root, size_cache) == want


def test_mars_protocol(mars_root: Path, size_cache: SizeCache) -> None:
    (protocol,) = mars.read_protocols(mars_root, size_cache)
    every = {i: expected(mars_root, "test", i, row, (0,) * 6) for i, row in enumerate(TEST, start=1)}
    assert protocol.name == "query_to_gallery"
    assert protocol.query == [every[i] for i in QUERY if every[i].identity != -1]
    assert protocol.gallery == [t for t in every.values() if t.identity != -1]
    assert sum(t.identity == 0 for t in protocol.gallery) == 2
    # Row 9 is the only match of a query of row 8's identity, and the queries themselves are in the gallery.
    assert {t.name for t in protocol.query} < {t.name for t in protocol.gallery}


def test_g2a(tmp_path: Path, size_cache: SizeCache) -> None:
    write(tmp_path, G2A_TRAIN, G2A_TEST, G2A_QUERY)
    platforms = (0, 1)
    want = [expected(tmp_path, "train", i, row, platforms) for i, row in enumerate(G2A_TRAIN, start=1)]
    assert g2a_vreid.read_train(tmp_path, size_cache) == want
    (protocol,) = g2a_vreid.read_protocols(tmp_path, size_cache)
    every = {i: expected(tmp_path, "test", i, row, platforms) for i, row in enumerate(G2A_TEST, start=1)}
    assert protocol.name == "ground_to_aerial"
    assert protocol.query == [every[3], every[1]]
    assert protocol.gallery == [every[2], every[4]]


@pytest.mark.parametrize(
    ("query", "name"), [([2, 4], "aerial_to_ground"), ([1, 4], "query_to_gallery")], ids=["aerial", "mixed"]
)
def test_g2a_protocols_are_named_after_what_they_hold(
    tmp_path: Path, size_cache: SizeCache, query: list[int], name: str
) -> None:
    write(tmp_path, G2A_TRAIN, G2A_TEST, query)
    assert [p.name for p in g2a_vreid.read_protocols(tmp_path, size_cache)] == [name]


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_number_types_of_matlab(tmp_path: Path, size_cache: SizeCache, dtype: str) -> None:
    write(tmp_path, TRAIN, TEST, QUERY)
    write_table(tmp_path, "train", table(TRAIN, dtype))
    assert [t.files for t in mars.read_train(tmp_path, size_cache)] == [row.files for row in TRAIN]


@pytest.mark.parametrize(
    ("row", "column", "value", "rule"),
    [
        (1, 0, 0, "row 1: a tracklet is a range of the 22 names, found 0 to 16"),
        (2, 0, 20, "row 2: a tracklet is a range of the 22 names, found 20 to 19"),
        (4, 1, 23, "row 4: a tracklet is a range of the 22 names, found 22 to 23"),
        (1, 3, 7, "row 1: a camera is 1 to 6, found 7"),
        (1, 3, 0, "row 1: a camera is 1 to 6, found 0"),
        (1, 3, 2, "row 1: the camera of the row is 2, and the name says 0001C1T0001F001.jpg"),
        (2, 1, 20, "row 2: the camera of the row is 1, and the name says 0001C6T0001F001.jpg"),
        (3, 1, 22, "row 3: a tracklet shows one person, found 0003C2T0001F001.jpg"),
        (4, 2, -2, "row 4: an identity is -1 (junk) or at least 0, found -2"),
    ],
)
def test_rows_that_break_the_rules(
    mars_root: Path, size_cache: SizeCache, row: int, column: int, value: int, rule: str
) -> None:
    rows = table(TRAIN, "int32")
    rows[row - 1, column] = value
    write_table(mars_root, "train", rows)
    with pytest.raises(DataError) as caught:
        mars.read_train(mars_root, size_cache)
    assert "1 problem(s)" in str(caught.value)
    assert f"{mars_root}/info/tracks_train_info.mat: {rule}" in str(caught.value)


def test_g2a_has_two_cameras(tmp_path: Path, size_cache: SizeCache) -> None:
    write(tmp_path, [*G2A_TRAIN, Row(8, 3, 1, 1)], G2A_TEST, G2A_QUERY)
    with pytest.raises(DataError, match="row 5: a camera is 1 to 2, found 3"):
        g2a_vreid.read_train(tmp_path, size_cache)


@pytest.mark.parametrize("name", ["", "0001C", "../../C1T1F1.jpg", ".001C1T0001F001.jpg"])
def test_names_that_are_no_image_names(mars_root: Path, size_cache: SizeCache, name: str) -> None:
    write_names(mars_root, "train", [name, *[n for row in TRAIN for n in row.files][1:]])
    with pytest.raises(DataError, match="row 1: a name is like 0001C1T0001F001"):
        mars.read_train(mars_root, size_cache)


def test_images_that_are_missing_or_broken_come_in_one_message(
    mars_root: Path, size_cache: SizeCache
) -> None:
    gone, broken = (mars_root / "bbox_train/0001" / name for name in TRAIN[0].files[3:5])
    gone.unlink()
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        mars.read_train(mars_root, size_cache)
    assert "2 problem(s)" in str(caught.value)
    assert f"{gone}: a frame must exist" in str(caught.value)
    assert f"{broken}: a frame must be a readable image" in str(caught.value)


def test_images_of_junk_may_be_missing(mars_root: Path, size_cache: SizeCache) -> None:
    for name in TEST[0].files:
        (mars_root / "bbox_test/00-1" / name).unlink()
    assert len(mars.read_protocols(mars_root, size_cache)[0].gallery) == 7


@pytest.mark.parametrize(
    ("query", "rule"),
    [
        ([[5, 10]], "1 to 9, found 10"),
        ([[0, 5]], "1 to 9, found 0"),
        ([[5, 7, 5]], "found row 5 again"),
        ([[5, 7], [1, 2]], "one row of numbers"),
        ([[5.5, 7]], "matrix of whole numbers"),
        ([[np.inf, 7]], "matrix of whole numbers"),
    ],
)
def test_queries_that_break_the_rules(
    mars_root: Path, size_cache: SizeCache, query: list[list[float]], rule: str
) -> None:
    savemat(mars_root / "info/query_IDX.mat", {"query_IDX": np.array(query)})
    with pytest.raises(DataError, match=f"query_IDX.mat: .*{rule}"):
        mars.read_protocols(mars_root, size_cache)


def test_queries_without_any_match(mars_root: Path, size_cache: SizeCache) -> None:
    savemat(mars_root / "info/query_IDX.mat", {"query_IDX": np.array([[3]])})
    with pytest.raises(DataError, match="none of query_to_gallery has one"):
        mars.read_protocols(mars_root, size_cache)


@pytest.mark.parametrize("name", ["tracks_train_info.mat", "train_name.txt"])
def test_index_files_that_are_missing_or_damaged(mars_root: Path, size_cache: SizeCache, name: str) -> None:
    path = mars_root / "info" / name
    path.write_bytes(b"\xff\xfe damaged " * 30)
    with pytest.raises(DataError, match=f"{path}: .*restore it"):
        mars.read_train(mars_root, size_cache)
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: .*restore it"):
        mars.read_train(mars_root, size_cache)


def test_tables_of_another_name_or_shape(mars_root: Path, size_cache: SizeCache) -> None:
    savemat(mars_root / "info/tracks_train_info.mat", {"tracks": np.zeros((2, 4))})
    with pytest.raises(DataError, match="the matrix is called track_train_info, found tracks"):
        mars.read_train(mars_root, size_cache)
    write_table(mars_root, "train", np.ones((2, 5)))
    with pytest.raises(DataError, match="found 5 columns"):
        mars.read_train(mars_root, size_cache)
    write_table(mars_root, "train", table([Row(-1, 1, 1, 1)], "int32"))
    with pytest.raises(DataError, match="the train split has no tracklets"):
        mars.read_train(mars_root, size_cache)
