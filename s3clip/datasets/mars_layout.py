"""The layout of MARS, which G2A-VReID copies (method.md 8.4).

    root/info/{train,test}_name.txt          file names, one a line
    root/info/tracks_{train,test}_info.mat   track_{train,test}_info (N, 4): first and last line of a
                                             tracklet, from 1 and inclusive; identity; camera from 1
    root/info/query_IDX.mat                  query_IDX (1, Q): rows of track_test_info, from 1
    root/bbox_{train,test}/0001/0001C1T0001F001.jpg

A name begins with the four characters of its folder; the digit after "C" is the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3clip.datasets import Tracklet
from s3clip.datasets.matlab import read_table
from s3clip.datasets.problems import Problems
from s3clip.datasets.sizes import Size, SizeCache
from s3clip_runtime.errors import DataError

JUNK = -1
"""Identity of detections that show no whole person: they are in no gallery."""

_FOLDER = slice(0, 4)
_CAMERA = 5


@dataclass(frozen=True)
class _Track:
    """One row of a track table.

    Attributes:
        row: counted from 1, as in the file.
        identity: the data set's number.
        camera: counted from 1.
        files: image names, at least one; all begin with `folder`.
        folder: below bbox_train or bbox_test.
    """

    row: int
    identity: int
    camera: int
    files: tuple[str, ...]
    folder: str


def read_tracks(root: Path, split: str, platforms: Sequence[int], sizes: SizeCache) -> dict[int, Tracklet]:
    """Index one split: row number, from 1, -> tracklet. Junk is left out.

    A tracklet's name is SPLIT/ROW and its camera the number that the data set gives it. The frames keep
    the order of the name file, which is the temporal one.

    Args:
        root: of the data set.
        split: "train" or "test".
        platforms: platform ids of the cameras 1, 2, ...
        sizes: the size cache.

    Raises:
        DataError: an index file is missing or damaged, a row or a name breaks the layout, or an image is
            missing or unreadable (all of the rows and images reported together).
    """
    table = read_table(root / f"info/tracks_{split}_info.mat", f"track_{split}_info")
    if table.shape[1] != 4:
        raise DataError(
            f"{root}/info/tracks_{split}_info.mat: rows are first, last, identity and camera, found "
            f"{table.shape[1]} columns; restore it"
        )
    names = _read_names(root / f"info/{split}_name.txt")
    problems = Problems()
    tracks = _read_rows(root, split, table, names, len(platforms), problems)
    found = _read_sizes(root / f"bbox_{split}", tracks, sizes, problems)
    problems.raise_if_any(root, f"MARS ({split})")
    if not tracks:
        raise DataError(f"{root}: the {split} split has no tracklets; restore info/tracks_{split}_info.mat")
    return {
        track.row: Tracklet(
            name=f"{split}/{track.row:05d}",
            identity=track.identity,
            camera=str(track.camera),
            platform=platforms[track.camera - 1],
            folder=root / f"bbox_{split}" / track.folder,
            files=track.files,
            sizes=tuple(found[name] for name in track.files),
        )
        for track in tracks
    }


def read_query_rows(root: Path) -> list[int]:
    """Rows of the test split that are queries, from 1, in the order of the file.

    Raises:
        DataError: the file is missing or damaged, holds a row that the test split does not have, or one
            twice (all reported together).
    """
    path = root / "info/query_IDX.mat"
    table = read_table(path, "query_IDX")
    if 1 not in table.shape:
        raise DataError(f"{path}: query_IDX is one row of numbers, found the shape {table.shape}; restore it")
    tracks = len(read_table(root / "info/tracks_test_info.mat", "track_test_info"))
    rows = [int(row) for row in table.ravel()]
    problems, seen = Problems(), set[int]()
    for row in rows:
        if not 1 <= row <= tracks:
            problems.add(
                f"{path}: a query is a row of track_test_info, 1 to {tracks}, found {row}; restore it"
            )
        if row in seen:
            problems.add(f"{path}: a query occurs once, found row {row} again; restore it")
        seen.add(row)
    problems.raise_if_any(root, "MARS (query)")
    return rows


def _read_names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of image names must be readable ({error}); restore it") from error


def _read_rows(
    root: Path, split: str, table: NDArray[np.int64], names: list[str], cameras: int, problems: Problems
) -> list[_Track]:
    """The rows that are not junk; rows that break the layout are problems."""
    tracks = []
    for row, (first, last, identity, camera) in enumerate(table.tolist(), start=1):
        if identity == JUNK:
            continue
        where = f"{root}/info/tracks_{split}_info.mat: row {row}"
        known = problems.count
        if identity < 0:
            problems.add(f"{where}: an identity is {JUNK} (junk) or at least 0, found {identity}; restore it")
        if not 1 <= camera <= cameras:
            problems.add(f"{where}: a camera is 1 to {cameras}, found {camera}; restore it")
        if not 1 <= first <= last <= len(names):
            problems.add(
                f"{where}: a tracklet is a range of the {len(names)} names, found {first} to {last}; "
                "restore it"
            )
        if problems.count > known:
            continue
        files = tuple(names[first - 1 : last])
        if _names_agree(where, files, camera, problems):
            tracks.append(_Track(row, identity, camera, files, files[0][_FOLDER]))
    return tracks


def _names_agree(where: str, files: tuple[str, ...], camera: int, problems: Problems) -> bool:
    """Whether all names are of one folder and of the row's camera; the first that is not is a problem."""
    for name in files:
        if len(name) <= _CAMERA or "/" in name or name.startswith("."):
            problems.add(
                f"{where}: a name is like 0001C1T0001F001.jpg, found {name!r}; restore the name file"
            )
        elif name[_FOLDER] != files[0][_FOLDER]:
            problems.add(
                f"{where}: a tracklet shows one person, found {name} after {files[0]}; restore the name file"
            )
        elif name[_CAMERA] != str(camera):
            problems.add(
                f"{where}: the camera of the row is {camera}, and the name says {name}; restore the name file"
            )
        else:
            continue
        return False
    return True


def _read_sizes(top: Path, tracks: Sequence[_Track], sizes: SizeCache, problems: Problems) -> dict[str, Size]:
    """Sizes of all frames by name. Folder by folder: one folder has the frames of many tracklets."""
    by_folder: dict[str, list[str]] = {}
    for track in tracks:
        by_folder.setdefault(track.folder, []).extend(track.files)
    found: dict[str, Size] = {}
    for folder, names in sorted(by_folder.items()):
        found |= sizes.sizes(top / folder, names, problems)
    return found
