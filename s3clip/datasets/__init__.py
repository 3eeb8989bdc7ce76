"""Video ReID data sets: tracklets and evaluation protocols. Each reader is a small module that returns
`list[Tracklet]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.clips import is_hr_tracklet
from s3clip_runtime.inference.spec import platform_id


@dataclass(frozen=True)
class Tracklet:
    """The crops of one track of one camera, as files.

    Attributes:
        name: unique in its data set.
        identity: the data set's own number of the person; training relabels it.
        camera: unique in its data set; the ranking leaves out matches of the query's own camera.
        platform: platform id of the camera (`spec.PLATFORMS`).
        folder: where the image files are.
        files: their names below `folder`, in temporal order, at least one. Names, not paths: DetReIDX has
            11.75 million frames, and a Path object for each would take gigabytes.
        sizes: native (height, width) of each frame.
    """

    name: str
    identity: int
    camera: str
    platform: int
    folder: Path
    files: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.files)

    def frame(self, index: int) -> Path:
        """The image file of one frame."""
        return self.folder / self.files[index]

    @cached_property
    def hr(self) -> bool:
        """Whether at least half of the frames are high-resolution (decision A8)."""
        return is_hr_tracklet(self.sizes)


@dataclass(frozen=True)
class Protocol:
    """One evaluation: rank `gallery` for each tracklet of `query`."""

    name: str
    query: list[Tracklet]
    gallery: list[Tracklet]

    @property
    def answerable(self) -> bool:
        """Whether a query has a match of another camera; without one there is nothing to measure."""
        cameras: dict[int, set[str]] = {}
        for tracklet in self.gallery:
            cameras.setdefault(tracklet.identity, set()).add(tracklet.camera)
        return any(cameras.get(tracklet.identity, set()) - {tracklet.camera} for tracklet in self.query)


def cross_view_protocols(tracklets: list[Tracklet]) -> list[Protocol]:
    """The three protocols of aerial-ground ReID on one test split (method.md 8.3).

    aerial_to_ground and ground_to_aerial use all tracklets. aerial_to_aerial asks with the first aerial
    tracklet of each identity, by name, and ranks the other aerial ones. A protocol in which no query has
    a match of another camera cannot be measured and is left out of the list.

    Raises:
        DataError: none of the three can be measured.
    """
    ordered = sorted(tracklets, key=lambda tracklet: (tracklet.identity, tracklet.name))
    aerial = [tracklet for tracklet in ordered if tracklet.platform == platform_id("aerial")]
    ground = [tracklet for tracklet in ordered if tracklet.platform == platform_id("ground")]
    first_of = {tracklet.identity: tracklet for tracklet in reversed(aerial)}
    first = [tracklet for tracklet in aerial if tracklet is first_of[tracklet.identity]]
    others = [tracklet for tracklet in aerial if tracklet is not first_of[tracklet.identity]]
    protocols = [
        Protocol("aerial_to_ground", aerial, ground),
        Protocol("ground_to_aerial", ground, aerial),
        Protocol("aerial_to_aerial", first, others),
    ]
    measurable = [protocol for protocol in protocols if protocol.answerable]
    if not measurable:
        raise DataError(
            f"a test split needs an identity that two cameras saw, one of them aerial; these {len(aerial)} "
            f"aerial and {len(ground)} ground tracklets have none; check the identity folders"
        )
    return measurable
