"""Commands that show what is in a gallery, and who somebody is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.gallery.place import PATH, Place, bundle_option, day, device_option, on_gallery
from s3clip_runtime.inference.spec import PLATFORMS

if TYPE_CHECKING:
    from s3clip_runtime.gallery.open_set.decision import Decision
    from s3clip_runtime.gallery.records import LogEntry

_KINDS = ("known", "unknown", "candidate")
_SIGHTINGS_SHOWN = 10


@click.command("list")
@on_gallery
@click.option("--kind", type=click.Choice(_KINDS), help="Only these.")
def list_identities(place: Place, kind: str | None) -> None:
    """List the people in GALLERY."""
    with place.open() as gallery:
        people = [one for one in gallery.list() if kind in (None, one.kind)]
    click.echo("# name, kind, prototypes, platforms, cameras, sightings, last seen, enrolled, note")
    for one in people:
        platforms, cameras = ",".join(one.platforms) or "-", ",".join(one.cameras) or "-"
        cells = (
            one.identity, one.kind, one.prototypes, platforms, cameras, one.sightings, day(one.seen_s),
            day(one.enrolled_s), one.note or "-",
        )  # fmt: skip
        click.echo("\t".join(map(str, cells)))


@click.command()
@on_gallery
@click.argument("identity")
@click.option("--pictures", type=PATH, help="PNG file for the crops that were kept.")
def show(place: Place, identity: str, pictures: Path | None) -> None:
    """Show what GALLERY holds of IDENTITY."""
    with place.open() as gallery:
        person, prototypes, entries = gallery.show(identity)
        with gallery.reading() as book:
            names = {one.id: one.name for one in book.identities()}
            sightings = book.sightings(person.id)
            clips = {one.clip: one for one in prototypes if pictures and one.clip is not None}
            kept = [(one, book.clip(clip)[0]) for clip, one in clips.items()]
    click.echo(f"{person.name}: {person.kind}, {len(prototypes)} prototypes, {len(sightings)} sightings")
    click.echo(f"added {day(person.added_s)}, last seen {day(person.seen_s)}, note: {person.note or '-'}")
    click.echo("# prototype, origin, platform, camera, quality, seen, crops, space, source")
    for one in prototypes:
        quality = "-" if one.quality is None else f"{one.quality:.2f}"
        cells = (
            one.id, one.origin, one.platform or "-", one.camera or "-", quality, day(one.seen_s),
            "kept" if one.clip else "-", one.space[:12], one.source,
        )  # fmt: skip
        click.echo("\t".join(map(str, cells)))
    click.echo(f"# the last {min(len(sightings), _SIGHTINGS_SHOWN)} sightings: told, camera, tracklet, score")
    for seen in sightings[-_SIGHTINGS_SHOWN:]:
        score = "-" if seen.score is None else f"{seen.score:.4f}"
        click.echo(f"{day(seen.told_s)}\t{seen.camera}\t{seen.tracklet}\t{score}")
    _print_log(entries, names)
    if pictures is not None:
        from s3clip_runtime.cli.gallery.sheet import write_sheet

        write_sheet(pictures, person.name, kept)
        click.echo(f"wrote {pictures}: {len(kept)} clips")


@click.command()
@on_gallery
@bundle_option
@click.option("--platform", required=True, type=click.Choice(PLATFORMS), help="Where the camera was.")
@click.option(
    "--threshold", type=click.FloatRange(-1, 1), help="Your own cosine, in place of the calibrated ones."
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="How many to show.")
@device_option
@click.argument("pictures", nargs=-1, required=True, type=PATH)
def search(
    place: Place,
    bundle: Path,
    platform: str,
    threshold: float | None,
    top: int,
    device: str,
    pictures: tuple[Path, ...],
) -> None:
    """Find the person on PICTURES (files, or folders of files, of one person) in GALLERY.

    The log notes who searched when, and who was found; no picture.
    """
    from s3clip_runtime.cli.gallery.embedding import Model, clip_of, space_of
    from s3clip_runtime.inference.bundle import Bundle

    verified = Bundle.open(bundle)
    clip = clip_of(pictures, platform)
    with place.open(space_of(verified)) as gallery:
        with Model(verified, device) as model:
            vector = model.embed([clip])[0]
        matches, decision = gallery.search_for_person(
            vector, top, platform=platform, height_px=clip.height_px, threshold=threshold
        )
        calibration = gallery.open_set
        warning = None if calibration is None else calibration.warns(gallery.identities)
    click.echo(f"# {_told(decision)}")
    for match in matches:
        click.echo(f"{match.score:.4f}\t{match.identity}")
    if warning and threshold is None:
        click.echo(f"warning: {warning}", err=True)


@click.command()
@on_gallery
@click.option("--last", default=50, show_default=True, type=click.IntRange(min=1), help="How many entries.")
def log(place: Place, last: int) -> None:
    """Show the decisions: who did what to whom, and when."""
    with place.open() as gallery:
        entries = gallery.log(last)
        with gallery.reading() as book:
            names = {one.id: one.name for one in book.identities()}
    _print_log(entries, names)


@click.command()
@on_gallery
def info(place: Place) -> None:
    """Show what GALLERY says of itself, and its thresholds."""
    from s3clip_runtime.cli.gallery.calibration import table
    from s3clip_runtime.gallery.open_set.decision import OpenSet

    with place.open() as gallery:
        found = gallery.info()
        with gallery.reading() as book:
            calibrations = {space.hash: book.open_set(space.hash) for space, _ in found.spaces}
        click.echo(f"{gallery.database.name}, id {found.gallery}")
        click.echo(
            "people: " + (", ".join(f"{n} {kind}" for kind, n in sorted(found.people.items())) or "none")
        )
        click.echo(f"vectors and crops are {'encrypted' if found.encrypted else 'not encrypted'}")
        click.echo(f"key of receipts: {gallery.public_key}")
    for space, count in found.spaces:
        click.echo(f"space {space.hash}: {count} prototypes of {space.dim} numbers")
        text = calibrations[space.hash]
        click.echo("uncalibrated" if text is None else table(OpenSet.of_json(text)))


def _told(decision: Decision) -> str:
    if decision.verdict == "uncalibrated":
        return "uncalibrated: nobody can tell; run s3clip-gallery calibrate, or give --threshold"
    if decision.nearest is None:
        return "unknown: nobody of this model is in the gallery"
    who = "unknown: nobody of the gallery" if decision.identity is None else f"match: {decision.identity}"
    text = f"{who} (score {decision.score:.4f}, threshold {decision.threshold:.4f}"
    return text + (")" if decision.probability is None else f", probability {decision.probability:.3f})")


def _print_log(entries: list[LogEntry], names: Mapping[str, str]) -> None:
    """A line an entry; who is not there any more is shown by id."""
    click.echo("# entry, time, box, by, action, who, other")
    for entry in entries:
        people = [names.get(id, id) if id else "-" for id in (entry.identity, entry.other)]
        undone = "" if entry.undone is None else f"undone by {entry.undone}"
        cells = (entry.seq, day(entry.time_s), entry.box, entry.actor, entry.action, *people, undone)
        click.echo("\t".join(map(str, cells)).rstrip())
