"""Reader of the plain folder layout, for one's own recordings.

    root/SPLIT/PLATFORM/IDENTITY/TRACKLET/*.jpg      train/ground/0007/cam0_0003/000001.jpg

SPLIT is train or test; PLATFORM is one of `spec.PLATFORMS`; IDENTITY has four or more digits, the same
for one person on every platform; TRACKLET is CAMERA_ANYTHING; frames sort by file name, numbers in it as
numbers. Names that begin with a dot are ignored.
"""

from __future__ import annotations

from pathlib import Path

from s3clip.datasets import Protocol, Tracklet, cross_view_protocols
from s3clip.datasets.listing import is_number, list_folders, list_frames
from s3clip.datasets.problems import Problems
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.spec import PLATFORMS, platform_id


def read_train(root: Path, sizes: SizeCache) -> list[Tracklet]:
    """Index the training split, sorted by platform, identity and tracklet name.

    Only image headers are read, so a picture whose body is damaged is found when it is decoded.
    A tracklet's name is PLATFORM/IDENTITY/TRACKLET and its camera PLATFORM/CAMERA: two platforms may both
    have a cam0, and the ranking must not take them for one camera.

    Raises:
        DataError: the split is missing or empty, or parts of it break the layout (all reported together).
    """
    return _read_split(root / "train", sizes)


def read_protocols(root: Path, sizes: SizeCache) -> list[Protocol]:
    """The three aerial-ground protocols on the test split. Raises as `read_train`."""
    top = root / "test"
    return cross_view_protocols(_read_split(top, sizes), top)


def _read_split(top: Path, sizes: SizeCache) -> list[Tracklet]:
    if not top.is_dir():
        raise DataError(f"{top}: a split is a folder, and this one does not exist; create it or name another")
    problems = Problems()
    tracklets = [
        tracklet
        for platform in list_folders(top, problems)
        if _is_platform(platform, problems)
        for identity in list_folders(platform, problems)
        if _is_identity(identity, problems)
        for folder in list_folders(identity, problems)
        if (tracklet := _read_tracklet(folder, sizes, problems)) is not None
    ]
    problems.raise_if_any(top, "folder")
    if not tracklets:
        raise DataError(f"{top}: a split needs PLATFORM/IDENTITY/TRACKLET folders, found none; add them")
    return tracklets


def _is_platform(folder: Path, problems: Problems) -> bool:
    if folder.name in PLATFORMS:
        return True
    problems.add(f"{folder}: a platform folder is one of {', '.join(PLATFORMS)}; rename it")
    return False


def _is_identity(folder: Path, problems: Problems) -> bool:
    if is_number(folder.name) and len(folder.name) >= 4:
        return True
    problems.add(f"{folder}: an identity folder has four or more digits, such as 0007; rename it")
    return False


def _read_tracklet(folder: Path, sizes: SizeCache, problems: Problems) -> Tracklet | None:
    """The tracklet of one folder, or None after its problems were noted."""
    known = problems.count
    camera, underscore, _ = folder.name.partition("_")
    if not camera or not underscore:
        problems.add(f"{folder}: a tracklet folder is CAMERA_NAME, such as cam0_0003; rename it")
    files = list_frames(folder, ".jpg", problems)
    found = sizes.sizes(folder, files, problems)
    if problems.count > known:
        return None
    platform, identity = folder.parts[-3:-1]
    return Tracklet(
        name=f"{platform}/{identity}/{folder.name}",
        identity=int(identity),
        camera=f"{platform}/{camera}",
        platform=platform_id(platform),
        folder=folder,
        files=tuple(files),
        sizes=tuple(found[name] for name in files),
    )
