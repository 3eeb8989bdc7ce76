"""Reader of DetReIDX in the layout of the VReID-XFD challenge (method.md 8.3).

    root/train/0024/5453/*.jpg
    root/case1_aerial_to_ground/{query,gallery}/0024/5453/*.jpg      and case 2 and 3 alike

The fields of a file name are parted by "_". Fewer than eight are of the ground camera. An aerial name
has, counted from zero, height and distance in metres and the angle in degrees as fields 6, 7 and 8, and
the session, a whole number, as the last but one. Session 1 is one camera; every other number is the
other, in which people wear other clothes.
"""

from __future__ import annotations

import math
from pathlib import Path

from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.identity_folders import FrameName, read_cases, read_split
from s3clip.datasets.listing import is_number
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.inference.spec import platform_id

CASES = ("case1_aerial_to_ground", "case2_ground_to_aerial", "case3_aerial_to_aerial")

_AERIAL_FIELDS = 8
"""Names with at least so many fields are aerial."""
_GEOMETRY = {6: "height", 7: "distance", 8: "angle"}
_LEAST_FIELDS = max(_GEOMETRY) + 3
"""After the geometry follow the session and one more field."""

_GROUND = FrameName("ground", platform_id("ground"))
_SESSION_1 = FrameName("aerial-session1", platform_id("aerial"))
_SESSION_2 = FrameName("aerial-session2", platform_id("aerial"))


def read_train(root: Path, sizes: SizeCache) -> list[Tracklet]:
    """Index the training split; identities are the numbers of the folders.

    Raises:
        DataError: the split is missing or empty, or parts of it break the layout (all reported together).
    """
    return read_split(root, "train", _parse, sizes)


def read_protocols(root: Path, sizes: SizeCache) -> list[Protocol]:
    """The three cases. One without a query that has a match of another camera is left out.

    Raises:
        DataError: a case is missing or breaks the layout (all reported together), or none can be
            measured, as with anonymised test labels.
    """
    return read_cases(root, CASES, _parse, sizes)


def _parse(name: str) -> FrameName:
    fields = name.split("_")
    if len(fields) < _AERIAL_FIELDS:
        return _GROUND
    if len(fields) < _LEAST_FIELDS:
        raise ValueError(
            f"a name has fewer than {_AERIAL_FIELDS} fields (ground) or at least {_LEAST_FIELDS} (aerial), "
            f"found {len(fields)}"
        )
    for index, meaning in _GEOMETRY.items():
        if not _is_measure(fields[index]):
            raise ValueError(f"field {index} is the {meaning}, a number, found {fields[index]!r}")
    session = fields[-2]
    if not is_number(session):
        raise ValueError(f"the last but one field is the session, a whole number, found {session!r}")
    return _SESSION_1 if int(session) == 1 else _SESSION_2


def _is_measure(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
