"""Commands by which people correct a gallery: names, notes, merge, split, undo."""

from __future__ import annotations

import click

from s3clip_runtime.cli.gallery.place import Place, on_gallery
from s3clip_runtime.errors import ConfigError


@click.command()
@on_gallery
@click.argument("old")
@click.argument("new")
def name(place: Place, old: str, new: str) -> None:
    """From now on OLD, an unknown or a known person, is NEW. If NEW is there, both become one person."""
    with place.open() as gallery:
        gallery.name(old, new)
    click.echo(f"{old} is {new}")


@click.command()
@on_gallery
@click.argument("identity")
@click.argument("text")
def note(place: Place, identity: str, text: str) -> None:
    """Write TEXT about IDENTITY, in place of an older note."""
    with place.open() as gallery:
        gallery.note(identity, text)
    click.echo(f"noted about {identity}")


@click.command()
@on_gallery
@click.argument("into")
@click.argument("other")
def merge(place: Place, into: str, other: str) -> None:
    """INTO and OTHER are one person: OTHER becomes part of INTO."""
    with place.open() as gallery:
        gallery.merge(into, other)
    click.echo(f"merged {other} into {into}")


@click.command()
@on_gallery
@click.argument("identity")
@click.option("--prototypes", required=True, help="Their numbers, as `show` lists them, such as 3,4.")
@click.option("--into", required=True, help="Name of the new person.")
def split(place: Place, identity: str, prototypes: str, into: str) -> None:
    """Some prototypes of IDENTITY are of another, new person."""
    numbers = prototypes.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ConfigError(f"--prototypes must be numbers with commas, found {prototypes!r}; write 3,4")
    with place.open() as gallery:
        gallery.split(identity, [int(number) for number in numbers], into)
    click.echo(f"split {len(numbers)} prototypes of {identity} into {into}")


@click.command()
@on_gallery
@click.argument("seq", required=False, type=click.IntRange(min=1))
def undo(place: Place, seq: int | None) -> None:
    """Take back entry SEQ of the log, or the newest change that a person made."""
    with place.open() as gallery:
        entry = gallery.undo(seq)
    click.echo(f"undone: entry {entry.seq}, {entry.action}")
