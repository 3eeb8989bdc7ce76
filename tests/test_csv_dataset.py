"""The CSV reader and the choice of a reader by the settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from worlds import write_picture

from s3clip.config import DataSettings, load_config, parse_config
from s3clip.datasets import Tracklet, catalog
from s3clip.datasets.csv_file import read_protocols, read_train
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import ConfigError, DataError

HEADER = "path,identity,camera,platform,tracklet,split"
TRAIN = [
    "night/9.jpg,7,gate,ground,gate-7,train",
    "day/b.png,12,gate,aerial,drone-12,train",
    "night/10.jpg,7,gate,ground,gate-7,train",
    "night/1.jpg,7,gate,ground,gate-7,train",
]
TEST = [
    "t/0.jpg,1,north,ground,g1,test",
    "t/1.jpg,1,alpha,aerial,a1,test",
    "t/2.jpg,1,beta,aerial,b1,test",
    "t/3.jpg,2,alpha,aerial,a2,test",
]
SIDES = [
    "s/0.jpg,1,gate,ground,g1,query",
    "s/1.jpg,1,gate,aerial,a1,gallery",
    "s/2.jpg,3,gate,aerial,a3,gallery",
]


def write(root: Path, rows: list[str], header: str = HEADER) -> Path:
    for i, row in enumerate(rows):
        write_picture(root / row.split(",")[0], (20 + i, 10))
    (root / "tracklets.csv").write_text("\n".join([header, *rows, ""]), "utf-8")
    return root


def test_train_keeps_the_order_of_the_rows(tmp_path: Path, size_cache: SizeCache) -> None:
    gate = Tracklet(
        name="gate-7",
        identity=7,
        camera="ground/gate",
        platform=0,
        folder=tmp_path,
        files=("night/9.jpg", "night/10.jpg", "night/1.jpg"),
        sizes=((20, 10), (22, 10), (23, 10)),
    )
    drone = Tracklet("drone-12", 12, "aerial/gate", 1, tmp_path, ("day/b.png",), ((21, 10),))
    assert read_train(write(tmp_path, [*TRAIN, *TEST]), size_cache) == [gate, drone]
    assert gate.frame(1) == tmp_path / "night/10.jpg"


def test_tables_of_spreadsheets(tmp_path: Path, size_cache: SizeCache) -> None:
    rows = ['"a,b.jpg",7,"gate ""2""",ground,x,train,sunny', "", "c.jpg,7,gate,ground,y,train,"]
    for name in ("a,b.jpg", "c.jpg"):
        write_picture(tmp_path / name)
    text = "\r\n".join(["\ufeff" + HEADER + ",weather", *rows, ""])
    (tmp_path / "tracklets.csv").write_text(text, "utf-8", newline="")
    first, second = read_train(tmp_path, size_cache)
    assert (first.files, first.camera) == (("a,b.jpg",), 'ground/gate "2"')
    assert second.files == ("c.jpg",)


def test_a_test_split_gives_the_aerial_ground_protocols(tmp_path: Path, size_cache: SizeCache) -> None:
    protocols = read_protocols(write(tmp_path, [*TRAIN, *TEST]), size_cache)
    assert {p.name: ([t.name for t in p.query], [t.name for t in p.gallery]) for p in protocols} == {
        "aerial_to_ground": (["a1", "b1", "a2"], ["g1"]),
        "ground_to_aerial": (["g1"], ["a1", "b1", "a2"]),
        "aerial_to_aerial": (["a1", "a2"], ["b1"]),
    }


@pytest.mark.parametrize(
    ("platform", "name"), [("ground", "ground_to_aerial"), ("aerial", "aerial_to_aerial")]
)
def test_query_and_gallery(tmp_path: Path, size_cache: SizeCache, platform: str, name: str) -> None:
    rows = [SIDES[0].replace("gate,ground", f"yard,{platform}"), *SIDES[1:]]
    (protocol,) = read_protocols(write(tmp_path, rows), size_cache)
    assert protocol.name == name
    assert [t.name for t in protocol.query] == ["g1"]
    assert [t.name for t in protocol.gallery] == ["a1", "a3"]


def test_ground_only_queries_have_no_view_in_their_name(tmp_path: Path, size_cache: SizeCache) -> None:
    rows = ["0.jpg,1,a,ground,x,query", "1.jpg,1,b,ground,y,gallery"]
    assert [p.name for p in read_protocols(write(tmp_path, rows), size_cache)] == ["query_to_gallery"]


def test_splits_that_do_not_fit_together(tmp_path: Path, size_cache: SizeCache) -> None:
    write(tmp_path, TRAIN)
    with pytest.raises(DataError, match="found 0, 0 and 0 tracklets"):
        read_protocols(tmp_path, size_cache)
    write(tmp_path, [*TEST, SIDES[2]])
    with pytest.raises(DataError, match="found 4, 0 and 1 tracklets"):
        read_protocols(tmp_path, size_cache)
    with pytest.raises(DataError, match="training needs rows of the split train"):
        read_train(tmp_path, size_cache)
    write(tmp_path, SIDES[1:])
    with pytest.raises(DataError, match="none of query_to_gallery has one"):
        read_protocols(tmp_path, size_cache)


