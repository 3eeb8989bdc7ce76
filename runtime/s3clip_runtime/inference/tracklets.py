"""Tracklets of a folder of crops: a data set's or what an operator recorded, with or without labels.

    ROOT/.../PLATFORM/CAMERA_NAME/*.jpg              ground/cam0_0003/000001.jpg
    ROOT/.../PLATFORM/CAMERA/NAME/*.jpg              ground/cam0/0003/000001.jpg
    ROOT/.../PLATFORM/IDENTITY/CAMERA_NAME/*.jpg     train/ground/0007/cam0_0003/000001.jpg

PLATFORM is one of `spec.PLATFORMS`. ROOT may itself lie below it.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tqdm import tqdm

from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.clips import Clip, Size, is_hr_tracklet, spread_indices
from s3clip_runtime.inference.pictures import (
    PICTURE_SUFFIXES,
    is_picture,
    natural_key,
    read_picture,
    read_size,
)
from s3clip_runtime.inference.spec import PLATFORMS, platform_id

SHOWN_PROBLEMS: Final = 10
"""Problems that one error lists; the others are only counted."""

UNKNOWN_CAMERA: Final = "camera"
"""Stands for the camera where no folder tells it: all such tracklets of a platform count as one camera's."""

_ROOT_PARTS: Final = 3
"""Components at the end of root that may tell the platform: root may be a platform's, an identity's or a
tracklet's folder. Those before may be called ground for any reason."""


@dataclass(frozen=True)
class Tracklet:
    """The crops of one track of one camera, as files.

    Attributes:
        name: path of its folder relative to the root, with slashes; unique below one root.
        files: the pictures in temporal order, at least one.
        platform: platform id of the camera (`spec.PLATFORMS`).
        camera: PLATFORM/CAMERA, unique in the data.
        identity: the folder name that stands for one person on every platform; None where there is none.
        sizes: native (height, width) of each picture.
    """

    name: str
    files: tuple[Path, ...]
    platform: int
    camera: str
    identity: str | None
    sizes: tuple[Size, ...]


