"""Reader of iLIDS-VID (method.md 8.4).

    root/i-LIDS-VID/sequences/cam{1,2}/person001/cam1_person001_00317.png
    root/train-test people splits/train_test_splits_ilidsvid.mat    ls_set (splits, persons)

A row of ls_set is one split: places, from 1, in the sorted list of persons. Its first half is for the
test, the second for training.
"""

from __future__ import annotations

from pathlib import Path

from s3clip.datasets import Protocol, Tracklet, measurable
from s3clip.datasets.listing import is_number, list_folders, list_frames
from s3clip.datasets.matlab import read_table
from s3clip.datasets.problems import Problems
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.spec import platform_id

CAMERAS = ("cam1", "cam2")


def read_train(root: Path, sizes: SizeCache, *, split: int = 0) -> list[Tracklet]:
    """Index the training half of a split: both cameras of each person, sorted by person.

    Args:
        root: of the data set.
        sizes: the size cache.
        split: row of ls_set, from 0.

    Raises:
        DataError: the layout is broken (all problems of the persons and frames reported together).
        ConfigError: ls_set has no such row.
    """
    persons, _ = _read_split(root, split)
    cam1, cam2 = _read_cameras(root, persons, sizes)
    return [tracklet for pair in zip(cam1, cam2, strict=True) for tracklet in pair]


def read_protocols(root: Path, sizes: SizeCache, *, split: int = 0) -> list[Protocol]:
    """The one protocol, cam1_to_cam2, on the test half of a split. Arguments and errors as `read_train`."""
    _, persons = _read_split(root, split)
    return measurable([Protocol("cam1_to_cam2", *_read_cameras(root, persons, sizes))], root)


def _read_split(root: Path, split: int) -> tuple[list[str], list[str]]:
    """Folder names of the persons for training and for the test."""
    persons = _read_persons(root)
    path = root / "train-test people splits/train_test_splits_ilidsvid.mat"
    table = read_table(path, "ls_set")
    if not 0 <= split < len(table):
        raise ConfigError(f"data.ilids_split: {path} has the splits 0 to {len(table) - 1}, got {split}")
    places = [int(place) for place in table[split]]
    if sorted(places) != list(range(1, len(persons) + 1)):
        raise DataError(
            f"{path}: a split has each of the {len(persons)} persons of i-LIDS-VID/sequences once, and split "
            f"{split} has {len(places)} numbers, {len(set(places))} of them different; restore the file or "
            "the folders"
        )
    half = len(places) // 2
    # The rule of the authors is the sorted list; the order of the file system would mix the halves.
    test, train = ([persons[place - 1] for place in sorted(part)] for part in (places[:half], places[half:]))
    return train, test


def _read_persons(root: Path) -> list[str]:
    """Names of the person folders, sorted; both cameras must have the same."""
    top = root / "i-LIDS-VID/sequences"
    problems = Problems()
    cam1, cam2 = ([folder.name for folder in list_folders(top / camera, problems)] for camera in CAMERAS)
    for name in sorted({*cam1, *cam2}):
        if not name.startswith("person") or not is_number(name.removeprefix("person")):
            problems.add(f"{top}: a person folder is like person001, found {name}; rename it")
    for name in sorted({*cam1} ^ {*cam2}):
        lacking = "cam2" if name in cam1 else "cam1"
        problems.add(f"{top / lacking / name}: each person is in both cameras; restore this folder")
    problems.raise_if_any(top, "iLIDS-VID")
    return sorted(cam1)


def _read_cameras(root: Path, persons: list[str], sizes: SizeCache) -> tuple[list[Tracklet], list[Tracklet]]:
    """The tracklets of the persons in camera 1 and in camera 2."""
    top = root / "i-LIDS-VID/sequences"
    problems = Problems()
    cam1, cam2 = (
        [_read_tracklet(top / camera / person, sizes, problems) for person in persons] for camera in CAMERAS
    )
    problems.raise_if_any(top, "iLIDS-VID")
    return [t for t in cam1 if t is not None], [t for t in cam2 if t is not None]


def _read_tracklet(folder: Path, sizes: SizeCache, problems: Problems) -> Tracklet | None:
    """The tracklet of one person in one camera, or None after its problems were noted."""
    known = problems.count
    camera, person = folder.parts[-2:]
    files = list_frames(folder, ".png", problems)
    prefix = f"{camera}_{person}_"
    for name in files:
        if not name.startswith(prefix) or not is_number(name.removeprefix(prefix)[: -len(".png")]):
            problems.add(f"{folder / name}: a frame is called {prefix}NUMBER.png; rename or remove it")
    found = sizes.sizes(folder, files, problems)
    if problems.count > known:
        return None
    return Tracklet(
        name=f"{camera}/{person}",
        identity=int(person.removeprefix("person")),
        camera=camera,
        platform=platform_id("ground"),
        folder=folder,
        files=tuple(files),
        sizes=tuple(found[name] for name in files),
    )
