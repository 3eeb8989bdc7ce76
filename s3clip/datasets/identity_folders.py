"""The layout that DetReIDX and AG-VPReID share (method.md 8.3, 8.4).

    root/SPLIT/IDENTITY/TRACKLET/*.jpg     SPLIT is train, or CASE/query and CASE/gallery

IDENTITY is a whole number. Camera and platform are in the file names, which the two data sets write
differently: they pass a function that takes a name apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from s3clip.datasets import Protocol, Tracklet, measurable
from s3clip.datasets.listing import is_number, list_folders, list_frames
from s3clip.datasets.problems import Problems
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.inference.spec import PLATFORMS


class FrameName(NamedTuple):
    """What the name of an image file says.

    Attributes:
        camera: unique in the data set.
        platform: platform id.
        number: sorts the frames of a tracklet; equal numbers keep the natural order of the names.
    """

    camera: str
    platform: int
    number: int = 0


ParseName = Callable[[str], FrameName]
"""Takes a file name apart, or raises ValueError with the rule that the name breaks."""


def read_split(root: Path, split: str, parse: ParseName, sizes: SizeCache) -> list[Tracklet]:
    """Index one split, sorted by identity folder and tracklet folder.

    A tracklet's name is SPLIT/IDENTITY/TRACKLET: the cases show the same tracklets in other roles.

    Raises:
        DataError: the split is missing or empty, or parts of it break the layout (all reported together).
    """
    problems = Problems()
    tracklets = _read_tracklets(root, split, parse, sizes, problems)
    problems.raise_if_any(root / split, "SPLIT/IDENTITY/TRACKLET")
    return tracklets


def read_cases(root: Path, cases: Sequence[str], parse: ParseName, sizes: SizeCache) -> list[Protocol]:
    """The protocol of each case folder, such as case1_aerial_to_ground: its name is what follows "_".

    Raises:
        DataError: a case is missing or breaks the layout, or has a tracklet of the wrong platform (all
            reported together), or no case can be measured.
    """
    problems = Problems()
    protocols = []
    for case in cases:
        name = case.partition("_")[2]
        sides = []
        for side, platform in zip(("query", "gallery"), name.split("_to_"), strict=True):
            tracklets = _read_tracklets(root, f"{case}/{side}", parse, sizes, problems)
            _check_platform(tracklets, platform, problems)
            sides.append(tracklets)
        protocols.append(Protocol(name, *sides))
    problems.raise_if_any(root, "CASE/query|gallery/IDENTITY/TRACKLET")
    return measurable(protocols, root)


def _read_tracklets(
    root: Path, split: str, parse: ParseName, sizes: SizeCache, problems: Problems
) -> list[Tracklet]:
    """The tracklets of one split; it must not be empty."""
    known = problems.count
    tracklets = [
        tracklet
        for identity in list_folders(root / split, problems)
        if _is_identity(identity, problems)
        for folder in list_folders(identity, problems)
        if (tracklet := _read_tracklet(folder, split, parse, sizes, problems)) is not None
    ]
    if not tracklets and problems.count == known:
        problems.add(f"{root / split}: a split needs IDENTITY/TRACKLET folders, found none; add them")
    return tracklets


def _is_identity(folder: Path, problems: Problems) -> bool:
    if is_number(folder.name):
        return True
    problems.add(f"{folder}: an identity folder is a whole number, such as 0007; rename it")
    return False


def _read_tracklet(
    folder: Path, split: str, parse: ParseName, sizes: SizeCache, problems: Problems
) -> Tracklet | None:
    """The tracklet of one folder, or None after its problems were noted."""
    known = problems.count
    files = list_frames(folder, ".jpg", problems)
    parsed = _parse_names(folder, files, parse, problems)
    found = sizes.sizes(folder, files, problems)
    if problems.count > known:
        return None
    files.sort(key=lambda name: parsed[name].number)
    first = parsed[files[0]]
    return Tracklet(
        name=f"{split}/{folder.parent.name}/{folder.name}",
        identity=int(folder.parent.name),
        camera=first.camera,
        platform=first.platform,
        folder=folder,
        files=tuple(files),
        sizes=tuple(found[name] for name in files),
    )


def _parse_names(
    folder: Path, files: Sequence[str], parse: ParseName, problems: Problems
) -> dict[str, FrameName]:
    """What each name says; names that break the rule or another camera than the first are problems."""
    parsed: dict[str, FrameName] = {}
    first: FrameName | None = None
    for name in files:
        try:
            parsed[name] = frame = parse(name)
        except ValueError as error:
            problems.add(f"{folder / name}: {error}; rename or remove it")
            continue
        first = first or frame
        if frame[:2] != first[:2]:
            problems.add(
                f"{folder / name}: all frames of a tracklet are of one camera, found {frame.camera} "
                f"after {first.camera}; move it to another tracklet"
            )
    return parsed


def _check_platform(tracklets: Sequence[Tracklet], platform: str, problems: Problems) -> None:
    for tracklet in tracklets:
        if PLATFORMS[tracklet.platform] != platform:
            problems.add(
                f"{tracklet.folder}: this folder takes {platform} tracklets, and the file names say "
                f"{PLATFORMS[tracklet.platform]}; move it"
            )
