"""What lies in the folders of a data set, in an order that does not depend on the file system."""

from __future__ import annotations

import os
import re
from pathlib import Path

from s3clip.datasets.problems import Problems

_NUMBER = re.compile(r"([0-9]+)")


def is_number(text: str) -> bool:
    """Whether `text` is a whole number in ASCII digits; isdigit alone also takes superscripts."""
    return text.isascii() and text.isdigit()


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that compares the numbers in names as numbers: frame 9 comes before frame 10."""
    # re.split alternates text and digits, so that two keys never compare a number with text.
    parts = _NUMBER.split(name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def list_folders(parent: Path, problems: Problems) -> list[Path]:
    """Sub-folders sorted by name; a missing parent and anything that is no folder are problems."""
    folders = []
    for name, is_folder in _entries(parent, problems):
        if is_folder:
            folders.append(parent / name)
        else:
            problems.add(f"{parent / name}: only folders belong here; remove this file")
    return folders


def list_frames(folder: Path, suffix: str, problems: Problems) -> list[str]:
    """Names of the image files in natural order; none at all and anything else are problems.

    Args:
        folder: of one tracklet.
        suffix: in lower case with its dot, such as ".jpg"; files may have it in upper case.
        problems: where they are noted.
    """
    known = problems.count
    names = []
    for name, is_folder in _entries(folder, problems):
        if name.lower().endswith(suffix) and not is_folder:
            names.append(name)
        else:
            problems.add(f"{folder / name}: frames are {suffix} files; convert or remove it")
    if not names and problems.count == known:
        problems.add(f"{folder}: a tracklet needs at least one {suffix} frame, found none; add or remove it")
    return sorted(names, key=natural_key)


def _entries(folder: Path, problems: Problems) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) sorted by name, without the names that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name[0] != ".")
    except FileNotFoundError:
        problems.add(f"{folder}: this folder belongs to the layout and does not exist; create or restore it")
        return []
    except OSError as error:
        problems.add(f"{folder}: a folder must be readable ({error.strerror}); check its permissions")
        return []
    # Such a name can be neither printed nor remembered in the size cache.
    broken = [name for name, _ in found if not _is_text(name)]
    for name in broken:
        problems.add(f"{folder}: names must be UTF-8, found {name!r}; rename it")
    return [entry for entry in found if entry[0] not in broken]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
