"""Reader of a table of frames, for data in any folders.

    root/tracklets.csv      path,identity,camera,platform,tracklet,split
                            night/0001.jpg,7,gate,ground,gate-7a,train

One row is one frame; the rows of a tracklet are in temporal order. `path` is relative to root and stays
below it; `identity` is a whole number; `platform` one of `spec.PLATFORMS`; `tracklet` is unique in the
file; `split` is train, and for the evaluation either test or both of query and gallery. Other columns
are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from s3clip.datasets import Protocol, Tracklet, cross_view_protocols, measurable, protocol_name
from s3clip.datasets.listing import is_number
from s3clip.datasets.problems import Problems
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.spec import PLATFORMS, platform_id

FILE = "tracklets.csv"
COLUMNS = ("path", "identity", "camera", "platform", "tracklet", "split")
SPLITS = ("train", "query", "gallery", "test")

_Key = tuple[str, str, str, str]
"""identity, camera, platform and split, which all frames of a tracklet share."""


def read_train(root: Path, sizes: SizeCache) -> list[Tracklet]:
    """The tracklets of the split train, in the order of their first row.

    A tracklet's camera is PLATFORM/CAMERA: two platforms may both have a cam0.

    Raises:
        DataError: the file is missing or not a CSV of these columns, rows break the rules or images are
            missing or unreadable (reported together), or the split is empty.
    """
    (train,) = _read_splits(root, ("train",), sizes)
    if not train:
        raise DataError(f"{root / FILE}: training needs rows of the split train, found none; add them")
    return train


def read_protocols(root: Path, sizes: SizeCache) -> list[Protocol]:
    """The three aerial-ground protocols on the split test, or the queries against the gallery.

    Raises:
        DataError: as `read_train`, or nothing can be measured.
    """
    test, query, gallery = _read_splits(root, ("test", "query", "gallery"), sizes)
    if bool(test) == bool(query or gallery):
        raise DataError(
            f"{root / FILE}: evaluation needs rows of the split test or of query and gallery, found "
            f"{len(test)}, {len(query)} and {len(gallery)} tracklets; change the column split"
        )
    if test:
        return cross_view_protocols(test, root / FILE)
    return measurable([Protocol(protocol_name(query, gallery), query, gallery)], root)


def _read_splits(root: Path, splits: Iterable[str], sizes: SizeCache) -> list[list[Tracklet]]:
    """The tracklets of each split. The rules are checked on all rows, images only in these splits."""
    problems = Problems()
    tracklets = _group_rows(root / FILE, problems)
    result = [
        [(name, key, files) for name, (key, files) in tracklets.items() if key[3] == split]
        for split in splits
    ]
    wanted = [file for rows in result for _, _, files in rows for file in files]
    found = sizes.sizes(root, wanted, problems)
    problems.raise_if_any(root / FILE, "CSV")
    return [
        [
            Tracklet(
                name=name,
                identity=int(identity),
                camera=f"{platform}/{camera}",
                platform=platform_id(platform),
                folder=root,
                files=tuple(files),
                sizes=tuple(found[file] for file in files),
            )
            for name, (identity, camera, platform, _), files in rows
        ]
        for rows in result
    ]


def _group_rows(path: Path, problems: Problems) -> dict[str, tuple[_Key, list[str]]]:
    """Tracklet -> what its frames share, and its files in the order of the rows."""
    tracklets: dict[str, tuple[_Key, list[str]]] = {}
    for where, row in _read_rows(path, problems):
        if not _is_valid(where, row, problems):
            continue
        key = (row["identity"], row["camera"], row["platform"], row["split"])
        shared, files = tracklets.setdefault(row["tracklet"], (key, []))
        if key != shared:
            problems.add(
                f"{where}: all rows of tracklet {row['tracklet']} have one identity, camera, platform and "
                f"split, found {key} after {shared}; change it"
            )
        files.append(row["path"])
    return tracklets


def _read_rows(path: Path, problems: Problems) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) of the rows that have as many fields as the header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: the first line names the columns {', '.join(COLUMNS)}; add {', '.join(missing)}"
                )
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    problems.add(f"{where}: a row has as many fields as the first line; complete or cut it")
                else:
                    yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: must be a readable CSV file in UTF-8 ({error}); restore it") from error


def _is_valid(where: str, row: dict[str, str], problems: Problems) -> bool:
    known = problems.count
    path = PurePosixPath(row["path"])
    if not path.parts or path.is_absolute() or ".." in path.parts:
        problems.add(f"{where}: path is below the folder of the file, found {row['path']!r}; change it")
    if not is_number(row["identity"]):
        problems.add(f"{where}: identity is a whole number, found {row['identity']!r}; change it")
    if row["platform"] not in PLATFORMS:
        problems.add(f"{where}: platform is {' or '.join(PLATFORMS)}, found {row['platform']!r}; change it")
    if row["split"] not in SPLITS:
        problems.add(f"{where}: split is {', '.join(SPLITS)}, found {row['split']!r}; change it")
    for column in ("camera", "tracklet"):
        if not row[column]:
            problems.add(f"{where}: {column} is a name, found nothing; add it")
    return problems.count == known
