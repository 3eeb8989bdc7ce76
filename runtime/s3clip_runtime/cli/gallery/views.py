"""Views of people from folders and videos, and how they get into a gallery: each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from s3clip_runtime.cli.gallery.embedding import CLIPS_AT_ONCE, Model, clip_of
from s3clip_runtime.errors import DataError
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.storage.clips import pack
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.pictures import natural_key
from s3clip_runtime.inference.spec import PLATFORMS
from s3clip_runtime.inference.tracklets import UNKNOWN_CAMERA, Tracklet, read_clip, read_tracklets


@dataclass(frozen=True, slots=True)
class View:
    """One clip of a person, before it is embedded.

    Attributes:
        name: of the person.
        source: names the clip: the same one is not enrolled twice.
        platform: one of `spec.PLATFORMS`.
        camera: None: it is not known.
        quality: of its crops, in [0, 1]; None: nobody rated them.
        clip: reads it.
    """

    name: str
    source: str
    platform: str
    camera: str | None
    quality: float | None
    clip: Callable[[], Clip]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What `enrol_views` did: views that are new, and those that were there already."""

    new: tuple[View, ...]
    skipped: tuple[View, ...]


def enrol_views(gallery: Gallery, model: Model, views: Iterable[View], *, keep_crops: bool) -> Enrolled:
    """Embed and enrol a few views after the other, but for those that the person has from the same source.

    What was enrolled is on the disk: a call after a stopped one goes on.

    Raises:
        DataError: a view cannot be read. Those before it are enrolled.
        GalleryError: as `Gallery.enrol`.
    """
    there = _sources(gallery, model)
    new, skipped = list[View](), list[View]()
    for few in _few(views):
        wanted = [view for view in few if (view.name, view.source) not in there]
        skipped += [view for view in few if (view.name, view.source) in there]
        clips = [view.clip() for view in wanted]
        vectors = model.embed(clips)
        for view, clip, vector in zip(wanted, clips, vectors, strict=True):
            gallery.enrol(
                view.name,
                vector[None],
                platform=view.platform,
                source=view.source,
                camera=view.camera,
                quality=view.quality,
                pictures=(pack(clip.crops), clip.hr) if keep_crops else None,
            )
            new.append(view)
    return Enrolled(tuple(new), tuple(skipped))


def people_of(folder: Path, platform: str) -> list[View]:
    """A view of each sub-folder of `folder`, which is named as the person and holds pictures of it.

    Raises:
        DataError: there is no such folder, or no sub-folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: people must be a folder with one sub-folder each; name another")
    found = [one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: it must hold one sub-folder a person, and has none; name another")
    root = folder.resolve().name
    return [
        View(one.name, f"{root}/{one.name}", platform, None, None, partial(clip_of, [one], platform))
        for one in sorted(found, key=lambda one: natural_key(one.name))
    ]


def tracklets_of(folder: Path) -> list[View]:
    """A view of each tracklet below `folder`, whose path tells person, platform and camera.

    Raises:
        DataError: as `read_tracklets`, or a path tells no person.
    """
    tracklets = read_tracklets(folder)
    nobody = [one.name for one in tracklets if one.identity is None]
    if nobody:
        raise DataError(
            f"{folder}: the path of {len(nobody)} tracklets tells no person, such as {nobody[0]}; lay them "
            "out as PLATFORM/PERSON/CAMERA_NAME/*.jpg, or give --platform for one sub-folder a person"
        )
    return [_view(folder.resolve().name, one) for one in tracklets]


def _view(root: str, tracklet: Tracklet) -> View:
    camera = tracklet.camera.rpartition("/")[2]
    return View(
        tracklet.identity or "",
        f"{root}/{tracklet.name}",
        PLATFORMS[tracklet.platform],
        None if camera == UNKNOWN_CAMERA else camera,
        None,
        partial(read_clip, tracklet),
    )


def _sources(gallery: Gallery, model: Model) -> set[tuple[str, str]]:
    """Name and source of every prototype of the model's space."""
    with gallery.reading() as book:
        names = {one.id: one.name for one in book.identities()}
        return {
            (names[one.identity], one.source) for one in book.prototypes() if one.space == model.space.hash
        }


def _few(views: Iterable[View]) -> Iterator[Sequence[View]]:
    few = list[View]()
    for view in views:
        few.append(view)
        if len(few) == CLIPS_AT_ONCE:
            yield few
            few = []
    if few:
        yield few