def read_tracklets(root: Path) -> list[Tracklet]:
    """All tracklets below `root`, in the natural order of their names. Only headers of pictures are read.

    Each folder that directly holds pictures (`PICTURE_SUFFIXES`) is one. Other files, and names that begin
    with a dot, are ignored. Links are followed; a folder that is reached twice is read once, by its real
    place where this is below `root`, and links to folders above `root` lead nowhere.

    Of the folders between PLATFORM and the tracklet's the first is the identity. The camera is what stands
    before the first underscore in the name of the tracklet's folder. Without an underscore it is the folder
    above, which then is no identity; where that one is a number, or is the platform, it is `UNKNOWN_CAMERA`.

    Raises:
        DataError: there is no such folder, or no picture in it; or some folders have no platform or some
            files cannot be used, of which up to `SHOWN_PROBLEMS` are listed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: calibration data must be a folder, and there is none; name another")
    problems: list[str] = []
    folders = sorted(_picture_folders(root, problems), key=lambda folder: _path_key(folder.place))
    if not folders and not problems:
        raise DataError(
            f"{root}: calibration data must hold pictures ({', '.join(PICTURE_SUFFIXES)}) in one folder a "
            "tracklet, and no folder below has any; name another folder or record crops into this one"
        )
    bar = tqdm(folders, desc="read crops", unit="tracklet", delay=3, disable=None)
    tracklets = [found for folder in bar if (found := _read_tracklet(root, folder, problems)) is not None]
    _raise_if_any(problems, f"{root}: {len(problems)} problem(s) with the calibration data")
    return tracklets


def read_clip(tracklet: Tracklet) -> Clip:
    """The T crops that evaluation takes too: `clips.spread_indices`, and HR by all sizes.

    Raises:
        DataError: pictures are missing, damaged, or have not 8 bits a channel; all of them are told.
    """
    problems: list[str] = []
    crops = {}
    indices = spread_indices(len(tracklet.files))
    for index in sorted(set(indices)):
        try:
            crops[index] = read_picture(tracklet.files[index])
        except DataError as error:
            problems.append(str(error))
    _raise_if_any(problems, f"tracklet {tracklet.name}: {len(problems)} of its crops cannot be used")
    return Clip(tuple(crops[i] for i in indices), tracklet.platform, is_hr_tracklet(tracklet.sizes))


class _Folder(NamedTuple):
    place: Path
    """Below root."""

    names: list[str]
    """Of its pictures, at least one."""


class _Place(NamedTuple):
    """What the path tells."""

    platform: str
    camera: str
    identity: str | None


def _picture_folders(root: Path, problems: list[str]) -> Iterator[_Folder]:
    # The folders above root are taken as seen, so that a link to them ends there and never brings in what
    # was not asked for, such as the split that is held out.
    seen = {_mark(parent) for parent in root.resolve().parents}
    folders, links = [root], deque[Path]()
    while folders or links:
        # Links come last: a real folder keeps its own name, which tells the platform.
        folder = folders.pop() if folders else links.popleft()
        try:
            mark = _mark(folder)
            if mark in seen:
                continue
            seen.add(mark)
            with os.scandir(folder) as entries:
                found = sorted((entry.name, entry.is_symlink()) for entry in entries if entry.name[0] != ".")
        except OSError as error:
            problems.append(f"{folder}: a folder must be readable ({error.strerror}); check its permissions")
            continue
        pictures = []
        for name, is_link in found:
            if (folder / name).is_dir():
                (links if is_link else folders).append(folder / name)
            elif is_picture(name):
                pictures.append(name)
        if pictures:
            yield _Folder(folder.relative_to(root), sorted(pictures, key=natural_key))


def _mark(folder: Path) -> tuple[int, int]:
    """What tells a folder from all others, whatever its path."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def _read_tracklet(root: Path, folder: _Folder, problems: list[str]) -> Tracklet | None:
    """The tracklet of one folder, or None after its problems were noted."""
    try:
        # Names end up in manifests and reports, which are UTF-8.
        str(folder.place).encode()
        place = _place_of(root, folder.place)
    except UnicodeEncodeError:
        problems.append(f"{root}: names must be UTF-8, found {str(folder.place)!r}; rename it")
        return None
    except DataError as error:
        problems.append(str(error))
        return None
    known = len(problems)
    files = tuple(root / folder.place / name for name in folder.names)
    sizes = []
    for file in files:
        try:
            sizes.append(read_size(file))
        except DataError as error:
            problems.append(str(error))
    if len(problems) > known:
        return None
    name = folder.place.as_posix()
    camera = f"{place.platform}/{place.camera}"
    return Tracklet(name, files, platform_id(place.platform), camera, place.identity, tuple(sizes))


def _place_of(root: Path, below: Path) -> _Place:
    """Platform, camera and identity by the components of the path.

    Raises:
        DataError: there is no platform among them, or there are two.
    """
    top = Path(os.path.abspath(root)).parts[-_ROOT_PARTS:]
    parts = [*top, *below.parts]
    named = {part for part in below.parts if part in PLATFORMS}
    if len(named) > 1:
        raise DataError(
            f"{root / below}: one folder of a path names the platform, found {' and '.join(sorted(named))}; "
            "rename all but one"
        )
    places = [place for place, part in enumerate(parts) if part in PLATFORMS]
    if not places:
        raise DataError(
            f"{root / below}: a tracklet must lie below a folder named {' or '.join(PLATFORMS)}, its "
            f"camera's platform, and none in its path is; move it into one, as {root / PLATFORMS[0]}"
        )
    # Below root the first one counts, above it the nearest.
    place = next((place for place in places if place >= len(top)), places[-1])
    camera, identity = _camera_and_identity(parts[place + 1 :])
    return _Place(parts[place], camera, identity)


def _camera_and_identity(parts: Sequence[str]) -> tuple[str, str | None]:
    """Of the components below the platform, the tracklet's folder last."""
    *between, name = parts or (UNKNOWN_CAMERA,)
    camera, underscore, _ = name.partition("_")
    if not camera or not underscore:
        told = bool(between) and re.fullmatch("[0-9]+", between[-1]) is None
        camera = between.pop() if told else UNKNOWN_CAMERA
    return camera, between[0] if between else None


def _path_key(path: Path) -> list[tuple[list[str | int], str]]:
    return [natural_key(part) for part in path.parts]


def _raise_if_any(problems: Iterable[str], title: str) -> None:
    found = list(problems)
    if not found:
        return
    lines = [title, *found[:SHOWN_PROBLEMS]]
    if len(found) > SHOWN_PROBLEMS:
        lines.append(f"and {len(found) - SHOWN_PROBLEMS} more")
    raise DataError("\n  ".join(lines))
