"""Video ReID data sets: tracklets and evaluation protocols.

Each data set has a small module with two functions, `read_train(root, sizes) -> list[Tracklet]` and
`read_protocols(root, sizes) -> list[Protocol]`; `catalog` chooses the module by the settings of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.clips import is_hr_tracklet
from s3clip_runtime.inference.spec import PLATFORMS, platform_id


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


def protocol_name(query: list[Tracklet], gallery: list[Tracklet]) -> str:
    """Such as aerial_to_ground, where each side is of one platform and one is aerial.

    Else query_to_gallery.
    """
    sides = [{PLATFORMS[tracklet.platform] for tracklet in side} for side in (query, gallery)]
    if all(len(side) == 1 for side in sides) and any("aerial" in side for side in sides):
        return "_to_".join(platform for side in sides for platform in side)
    return "query_to_gallery"


def measurable(protocols: list[Protocol], root: Path) -> list[Protocol]:
    """Those protocols in which a query has a match of another camera; the others measure nothing.

    Raises:
        DataError: there is none in the data set at `root`.
    """
    found = [protocol for protocol in protocols if protocol.answerable]
    if not found:
        names = ", ".join(protocol.name for protocol in protocols)
        raise DataError(
            f"{root}: a protocol needs a query whose identity another camera of its gallery saw, and none of "
            f"{names} has one; check that the test identities are the true ones and not anonymised"
        )
    return found


def cross_view_protocols(tracklets: list[Tracklet], root: Path) -> list[Protocol]:
    """The three protocols of aerial-ground ReID on one test split, read from `root` (method.md 8.3).

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
    return measurable(protocols, root)
