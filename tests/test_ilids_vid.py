"""iLIDS-VID: the true layout with fewer persons, whose number the reader takes from the matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from worlds import write_picture

from s3clip.config import DataSettings
from s3clip.datasets import catalog, ilids_vid
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import ConfigError, DataError

# As in the original the numbers have gaps, so that a person's number is not its place in the list.
PERSONS = [1, 2, 5, 9, 10, 319]
SPLITS = [[6, 1, 3, 2, 4, 5], [2, 5, 4, 1, 6, 3], *([[1, 2, 3, 4, 5, 6]] * 8)]
FRAMES = (98, 99, 100, 1001)
MATRIX = "train-test people splits/train_test_splits_ilidsvid.mat"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for camera in (1, 2):
        for person in reversed(PERSONS):
            for frame in FRAMES:
                folder = tmp_path / f"i-LIDS-VID/sequences/cam{camera}/person{person:03}"
                write_picture(folder / f"cam{camera}_person{person:03}_{frame}.png", (128, 60 + camera))
    (tmp_path / MATRIX).parent.mkdir()
    savemat(tmp_path / MATRIX, {"ls_set": np.array(SPLITS, "uint16")})
    return tmp_path


@pytest.mark.parametrize("split", [0, 1, 9])
def test_halves_cameras_and_order(root: Path, size_cache: SizeCache, split: int) -> None:
    # Places count from 1 in the sorted list of persons; the first half is the test.
    test = {PERSONS[place - 1] for place in SPLITS[split][:3]}
    train = {PERSONS[place - 1] for place in SPLITS[split][3:]}
    read = ilids_vid.read_train(root, size_cache, split=split)
    assert [(t.identity, t.camera) for t in read] == [
        (person, camera) for person in sorted(train) for camera in ("cam1", "cam2")
    ]
    (protocol,) = ilids_vid.read_protocols(root, size_cache, split=split)
    assert protocol.name == "cam1_to_cam2"
    assert [(t.identity, t.camera) for t in protocol.query] == [(p, "cam1") for p in sorted(test)]
    assert [(t.identity, t.camera) for t in protocol.gallery] == [(p, "cam2") for p in sorted(test)]
    everything = [*read, *protocol.query, *protocol.gallery]
    assert len({t.name for t in everything}) == 2 * len(PERSONS)
    for tracklet in everything:
        number = int(tracklet.camera[-1])
        person = f"person{tracklet.identity:03}"
        assert tracklet.platform == 0
        assert tracklet.folder == root / f"i-LIDS-VID/sequences/{tracklet.camera}/{person}"
        assert tracklet.files == tuple(f"{tracklet.camera}_{person}_{frame}.png" for frame in FRAMES)
        assert tracklet.sizes == ((128, 60 + number),) * 4


def test_the_split_comes_from_the_settings(root: Path, size_cache: SizeCache) -> None:
    settings = DataSettings(root=root, kind="ilids_vid", ilids_split=1)
    assert catalog.read_train(settings) == ilids_vid.read_train(root, size_cache, split=1)
    assert catalog.read_protocols(settings) == ilids_vid.read_protocols(root, size_cache, split=1)
    assert ilids_vid.read_train(root, size_cache) == ilids_vid.read_train(root, size_cache, split=0)
    with pytest.raises(ConfigError, match=r"data\.ilids_split: .*the splits 0 to 9, got 10"):
        ilids_vid.read_train(root, size_cache, split=10)


@pytest.mark.parametrize("row", [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 7], [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 5]])
def test_splits_that_are_no_permutation_of_the_persons(
    root: Path, size_cache: SizeCache, row: list[int]
) -> None:
    savemat(root / MATRIX, {"ls_set": np.array([row])})
    with pytest.raises(DataError, match="each of the 6 persons"):
        ilids_vid.read_train(root, size_cache)


def test_persons_that_break_the_layout(root: Path, size_cache: SizeCache) -> None:
    top = root / "i-LIDS-VID/sequences"
    (top / "cam1/person005").rename(top / "cam1/person006")
    (top / "cam1/visitor1").mkdir()
    with pytest.raises(DataError) as caught:
        ilids_vid.read_train(root, size_cache)
    text = str(caught.value)
    assert "4 problem(s)" in text
    assert "a person folder is like person001, found visitor1" in text
    for lacking in ("cam2/person006", "cam1/person005", "cam2/visitor1"):
        assert f"{top}/{lacking}: each person is in both cameras" in text


def test_frames_that_break_the_layout(root: Path, size_cache: SizeCache) -> None:
    # Split 0 trains with the places 2, 4 and 5.
    folder = root / "i-LIDS-VID/sequences/cam2/person009"
    bad = ["cam1_person009_00001.png", "cam2_person009.png", "cam2_person009_x.png"]
    for name in bad:
        write_picture(folder / name)
    (folder / "Thumbs.db").touch()
    (folder / "cam2_person009_99.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        ilids_vid.read_train(root, size_cache)
    text = str(caught.value)
    assert "5 problem(s)" in text
    for name in bad:
        assert f"{folder}/{name}: a frame is called cam2_person009_NUMBER.png" in text
    assert f"{folder}/Thumbs.db: frames are .png files" in text
    assert f"{folder}/cam2_person009_99.png: a frame must be a readable image" in text


def test_a_missing_matrix(root: Path, size_cache: SizeCache) -> None:
    (root / MATRIX).unlink()
    with pytest.raises(DataError, match=r"train_test_splits_ilidsvid\.mat: .*does not exist"):
        ilids_vid.read_train(root, size_cache)
