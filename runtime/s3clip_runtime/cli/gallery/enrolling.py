"""Commands that add people to a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.gallery.place import PATH, Place, bundle_option, device_option, on_gallery
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.spec import PLATFORMS

if TYPE_CHECKING:
    from s3clip_runtime.cli.gallery.views import Enrolled

_keep_crops = click.option(
    "--keep-crops", is_flag=True, help="Keep the crops too: a later model can embed them."
)


@click.command()
@on_gallery
@bundle_option
@click.option("--identity", required=True, help="Name of the person.")
@click.option("--platform", required=True, type=click.Choice(PLATFORMS), help="Where the camera was.")
@click.option("--camera", help="Name of the camera; none for pictures from elsewhere.")
@_keep_crops
@device_option
@click.argument("pictures", nargs=-1, required=True, type=PATH)
def enrol(
    place: Place,
    bundle: Path,
    identity: str,
    platform: str,
    camera: str | None,
    keep_crops: bool,
    device: str,
    pictures: tuple[Path, ...],
) -> None:
    """Add a person to GALLERY (made if it is new) by PICTURES of that person: files, or folders of files."""
    from s3clip_runtime.cli.gallery.embedding import Model, clip_of
    from s3clip_runtime.gallery.storage.clips import pack
    from s3clip_runtime.inference.bundle import Bundle

    verified = Bundle.open(bundle)
    clip = clip_of(pictures, platform)
    with Model(verified, device) as model:
        vectors = model.embed([clip])
    with place.open(model.space, new=True) as gallery:
        gallery.enrol(
            identity,
            vectors,
            platform=platform,
            source=pictures[0].resolve().name,
            camera=camera,
            pictures=(pack(clip.crops), clip.hr) if keep_crops else None,
        )
    click.echo(f"enrolled {identity}")


@click.command("enrol-folder")
@on_gallery
@click.argument("folder", type=PATH)
@bundle_option
@click.option(
    "--platform", type=click.Choice(PLATFORMS), help="Of all pictures; FOLDER then has a sub-folder a person."
)
@_keep_crops
@device_option
def enrol_folder(
    place: Place, folder: Path, bundle: Path, platform: str | None, keep_crops: bool, device: str
) -> None:
    """Add all people of FOLDER to GALLERY (made if it is new).

    With --platform each sub-folder is a person and holds pictures. Without it paths tell who was seen where:
    PLATFORM/PERSON/CAMERA_NAME/*.jpg, one folder a tracklet. What is there from the same place is skipped, so
    a stopped call goes on.
    """
    from tqdm import tqdm

    from s3clip_runtime.cli.gallery.embedding import Model
    from s3clip_runtime.cli.gallery.views import enrol_views, people_of, tracklets_of
    from s3clip_runtime.inference.bundle import Bundle

    verified = Bundle.open(bundle)
    views = tracklets_of(folder) if platform is None else people_of(folder, platform)
    with Model(verified, device) as model, place.open(model.space, new=True) as gallery:
        bar = tqdm(views, desc="enrol", unit="view", disable=None, leave=False)
        _tell(enrol_views(gallery, model, bar, keep_crops=keep_crops))


@click.command("enrol-video")
@on_gallery
@click.argument("video", metavar="VIDEO@PLATFORM")
@click.option("--boxes", required=True, type=PATH, help="MOT file: frame,id,x,y,width,height,conf.")
@click.option("--name", "names", required=True, multiple=True, metavar="ID=NAME", help="Who id ID is.")
@bundle_option
@click.option("--camera", help="Name of the camera; that of the file if not given.")
@_keep_crops
@device_option
def enrol_video(
    place: Place,
    video: str,
    boxes: Path,
    names: tuple[str, ...],
    bundle: Path,
    camera: str | None,
    keep_crops: bool,
    device: str,
) -> None:
    """Add persons of a video (or a folder of pictures) to GALLERY (made if it is new), as boxes tell them.

    Each tracklet of up to 10 s gives one view, its crops chosen by quality as in a run. What is there from
    the same place is skipped.
    """
    from s3clip_runtime.cli.gallery.embedding import Model
    from s3clip_runtime.cli.gallery.video import PersonVideo
    from s3clip_runtime.cli.gallery.views import enrol_views
    from s3clip_runtime.inference.bundle import Bundle

    verified = Bundle.open(bundle)
    persons = PersonVideo(video, camera, boxes, _names(names))
    with Model(verified, device) as model, place.open(model.space, new=True) as gallery:
        _tell(enrol_views(gallery, model, persons.views(), keep_crops=keep_crops))


def _names(words: Sequence[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for word in words:
        id, mark, name = word.partition("=")
        if not mark or not id.isdecimal():
            raise ConfigError(f"--name must be ID=NAME, found {word!r}; write for example 3=Ada")
        if int(id) in found:
            raise ConfigError(f"--name gives id {int(id)} twice; leave one out")
        found[int(id)] = name
    return found


def _tell(done: Enrolled) -> None:
    for view in done.skipped:
        click.echo(f"skipped {view.name}: {view.source} is there already")
    people = len({view.name for view in done.new})
    click.echo(f"enrolled {len(done.new)} views of {people} people, skipped {len(done.skipped)}")
