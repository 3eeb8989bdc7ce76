"""Reader of the plain folder layout, for one's own recordings.

    root/SPLIT/PLATFORM/IDENTITY/TRACKLET/*.jpg      train/ground/0007/cam0_0003/000001.jpg

PLATFORM is one of `spec.PLATFORMS`; IDENTITY has four or more digits, the same for one person on every
platform; TRACKLET is CAMERA_ANYTHING; frames sort by file name. Names that begin with a dot are ignored.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from s3clip.datasets import Tracklet
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.spec import PLATFORMS, platform_id

SHOWN_PROBLEMS = 10
"""Problems that one error message lists; the others are only counted."""


def read_folder(root: Path, split: str) -> list[Tracklet]:
    """Index one split, sorted by platform, identity and tracklet name.

    Only image headers are read, so a picture whose body is damaged is found when it is decoded.
    A tracklet's name is PLATFORM/IDENTITY/TRACKLET and its camera PLATFORM/CAMERA: two platforms may both
    have a cam0, and the ranking must not take them for one camera.

    Raises:
        DataError: the split is missing or empty, or parts of it break the layout (all reported together).
    """
    top = root / split
    if not top.is_dir():
        raise DataError(f"{top}: a split is a folder, and this one does not exist; create it or name another")
    problems: list[str] = []
    tracklets = [
        tracklet
        for platform in _folders(top, problems)
        if _is_platform(platform, problems)
        for identity in _folders(platform, problems)
        if _is_identity(identity, problems)
        for folder in _folders(identity, problems)
        if (tracklet := _read_tracklet(folder, problems)) is not None
    ]
    if problems:
        raise DataError(_report(top, problems))
    if not tracklets:
        raise DataError(f"{top}: a split needs PLATFORM/IDENTITY/TRACKLET folders, found none; add them")
    return tracklets


def _folders(parent: Path, problems: list[str]) -> list[Path]:
    """Sub-folders in sorted order; anything else is a problem."""
    entries = _entries(parent)
    problems += [
        f"{path}: only folders belong here; remove this file" for path in entries if not path.is_dir()
    ]
    return [path for path in entries if path.is_dir()]


def _entries(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if not path.name.startswith("."))


def _is_platform(folder: Path, problems: list[str]) -> bool:
    if folder.name in PLATFORMS:
        return True
    problems.append(f"{folder}: a platform folder is one of {', '.join(PLATFORMS)}; rename it")
    return False


def _is_identity(folder: Path, problems: list[str]) -> bool:
    # isdigit alone also takes digits of other scripts, such as superscripts, that int() refuses.
    if folder.name.isascii() and folder.name.isdigit() and len(folder.name) >= 4:
        return True
    problems.append(f"{folder}: an identity folder has four or more digits, such as 0007; rename it")
    return False


def _read_tracklet(folder: Path, problems: list[str]) -> Tracklet | None:
    """The tracklet of one folder, or None after its problems were noted."""
    known = len(problems)
    camera, underscore, _ = folder.name.partition("_")
    if not camera or not underscore:
        problems.append(f"{folder}: a tracklet folder is CAMERA_NAME, such as cam0_0003; rename it")
    frames = tuple(_entries(folder))
    if not frames:
        problems.append(f"{folder}: a tracklet needs at least one .jpg frame, found none; add or remove it")
    sizes = [size for frame in frames if (size := _read_size(frame, problems)) is not None]
    if len(problems) > known:
        return None
    platform, identity = folder.parts[-3:-1]
    return Tracklet(
        name=f"{platform}/{identity}/{folder.name}",
        identity=int(identity),
        camera=f"{platform}/{camera}",
        platform=platform_id(platform),
        folder=folder,
        files=tuple(frame.name for frame in frames),
        sizes=tuple(sizes),
    )


def _read_size(path: Path, problems: list[str]) -> tuple[int, int] | None:
    """(height, width) from the image's header, or None after the problem was noted."""
    if path.suffix.lower() != ".jpg":
        problems.append(f"{path}: frames are .jpg files; convert or remove it")
        return None
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError) as error:
        problems.append(f"{path}: a frame must be a readable image ({error}); restore or remove it")
        return None


def _report(top: Path, problems: list[str]) -> str:
    lines = [f"{top}: {len(problems)} problem(s) with the folder layout", *problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n  ".join(lines)
