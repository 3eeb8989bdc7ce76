"""Reader of AG-VPReID (method.md 8.4).

    root/train/0012/TRACKLET/P81T2310171A2C2E152K7F7528.jpg
    root/case1_aerial_to_ground/{query,gallery}/0012/TRACKLET/*.jpg      and case2_ground_to_aerial

The identity is the folder: P is a number of the day only. The camera stands between C and E: 0 and 1 are
CCTV, 2 and 3 worn on the body, 4 and 5 on drones. F is the frame of the video. There is no
aerial-to-aerial case.
"""

from __future__ import annotations

import re
from pathlib import Path

from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.identity_folders import FrameName, read_cases, read_split
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.inference.spec import platform_id

CASES = ("case1_aerial_to_ground", "case2_ground_to_aerial")

# The other fields are not used here, and T and A are not always plain digits.
_NAME = re.compile(r"P[^C]*C(?P<camera>[^E]*)E[^F]*F(?P<frame>[0-9]+)(?i:\.jpg)")
_CAMERAS = {
    str(number): (f"C{number}", platform_id("aerial" if number >= 4 else "ground")) for number in range(6)
}


def read_train(root: Path, sizes: SizeCache) -> list[Tracklet]:
    """Index the training split; identities are the numbers of the folders.

    Raises:
        DataError: the split is missing or empty, or parts of it break the layout (all reported together).
    """
    return read_split(root, "train", _parse, sizes)


def read_protocols(root: Path, sizes: SizeCache) -> list[Protocol]:
    """The two cases. One without a query that has a match of another camera is left out.

    Raises:
        DataError: a case is missing or breaks the layout (all reported together), or none can be measured.
    """
    return read_cases(root, CASES, _parse, sizes)


def _parse(name: str) -> FrameName:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError("a name is like P81T2310171A2C2E152K7F7528.jpg, with the fields P, C, E and F")
    if match["camera"] not in _CAMERAS:
        raise ValueError(f"the camera, between C and E, is 0 to 5, found {match['camera']!r}")
    return FrameName(*_CAMERAS[match["camera"]], number=int(match["frame"]))