def test_all_problems_come_in_one_message(tmp_path: Path, size_cache: SizeCache) -> None:
    write(tmp_path, TRAIN)
    bad = {
        "night/1.jpg,7,gate,ground,gate-7": "as many fields as the first line",
        "night/1.jpg,7,gate,ground,gate-7,train,x": "as many fields as the first line",
        "/night/1.jpg,7,gate,ground,gate-7,train": "below the folder of the file, found '/night/1.jpg'",
        "../1.jpg,7,gate,ground,gate-7,train": "below the folder of the file, found '../1.jpg'",
        "night/1.jpg,-7,gate,ground,gate-7,train": "identity is a whole number, found '-7'",
        "night/1.jpg,7,gate,boat,gate-7,train": "platform is ground or aerial, found 'boat'",
        "night/1.jpg,7,gate,ground,gate-7,val": "split is train, query, gallery, test, found 'val'",
        "night/1.jpg,7,,ground,gate-7,train": "camera is a name",
        "night/1.jpg,8,gate,ground,gate-7,train": "all rows of tracklet gate-7",
    }
    text = "\n".join([HEADER, *TRAIN, *bad, "gone.jpg,9,gate,ground,gate-9,train", ""])
    (tmp_path / "tracklets.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_train(tmp_path, size_cache)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path}/tracklets.csv: 10 problem(s)")
    for number, rule in enumerate(bad.values(), start=6):
        assert any(f"tracklets.csv: line {number}: " in line and rule in line for line in lines), rule
    assert f"{tmp_path}/gone.jpg: a frame must exist" in lines[-1]


def test_files_that_are_no_table(tmp_path: Path, size_cache: SizeCache) -> None:
    with pytest.raises(DataError, match=r"tracklets\.csv: must be a readable CSV"):
        read_train(tmp_path, size_cache)
    write(tmp_path, TRAIN, "path,identity,kamera,platform,tracklet")
    with pytest.raises(DataError, match="add camera, split"):
        read_train(tmp_path, size_cache)
    (tmp_path / "tracklets.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe")
    with pytest.raises(DataError, match="readable CSV file in UTF-8"):
        read_train(tmp_path, size_cache)


def test_the_catalog_reads_with_the_given_cache_file(tmp_path: Path) -> None:
    write(tmp_path, [*TRAIN, *TEST])
    cache = tmp_path / "elsewhere/sizes.sqlite"
    settings = DataSettings(root=tmp_path, kind="csv", size_cache=cache)
    assert [t.name for t in catalog.read_train(settings)] == ["gate-7", "drone-12"]
    assert len(catalog.read_protocols(settings)) == 3
    assert cache.is_file()


def test_every_kind_has_its_own_reader(tmp_path: Path) -> None:
    marks = {
        "folder": "train: a split is a folder",
        "csv": "tracklets.csv: must be a readable",
        "detreidx": "SPLIT/IDENTITY/TRACKLET layout",
        "ag_vpreid": "SPLIT/IDENTITY/TRACKLET layout",
        "mars": "tracks_train_info.mat: this file belongs",
        "g2a_vreid": "tracks_train_info.mat: this file belongs",
        "ilids_vid": "i-LIDS-VID/sequences",
    }
    readers = set()
    for kind, mark in marks.items():
        settings = parse_config({"data": {"kind": kind, "root": str(tmp_path)}}, "test").data
        with pytest.raises(DataError, match=mark):
            catalog.read_train(settings)
        readers.add(str(catalog._reader(settings)))
    assert len(readers) == len(marks)


def test_unknown_kinds_and_synthetic_in_another_layout_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.kind: .*'marsh'"):
        parse_config({"data": {"kind": "marsh"}}, "test")
    with pytest.raises(ConfigError, match="synthetic is in the layout of kind folder, and kind is mars"):
        parse_config({"data": {"kind": "mars", "synthetic": {}}}, "test")
    assert parse_config({"data": {"kind": "folder", "synthetic": {}}}, "test").data.synthetic is not None


def test_only_readers_of_mat_files_need_scipy(tmp_path: Path) -> None:
    write(tmp_path, TRAIN)
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "from pathlib import Path; from s3clip.config import DataSettings\n"
        "from s3clip.datasets import catalog\n"
        f"settings = DataSettings(root=Path({str(tmp_path)!r}), kind='csv')\n"
        "print(len(catalog.read_train(settings)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr


@pytest.mark.parametrize("kind", ["folder", "detreidx", "g2a_vreid", "mars", "ag_vpreid", "ilids_vid"])
def test_the_shipped_configs_are_valid(kind: str) -> None:
    config = load_config(Path(__file__).parents[1] / f"configs/{kind}.toml")
    assert (config.data.kind, config.device) == (kind, "cuda")
    assert config.sr.weights is not None
