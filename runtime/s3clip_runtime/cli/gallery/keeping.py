"""Commands that make and keep a gallery: create, backup, restore, and its key."""

from __future__ import annotations

from pathlib import Path

import click

from s3clip_runtime.cli.gallery.place import PATH, Place, bundle_option, confirm, on_gallery, yes_option
from s3clip_runtime.errors import GalleryError


@click.command()
@on_gallery
@bundle_option
def create(place: Place, bundle: Path) -> None:
    """Make an empty GALLERY for a bundle: for a run that meets unknown people, or with --key-file."""
    from s3clip_runtime.cli.gallery.embedding import space_of
    from s3clip_runtime.gallery.storage.places import is_server
    from s3clip_runtime.inference.bundle import Bundle

    if not is_server(place.address) and Path(place.address).exists():
        raise GalleryError(f"gallery {place.address}: there is a file already; name a new one")
    with place.open(space_of(Bundle.open(bundle)), new=True) as gallery:
        click.echo(f"made {gallery.database.name}")


@click.command()
@on_gallery
@click.argument("file", type=PATH)
def backup(place: Place, file: Path) -> None:
    """Write all of GALLERY to the new FILE, while it is in use. Leave it there: `forget` reaches it."""
    with place.open() as gallery:
        gallery.back_up(file)
    click.echo(f"wrote {file}")


@click.command()
@on_gallery
@click.argument("backup", type=PATH)
@yes_option
def restore(place: Place, backup: Path, yes: bool) -> None:
    """Put BACKUP in the place of all that GALLERY holds. Who was forgotten since stays forgotten."""
    if not backup.is_file():
        raise GalleryError(f"backup {backup}: there is no such file; name one of s3clip-gallery backup")
    with place.open(new=True) as gallery:
        people = sum(gallery.info().people.values())
        confirm(f"{people} people go, and those of {backup} come?", yes=yes or not people)
        forgotten = gallery.restore(backup)
        people = sum(gallery.info().people.values())
    click.echo(f"restored {people} people")
    for id in forgotten:
        click.echo(f"{id} was forgotten since the backup, and stays forgotten")


@click.command("make-key")
@click.argument("file", type=PATH)
def make_key(file: Path) -> None:
    """Write a new key to the new FILE. A gallery that is made with it has its vectors and crops encrypted."""
    from s3clip_runtime.gallery.storage import vault

    vault.make_key(file)
    click.echo(f"wrote {file}; keep a copy elsewhere: without it what was encrypted is lost")
