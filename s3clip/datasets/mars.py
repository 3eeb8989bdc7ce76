"""Reader of MARS (method.md 8.4): six ground cameras, in the layout of `mars_layout`.

Identity -1 is junk and left out; identity 0 are distractors, which stay in the gallery.
"""

from __future__ import annotations

from pathlib import Path

from s3clip.datasets import Protocol, Tracklet, measurable
from s3clip.datasets.mars_layout import read_query_rows, read_tracks
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.inference.spec import platform_id

CAMERAS = 6
_PLATFORMS = (platform_id("ground"),) * CAMERAS


def read_train(root: Path, sizes: SizeCache) -> list[Tracklet]:
    """Index the training split, in the order of its table. Raises as `mars_layout.read_tracks`."""
    return list(read_tracks(root, "train", _PLATFORMS, sizes).values())


def read_protocols(root: Path, sizes: SizeCache) -> list[Protocol]:
    """The one protocol, query_to_gallery.

    The gallery is the whole test split, the queries too (method.md 8.1): else some queries would have no
    match. The ranking leaves a query itself out, as it is of the same identity and camera.

    Raises:
        DataError: as `mars_layout.read_tracks` and `read_query_rows`, or no query has a match.
    """
    queries = read_query_rows(root)
    tracks = read_tracks(root, "test", _PLATFORMS, sizes)
    query = [tracks[row] for row in queries if row in tracks]  # the others are junk
    return measurable([Protocol("query_to_gallery", query, list(tracks.values()))], root)
