"""Reader of G2A-VReID and its v2 (method.md 8.4), in the layout of `mars_layout`.

Camera 1 is on the ground and camera 2 on a drone.
"""

from __future__ import annotations

from pathlib import Path

from s3clip.datasets import Protocol, Tracklet, measurable, protocol_name
from s3clip.datasets.mars_layout import read_query_rows, read_tracks
from s3clip.datasets.sizes import SizeCache
from s3clip_runtime.inference.spec import platform_id

_PLATFORMS = (platform_id("ground"), platform_id("aerial"))


def read_train(root: Path, sizes: SizeCache) -> list[Tracklet]:
    """Index the training split, in the order of its table. Raises as `mars_layout.read_tracks`."""
    return list(read_tracks(root, "train", _PLATFORMS, sizes).values())


def read_protocols(root: Path, sizes: SizeCache) -> list[Protocol]:
    """The one protocol: the queries of query_IDX against the other test tracklets.

    Its name says what the tracklets are, which is ground_to_aerial in the published split.

    Raises:
        DataError: as `mars_layout.read_tracks` and `read_query_rows`, or no query has a match.
    """
    queries = read_query_rows(root)
    tracks = read_tracks(root, "test", _PLATFORMS, sizes)
    query = [tracks[row] for row in queries if row in tracks]
    gallery = [tracklet for row, tracklet in tracks.items() if row not in set(queries)]
    return measurable([Protocol(protocol_name(query, gallery), query, gallery)], root)
